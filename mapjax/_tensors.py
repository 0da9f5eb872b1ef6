"""Editing task vectors tensor by tensor."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from mapjax import _tree
from mapjax._low_rank import LowRank
from mapjax._types import widened
from mapjax.task_vectors import TaskVectors

AT_ONCE = 2**24
"""Tensors of one shape are worked on together while they hold no more numbers."""


def edit_tensors(
    task_vectors: TaskVectors, edit: Callable[..., Sequence[Array]], *others: Any
) -> TaskVectors:
    """Replace the vectors of all tensors by what `edit` makes of them.

    The base does not go through `edit`, and stays where it is: what goes through a compiled
    function comes out as a copy.

    Args:
        task_vectors: The base and the vectors.
        edit: From the vectors of each tensor, the values of `tensors`, and `others`, to as
            many in the same order.
        *others: What else it takes.
    """
    new = iter(edit(list(tensors(task_vectors).values()), *others))
    places = _tree.values_up_to(task_vectors.base, task_vectors.vectors)
    vectors = [None if v is None else next(new) for v in places]
    vectors = _tree.rebuild(task_vectors.base, vectors)
    return dataclasses.replace(task_vectors, vectors=vectors)


def edit_each(
    vectors: Sequence[Array], edit: Callable[..., Array], *others: Sequence[Any]
) -> list[Array]:
    """Edit the vectors of each tensor.

    Args:
        vectors: Of each tensor `[coefficients, ...]`, the values of `tensors`.
        edit: From vectors in float32 at least, and one entry of each of `others`, to vectors
            of the same shape. The result is rounded to the vectors' own dtype, and infinite
            where that is float16 and too narrow. Tensors without entries are not edited.
        *others: What else belongs to each tensor.
    """
    return [
        edit(widened(v), *extra).astype(v.dtype) if v.size else v
        for v, *extra in zip(vectors, *others, strict=True)
    ]


def tensors(task_vectors: TaskVectors) -> dict[str, Array]:
    """List the vectors `[coefficients, ...]` of each merged tensor by its key path.

    Those that are kept as factors are multiplied out: an edit reads every entry. For paths,
    shapes and dtypes there is `kept_tensors`.
    """
    return {
        path: v.dense() if isinstance(v, LowRank) else v
        for path, v in kept_tensors(task_vectors).items()
    }


def kept_tensors(task_vectors: TaskVectors) -> dict[str, Array | LowRank]:
    """List what is kept of each merged tensor by its key path, vectors or their factors."""
    if not isinstance(task_vectors, TaskVectors):
        raise ValueError(
            f"`task_vectors` is a {type(task_vectors).__name__}: make task vectors of your "
            "parameters first, `mapjax.TaskVectors.from_params(base, experts)`."
        )
    places = _tree.values_up_to(task_vectors.base, task_vectors.vectors)
    leaves = _tree.leaves(task_vectors.base)
    return {leaf.path: v for leaf, v in zip(leaves, places, strict=True) if v is not None}


def base_tensors(task_vectors: TaskVectors) -> list[Array]:
    """List the base's own leaf of each merged tensor, in the order of `tensors`."""
    places = _tree.values_up_to(task_vectors.base, task_vectors.vectors)
    leaves = jax.tree.leaves(task_vectors.base)
    return [leaf for leaf, v in zip(leaves, places, strict=True) if v is not None]


def per_task(x: Array, like: Array) -> Array:
    """Give numbers `[coefficients]` the axes to broadcast against vectors of a tensor."""
    return x.reshape(-1, *[1] * (like.ndim - 1))


def sum_tasks(v: Array) -> Array:
    """Sum vectors `[tasks, ...]` over the tasks.

    A chain of additions fuses with what surrounds it: on CPU an election of signs took 5 ms
    where it took 120 ms with a reduction over the first axis.
    """
    return functools.reduce(operator.add, [v[i] for i in range(v.shape[0])])


def map_by_shape(function: Callable[..., Array], *columns: Sequence[Array]) -> list[Array]:
    """Apply a function to each tensor: of one shape as many at once as fit `AT_ONCE`.

    For what is slow to compile: a program holds it once for each shape, not for each tensor.
    On the CPU one by one, as batches of decompositions and solves can wait there for each
    other for ever; see `mapjax._algebra.svd`.

    Args:
        function: From one entry of each column.
        *columns: Arrays for each tensor.
    """

    def one(row: tuple[Array, ...]) -> Array:
        return function(*row)

    groups: dict[Any, list[int]] = {}
    for i, row in enumerate(zip(*columns, strict=True)):
        groups.setdefault(tuple((x.shape, x.dtype) for x in row), []).append(i)
    results: dict[int, Array] = {}
    for members in groups.values():
        if len(members) == 1:  # as it is, without a copy
            results[members[0]] = function(*(c[members[0]] for c in columns))
            continue
        rows = tuple(jnp.stack([c[i] for i in members]) for c in columns)
        each = sum(math.prod(x.shape[1:]) for x in rows)
        at_once = max(1, min(AT_ONCE // max(each, 1), len(members)))
        batch = lax.platform_dependent(
            rows,
            cpu=lambda rows: lax.map(one, rows),
            default=lambda rows, k=at_once: lax.map(one, rows, batch_size=k),
        )
        results |= zip(members, batch, strict=True)
    return [results[i] for i in range(len(results))]
