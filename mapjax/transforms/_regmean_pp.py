"""RegMean++: regression means on what the merged model itself passes on."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from mapjax import _tree
from mapjax._tensors import edit_each, edit_tensors, tensors
from mapjax.task_vectors import TaskVectors, merge
from mapjax.transforms._given import PerTask, each_task
from mapjax.transforms._gram import gram_matrices
from mapjax.transforms._operands import Gram
from mapjax.transforms._regmean import regmean


def regmean_pp(
    task_vectors: TaskVectors,
    predict: Callable[[Any, Any], Any],
    inputs: PerTask,
    *,
    off_diagonal: float = 0.9,
    batch_size: int | None = None,
) -> TaskVectors:
    r"""Merge kernel after kernel, each on inputs from the merged ones before it (RegMean++).

    As `regmean`, but $X_i$ is what the kernel reads when the inputs of task $i$ pass through
    the kernels that are merged already, and not through those of expert $i$. Tensors that
    no product reads, such as biases, are averaged first. The paper goes transformer block
    by block, with expert $i$'s own kernels inside of a block; for a chain of dense layers
    that is the same.

    Needs unlabelled inputs of every task. Costs, for each kernel, a forward pass for each
    task and a solve. When `regmean` is good but the model is deep, or tasks differ much.
    Coefficients of one give the merge that the features belong to.

    Args:
        task_vectors: The base and the vectors.
        predict: From parameters and inputs to outputs.
        inputs: Unlabelled examples of every task, by name or in order, each a pytree of
            arrays with one along each first axis.
        off_diagonal: Factor on off-diagonal entries of Gram matrices, from 0 to 1.
        batch_size: How many examples to pass at once, all by default.

    Returns:
        Task vectors whose sum is the merge.

    Raises:
        ValueError: As `gram_matrices` and `regmean`.

    References:
        Nguyen et al., *RegMean++: Enhancing Effectiveness and Generalization of Regression
        Mean for Model Merging*, 2025, arXiv 2508.03121.
    """
    data = each_task(task_vectors, inputs, "inputs")
    num_tasks = task_vectors.num_tasks
    mean = edit_tensors(task_vectors, edit_each, lambda v: v / num_tasks)
    merged = merge(mean, jnp.ones(num_tasks))
    places = [leaf.path for leaf in _tree.leaves(merged)]
    vectors = tensors(task_vectors)
    values = [leaf.value for leaf in _tree.leaves(merged)]
    base = {leaf.path: leaf.value for leaf in _tree.leaves(task_vectors.base)}

    found: list[dict[str, Gram]] = [{} for _ in data]
    kernels = list(gram_matrices(predict, merged, data[0], batch_size=batch_size))
    for path in [path for path in kernels if path in vectors]:
        for seen, x in zip(found, data, strict=True):
            seen[path] = gram_matrices(predict, merged, x, batch_size=batch_size)[path]
        kernel = TaskVectors(base[path], vectors[path], task_vectors.names)
        part = regmean(
            kernel, [{_tree.ROOT: seen[path]} for seen in found], off_diagonal=off_diagonal
        )
        values[places.index(path)] = merge(part, jnp.ones(num_tasks))
        merged = _tree.rebuild(merged, values)
    return regmean(task_vectors, found, off_diagonal=off_diagonal)
