"""ReACT: a merge whose last layer is solved for each preference."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mapjax import _tree
from mapjax._jit import automatic, jit
from mapjax._types import ArrayLike, widened
from mapjax.rules._rule import AbstractPreferenceRule
from mapjax.task_vectors import TaskVectors, merge
from mapjax.transforms._checks import check_positive
from mapjax.transforms._fisher import count_examples
from mapjax.transforms._given import PerTask, each_task
from mapjax.transforms._gram import gram_matrices

Predict = Callable[[Any, Any], Array]


class ReACT(AbstractPreferenceRule):
    r"""From a preference $p$ to a merge with the last kernel that belongs to it.

    With the features $Z_t$ of the merge on task $t$, one row per example, those $Y_t$ of
    its expert, the rotation $R_t$ that brings $Z_t$ nearest to $Y_t$, and the expert's last
    kernel $K_t$: $(\sum_t p_t C_t)^{-1} \sum_t p_t C_t W_t K_t$, where
    $C_t = Z_t^\top Z_t + \beta I$ and $W_t = C_t^{-1} (Z_t^\top Y_t + \beta R_t)$. It
    minimises $\sum_t p_t (\|Z_t K - Y_t K_t\|^2 + \beta \|K - R_t K_t\|^2)$. Made by `react`.

    Attributes:
        merged: The merge whose features are used.
        moments: $C_t$, one per task.
        targets: $C_t W_t K_t$, one per task.
        biases: Of the experts' last layers, where these have any.
        places: Which leaves are the last kernel and its bias.
        turned: Whether the kernel is kept as `[outputs, inputs]`.
        names: Of the experts.
    """

    merged: PyTree
    moments: Float[Array, "tasks inputs inputs"]
    targets: Float[Array, "tasks inputs outputs"]
    biases: Float[Array, "tasks outputs"] | None
    places: tuple[int, int | None] = eqx.field(static=True)
    turned: bool = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def coefficient_names(self) -> tuple[str, ...]:
        """The experts, in the order of the coefficients."""
        return self.names

    def merge(self, preference: Float[Array, " tasks"]) -> PyTree:
        """Solve for the last kernel; see `AbstractPreferenceRule`."""
        leaves, place_of_bias = jax.tree.leaves(self.merged), self.places[1]
        old = leaves[self.places[0]]
        leaves[self.places[0]] = _solve(
            preference, self.moments, self.targets, old, self.turned
        )
        if self.biases is not None and place_of_bias is not None:
            bias = jnp.tensordot(preference, self.biases, 1)
            leaves[place_of_bias] = bias.astype(leaves[place_of_bias].dtype)
        return _tree.rebuild(self.merged, leaves)


def react(
    task_vectors: TaskVectors,
    predict: Predict,
    inputs: PerTask,
    *,
    coefficients: ArrayLike | Sequence[float] | None = None,
    beta: float = 0.1,
) -> ReACT:
    r"""Solve for the last kernel of a merge, by preference (ReACT).

    All that is below the last layer stays as it was merged; the last kernel is the one
    with which the outputs are nearest to each expert's own, weighted by preference, and its
    bias is that of the experts in the same proportions. Coefficients are preferences, which
    is nearly the best choice for them: a preference's own merge is close to the best of all
    for it, and a front takes few evaluations.

    Needs unlabelled inputs of each task; all tasks share one head. Costs two forward
    passes and a decomposition for each task, and a solve of the size of the last layer for
    each merge.

    Args:
        task_vectors: The base and the vectors.
        predict: From parameters and inputs to outputs; the same function as in a `Task`.
        inputs: Some hundred examples of each task, by name or in order, each a pytree of
            arrays with one example along each first axis.
        coefficients: Of the merge whose last layer is solved for; by default the uniform
            one.
        beta: Strength of the pull to a mere rotation of the features.

    Returns:
        The rule: a function of one preference per expert. Only their proportions count, and
        with none at all they are equal (where a `MergeRule` gives the base).

    Raises:
        ValueError: If the outputs are not a product of features with one kernel, inputs are
            missing, the number of coefficients is wrong, or `beta` is not positive.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> def predict(params, x):
        ...     return x @ params
        >>> tv = mj.TaskVectors.from_params(jnp.zeros((2, 1)), [jnp.ones((2, 1))] * 2)
        >>> rule = react(tv, predict, [jnp.eye(2), 2 * jnp.eye(2)])
        >>> rule(jnp.array([0.5, 0.5])).round(3).tolist()
        [[1.0], [1.0]]

    References:
        Wu et al., *From Parameter to Representation: A Closed-Form Approach for Controllable
        Model Merging*, AAAI 2026, arXiv 2511.10943. Its tasks have heads of their own,
        which are not merged, and no bias.
    """
    check_positive("beta", beta, "0.1")
    n = task_vectors.num_tasks
    examples = each_task(task_vectors, inputs, "inputs")
    for i, x in enumerate(examples):
        count_examples(x, f"inputs[{i}]", 1)
    merged = merge(task_vectors, [1 / n] * n if coefficients is None else coefficients)
    place, place_of_bias, turned = _last_layer(predict, merged, examples[0])
    moments, targets, biases = [], [], []
    for one, x in zip(np.eye(n, dtype=np.float32), examples, strict=True):
        expert = merge(task_vectors, one)
        leaves = jax.tree.leaves(expert)
        z, y = (_features(predict, m, place, turned, x) for m in (merged, expert))
        each = _solve_for_task(z, y, _turn(leaves[place], turned), beta)
        moments.append(each[0])
        targets.append(each[1])
        biases.append(None if place_of_bias is None else leaves[place_of_bias])
    stacked = None if place_of_bias is None else jnp.stack(biases)
    return ReACT(
        merged,
        jnp.stack(moments),
        jnp.stack(targets),
        stacked,
        (place, place_of_bias),
        turned,
        task_vectors.names,
    )


@jit
def _solve(
    p: Float[Array, " tasks"],
    moments: Float[Array, "tasks inputs inputs"],
    targets: Float[Array, "tasks inputs outputs"],
    old: Float[Array, "rows columns"],
    turned: bool,
) -> Float[Array, "rows columns"]:
    with jax.default_matmul_precision("highest"):
        moments, targets = (jnp.tensordot(p, x, 1) for x in (moments, targets))
        kernel = jnp.linalg.solve(moments, targets)
    return _turn(kernel, turned).astype(old.dtype)


@jit
def _solve_for_task(
    z: Float[Array, "examples inputs"],
    y: Float[Array, "examples inputs"],
    kernel: Float[Array, "inputs outputs"],
    beta: float,
) -> tuple[Float[Array, "inputs inputs"], Float[Array, "inputs outputs"]]:
    """Compute $C_t$ and $C_t W_t K_t$ from features of the merge and of the expert."""
    z, y, kernel = widened(z), widened(y), widened(kernel)
    with jax.default_matmul_precision("highest"):
        cross = z.T @ y
        # The orthogonal Procrustes problem. With fewer examples than features it has many
        # solutions, of which that nearest to no rotation at all is taken.
        least = len(cross) * jnp.finfo(cross.dtype).eps * jnp.linalg.norm(cross)
        u, _, vt = jnp.linalg.svd(cross + least * jnp.eye(len(cross)))
        rotation = u @ vt
        moments = z.T @ z + beta * jnp.eye(z.shape[1])
        return moments, (cross + beta * rotation) @ kernel


@eqx.filter_jit
def _features(
    predict: Predict, params: PyTree, place: int, turned: bool, inputs: PyTree
) -> Float[Array, "examples inputs"]:
    """Compute what the last kernel reads: the derivative of an output in its column."""
    leaves = jax.tree.leaves(params)
    # Features in less precision would not give the outputs.
    widest = _turn(widened(leaves[place]), turned)

    def first_output(kernel: Array, example: PyTree) -> Array:
        changed = [*leaves[:place], _turn(kernel, turned), *leaves[place + 1 :]]
        params_with = _tree.rebuild(params, changed)
        outputs = predict(params_with, jax.tree.map(lambda x: x[None], example))
        return _first(outputs)

    def one(example: PyTree) -> Array:
        return _column(jax.grad(first_output)(widest, example))

    return jax.lax.map(one, inputs, batch_size=64)


@automatic
def _first(outputs: Array) -> Array:
    return outputs.reshape(-1)[0]


@automatic
def _column(kernel: Array) -> Array:
    return kernel[:, 0]


def _turn(kernel: Array, turned: bool) -> Array:
    """Transpose a kernel `[outputs, inputs]`, as equinox has it, and back."""
    return kernel.T if turned else kernel


def _last_layer(
    predict: Predict, params: PyTree, inputs: PyTree
) -> tuple[int, int | None, bool]:
    """Find the kernel whose product is the output, the bias beside it, and how it lies."""
    some = jax.tree.map(lambda x: x[:8], inputs)
    *_, (path, gram) = gram_matrices(predict, params, some).items()  # the last one used
    turned = gram.axes == (1,)
    leaves = _tree.leaves(params)
    place = [leaf.path for leaf in leaves].index(path)
    kernel = jnp.asarray(leaves[place].value)
    kernel = _turn(kernel, turned) if kernel.ndim == 2 else kernel
    outputs = jnp.asarray(predict(params, some))
    outputs = outputs.reshape(len(outputs), -1)
    if kernel.ndim == 2 and outputs.shape[1] == kernel.shape[1]:
        # With another kernel, lest a bias below the last one be taken for that beside it.
        twice = [leaf.value for leaf in leaves]
        twice[place] = 2 * twice[place]
        bias = _bias(predict, _tree.rebuild(params, twice), some, outputs.shape[1])
        features = widened(_features(predict, params, place, turned, some))
        product = features @ kernel.astype(features.dtype)
        if bias is not None:
            product = product + jnp.asarray(leaves[bias].value, product.dtype)
        off = jnp.max(jnp.abs(widened(outputs) - product))
        close = max(1e-3, 8 * float(jnp.finfo(outputs.dtype).eps))
        if off <= close * jnp.max(jnp.abs(outputs)):
            return place, bias, turned
    raise ValueError(
        f"The last layer is solved for, but the outputs of `predict` are not a product of "
        f"features with {path}, the last kernel that is used, plus a bias. Let `predict` "
        "return logits, and merge the head that gives them."
    )


def _bias(predict: Predict, params: PyTree, inputs: PyTree, size: int) -> int | None:
    """Find the leaf that the outputs are equal to but for what does not depend on it."""
    leaves, example = jax.tree.leaves(params), jax.tree.map(lambda x: x[:1], inputs)
    for i, leaf in enumerate(leaves):
        if np.shape(leaf) != (size,) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue

        def outputs(value: Array, i: int = i) -> Array:
            changed = _tree.rebuild(params, [*leaves[:i], value, *leaves[i + 1 :]])
            return predict(changed, example).reshape(-1)

        if np.array_equal(jax.jacobian(outputs)(leaf), np.eye(size)):
            return i
    return None
