"""Scores of weighted sums of outputs: what turns predicted outputs into scores."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree


@runtime_checkable
class Metric(Protocol):
    """What is read of a metric; `mapjax.metrics.Metric` has it."""

    @property
    def per_example(self) -> bool: ...
    @property
    def differentiable(self) -> bool: ...
    def __call__(self, outputs: Any, targets: Any) -> Array: ...
    def each(self, outputs: Any, targets: Any) -> Array: ...


class Rows(eqx.Module):
    """Sets of outputs of one task, cut into blocks of examples.

    Attributes:
        outputs: Arrays `[blocks, rows, examples, ...]`: one row per set of outputs.
        targets: Arrays `[blocks, examples, ...]`.
        mask: Which examples are real, and not there to fill the last block.
        count: How many are real.
        metric: What scores outputs.
    """

    outputs: PyTree
    targets: PyTree
    mask: Bool[Array, "blocks examples"]
    count: int = eqx.field(static=True)
    metric: Any = eqx.field(static=True)

    def score(self, weights: Float[Array, " rows"]) -> Float[Array, ""]:
        """Score one weighted sum of the rows."""

        def mixed(outputs: PyTree) -> PyTree:
            return jax.tree.map(lambda x: _weigh(weights, x), outputs)

        if not self.metric.per_example:  # then there is one block, without padding
            whole = jax.tree.map(lambda x: x[0], (self.outputs, self.targets))
            return self.metric(mixed(whole[0]), whole[1]).astype(weights.dtype)

        def add(total: Array, block: Any) -> tuple[Array, None]:
            outputs, targets, mask = block
            values = self.metric.each(mixed(outputs), targets)
            return total + jnp.sum(jnp.where(mask, values, 0)).astype(total.dtype), None

        blocks = (self.outputs, self.targets, self.mask)
        total, _ = jax.lax.scan(add, jnp.zeros((), weights.dtype), blocks)
        return total / self.count


def make_rows(outputs: PyTree, targets: PyTree, metric: Any, block_size: int) -> Rows:
    """Cut outputs `[rows, examples, ...]` of one task into blocks of examples."""
    count = jax.tree.leaves(outputs)[0].shape[1]
    num_blocks = -(-count // block_size) if metric.per_example else 1
    size = -(-count // num_blocks)

    def cut(x: Array, axis: int) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, num_blocks * size - count)
        shape = (*x.shape[:axis], num_blocks, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, padding, mode="edge").reshape(shape), axis, 0)

    return Rows(
        outputs=jax.tree.map(lambda x: cut(x, 1), outputs),
        targets=jax.tree.map(lambda x: cut(x, 0), targets),
        mask=(jnp.arange(num_blocks * size) < count).reshape(num_blocks, size),
        count=count,
        metric=metric,
    )


def _weigh(weights: Array, rows: Array) -> Array:
    """Contract the last axis of the weights with the first of the rows."""
    return jnp.tensordot(weights, rows, 1, precision=jax.lax.Precision.HIGHEST)
