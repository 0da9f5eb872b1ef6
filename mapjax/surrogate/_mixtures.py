"""Scores of weighted sums of outputs: what turns predicted outputs into scores."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

_PARTS = 4
"""That examples are cut into where they are many: one of them tells roughly what all do."""
_LEAST_PART = 64
"""Examples that are enough to tell anything."""


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
        mask: Which examples are scored: those that are not there to fill a block, of all
            blocks or of the first.
        metric: What scores outputs.
    """

    outputs: PyTree
    targets: PyTree
    mask: Bool[Array, "blocks examples"]
    metric: Any = eqx.field(static=True)

    @property
    def can_part(self) -> bool:
        """Whether a part of the examples can be scored, and tells something."""
        enough = len(self.mask) > 1 and self.mask.size >= _PARTS * _LEAST_PART
        # A loop of any length, which needs no compiling, has no derivative in reverse.
        return enough and not self.metric.differentiable

    def part(self) -> "Rows":
        """Score a part of the examples, if they can be parted."""
        if not self.can_part:
            return self
        mask = np.array(self.mask)
        mask[max(1, len(mask) // _PARTS) :] = False
        return eqx.tree_at(lambda r: r.mask, self, jax.device_put(mask))

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

        blocks = self.outputs, self.targets, self.mask
        total, count = jnp.zeros((), weights.dtype), jnp.sum(self.mask, dtype=weights.dtype)
        if not self.can_part:
            return jax.lax.scan(add, total, blocks)[0] / count

        def add_next(i: Array, total: Array) -> Array:
            return add(total, jax.tree.map(lambda x: x[i], blocks))[0]

        used = jnp.sum(jnp.any(self.mask, axis=1))
        return jax.lax.fori_loop(0, used, add_next, total) / count


def make_rows(outputs: PyTree, targets: PyTree, metric: Any, block_size: int) -> Rows:
    """Cut outputs `[rows, examples, ...]` of one task into blocks of examples."""
    count = jax.tree.leaves(outputs)[0].shape[1]
    num_blocks = -(-count // block_size) if metric.per_example else 1
    if num_blocks > 1:
        num_blocks = _PARTS * -(-num_blocks // _PARTS)
    size = -(-count // num_blocks)

    def cut(x: Array, axis: int) -> Array:
        # Like cards dealt: where examples are sorted, no block is of one kind.
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, num_blocks * size - count)
        shape = (*x.shape[:axis], size, num_blocks, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, padding, mode="edge").reshape(shape), axis + 1, 0)

    return Rows(
        outputs=jax.tree.map(lambda x: cut(x, 1), outputs),
        targets=jax.tree.map(lambda x: cut(x, 0), targets),
        mask=(jnp.arange(num_blocks * size) < count).reshape(size, num_blocks).T,
        metric=metric,
    )


def _weigh(weights: Array, rows: Array) -> Array:
    """Contract the last axis of the weights with the first of the rows."""
    return jnp.tensordot(weights, rows, 1, precision=jax.lax.Precision.HIGHEST)
