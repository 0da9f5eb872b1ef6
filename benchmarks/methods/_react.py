"""ReACT: a merge whose last layer is solved for each preference."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

import mapjax as mj
from benchmarks.methods._closed import by_preference
from benchmarks.methods._drivers import with_driver
from benchmarks.methods._found import Found
from benchmarks.suites import Suite
from mapjax import _tree, transforms

Predict = Callable[[Any, Any], Array]


class ReACT(eqx.Module):
    r"""From a preference $p$ to a merge with the last kernel that belongs to it.

    With the features $Z_t$ of the merge on task $t$, one row per example, those $Y_t$ of
    its expert, the rotation $R_t$ that brings $Z_t$ nearest to $Y_t$, and the expert's last
    kernel $K_t$: $(\sum_t p_t C_t)^{-1} \sum_t p_t C_t W_t K_t$, where
    $C_t = Z_t^\top Z_t + \beta I$ and $W_t = C_t^{-1} (Z_t^\top Y_t + \beta R_t)$. It
    minimises $\sum_t p_t (\|Z_t K - Y_t K_t\|^2 + \beta \|K - R_t K_t\|^2)$. The paper's
    tasks have heads of their own, which are not merged, and no bias; here the head is
    shared, and its bias is that of the experts, weighted by $p$.

    Attributes:
        merged: The merge whose features are used.
        moments: $C_t$, one per task.
        targets: $C_t W_t K_t$, one per task.
        biases: Of the experts' last layers, where these have any.
        places: Which leaves are the last kernel and its bias.

    References:
        Wu et al., *From Parameter to Representation: A Closed-Form Approach for Controllable
        Model Merging*, AAAI 2026, arXiv 2511.10943.
    """

    merged: PyTree
    moments: Float[Array, "tasks inputs inputs"]
    targets: Float[Array, "tasks inputs outputs"]
    biases: Float[Array, "tasks outputs"] | None
    places: tuple[int, int | None] = eqx.field(static=True)

    @property
    def num_coefficients(self) -> int:
        """How many coefficients there are: the preference of each task."""
        return len(self.moments)

    def __call__(self, preference: Float[Array, " tasks"]) -> PyTree:
        """Solve for the last kernel; no preference at all counts as an equal one."""
        total = jnp.sum(preference)
        p = jnp.where(total > 0, preference, 1) / jnp.where(
            total > 0, total, len(preference)
        )
        with jax.default_matmul_precision("highest"):
            moments, targets = (
                jnp.tensordot(p, x, 1) for x in (self.moments, self.targets)
            )
            kernel = jnp.linalg.solve(moments, targets)
        leaves, place_of_bias = jax.tree.leaves(self.merged), self.places[1]
        old = leaves[self.places[0]]
        leaves[self.places[0]] = kernel.astype(old.dtype)
        if self.biases is not None and place_of_bias is not None:
            bias = jnp.tensordot(p, self.biases, 1)
            leaves[place_of_bias] = bias.astype(old.dtype)
        return _tree.rebuild(self.merged, leaves)


def react(suite: Suite, budget: int) -> Found:
    """Correct the uniform merge."""
    return by_preference(suite, budget, rule=make)


def with_map_front(suite: Suite, budget: int) -> Found:
    """Run `map_front` on the preferences that the uniform merge is corrected for."""
    return with_driver(suite, budget, rule=make(suite))


def make(suite: Suite, *, beta: float = 0.1, most: int = 500) -> ReACT:
    """Read what the uniform merge and the experts make of inputs, and solve for each task.

    Args:
        suite: The problem; its tasks share one head.
        beta: The paper's strength of the pull to a rotation.
        most: The most training examples of each task.

    Raises:
        ValueError: If the outputs are not a product of the features with one kernel.
    """
    vectors = suite.task_vectors
    merged = mj.merge(vectors, np.full(vectors.num_tasks, 1 / vectors.num_tasks))
    tasks = suite.train.tasks
    inputs = [jax.tree.map(lambda x: x[:most], task.inputs) for task in tasks]
    places = _last_layer(tasks[0].predict, merged, inputs[0], suite.name)
    moments, targets, biases = [], [], []
    experts = np.eye(vectors.num_tasks, dtype=np.float32)
    for task, x, one in zip(tasks, inputs, experts, strict=True):
        expert = mj.merge(vectors, one)
        leaves = jax.tree.leaves(expert)
        z = features(task.predict, merged, places[0], x)
        y = features(task.predict, expert, places[0], x)
        each = solve_for_task(z, y, leaves[places[0]], beta)
        moments.append(each[0])
        targets.append(each[1])
        biases.append(None if places[1] is None else leaves[places[1]])
    stacked = None if places[1] is None else jnp.stack(biases)
    return ReACT(merged, jnp.stack(moments), jnp.stack(targets), stacked, places)


@eqx.filter_jit
def solve_for_task(
    z: Float[Array, "examples inputs"],
    y: Float[Array, "examples inputs"],
    kernel: Float[Array, "inputs outputs"],
    beta: float,
) -> tuple[Float[Array, "inputs inputs"], Float[Array, "inputs outputs"]]:
    """Compute $C_t$ and $C_t W_t K_t$ from features of the merge and of the expert."""
    with jax.default_matmul_precision("highest"):
        cross = z.T @ y
        u, _, vt = jnp.linalg.svd(cross)
        rotation = u @ vt  # the orthogonal Procrustes problem
        moments = z.T @ z + beta * jnp.eye(z.shape[1])
        return moments, (cross + beta * rotation) @ kernel


@eqx.filter_jit
def features(
    predict: Predict, params: PyTree, place: int, inputs: PyTree
) -> Float[Array, "examples inputs"]:
    """Compute what the last kernel reads: the derivative of an output in its column."""
    leaves = jax.tree.leaves(params)

    def first_output(kernel: Array, example: PyTree) -> Array:
        params_with = _tree.rebuild(params, [*leaves[:place], kernel, *leaves[place + 1 :]])
        outputs = predict(params_with, jax.tree.map(lambda x: x[None], example))
        return outputs.reshape(-1)[0]

    def one(example: PyTree) -> Array:
        return jax.grad(first_output)(leaves[place], example)[:, 0]

    return jax.lax.map(one, inputs, batch_size=64)


def _last_layer(
    predict: Predict, params: PyTree, inputs: PyTree, name: str
) -> tuple[int, int | None]:
    """Find the kernel whose product is the output, and the bias that is added to it."""
    some = jax.tree.map(lambda x: x[:8], inputs)
    *_, path = transforms.gram_matrices(predict, params, some)  # the last one used
    leaves = _tree.leaves(params)
    place = [leaf.path for leaf in leaves].index(path)
    kernel = jnp.asarray(leaves[place].value)
    outputs = jnp.asarray(predict(params, some))
    outputs = outputs.reshape(len(outputs), -1)
    if kernel.ndim == 2 and outputs.shape[1] == kernel.shape[1]:
        bias = _bias(predict, params, some, outputs.shape[1])
        product = features(predict, params, place, some) @ kernel
        product = product + (0 if bias is None else leaves[bias].value)
        if jnp.allclose(outputs, product, rtol=1e-3, atol=1e-3):
            return place, bias
    raise ValueError(
        f"ReACT corrects the last layer, but the outputs of {name!r} are not a product of "
        f"features with {path}, the last kernel that is used, plus a bias."
    )


def _bias(predict: Predict, params: PyTree, inputs: PyTree, size: int) -> int | None:
    """Find the leaf that the outputs are equal to but for what does not depend on it."""
    leaves, example = jax.tree.leaves(params), jax.tree.map(lambda x: x[:1], inputs)
    for i, leaf in enumerate(leaves):
        if np.shape(leaf) != (size,):
            continue

        def outputs(value: Array, i: int = i) -> Array:
            changed = _tree.rebuild(params, [*leaves[:i], value, *leaves[i + 1 :]])
            return predict(changed, example).reshape(-1)

        if np.array_equal(jax.jacobian(outputs)(leaf), np.eye(size)):
            return i
    return None
