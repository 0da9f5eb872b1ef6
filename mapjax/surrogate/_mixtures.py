"""Scores of weighted sums of outputs: what turns predicted outputs into scores."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

_HIGHEST = jax.lax.Precision.HIGHEST


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
    """Sets of outputs of one task, by what they have in common, in blocks of examples.

    Outputs of many merges of the same experts lie near a space of few dimensions: sums of
    them cost less there.

    Attributes:
        basis: For each array of the outputs `[sets, rows]`: what each set is made of.
        outputs: Arrays `[blocks, rows, examples, ...]`: the first set, then directions.
        targets: Arrays `[blocks, examples, ...]`.
        mask: Which examples are real, and not there to fill the last block.
        count: How many are real.
        metric: What scores outputs.
    """

    basis: PyTree
    outputs: PyTree
    targets: PyTree
    mask: Bool[Array, "blocks examples"]
    count: int = eqx.field(static=True)
    metric: Any = eqx.field(static=True)

    def score(self, weights: Float[Array, " sets"]) -> Float[Array, ""]:
        """Score one weighted sum of the sets."""
        parts = jax.tree.map(lambda basis: _weigh(weights, basis), self.basis)

        def mixed(outputs: PyTree) -> PyTree:
            return jax.tree.map(_weigh, parts, outputs)

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


def make_rows(
    outputs: PyTree, targets: PyTree, metric: Any, block_size: int, num_directions: int
) -> tuple[Rows, Float[Array, ""]]:
    """Cut outputs `[sets, examples, ...]` of one task into blocks of examples.

    Returns:
        The rows, and what share of the sets' distances from the first one they leave out,
        as a root of squares: the most of any array.
    """
    count = jax.tree.leaves(outputs)[0].shape[1]
    num_blocks = -(-count // block_size) if metric.per_example else 1
    size = -(-count // num_blocks)

    def cut(x: Array, axis: int) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, num_blocks * size - count)
        shape = (*x.shape[:axis], num_blocks, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, padding, mode="edge").reshape(shape), axis, 0)

    leaves, structure = jax.tree.flatten(outputs)
    basis, directions, left_out = zip(
        *(_in_common(x, num_directions) for x in leaves), strict=True
    )
    rows = Rows(
        basis=structure.unflatten(basis),
        outputs=structure.unflatten([cut(x, 1) for x in directions]),
        targets=jax.tree.map(lambda x: cut(x, 0), targets),
        mask=(jnp.arange(num_blocks * size) < count).reshape(num_blocks, size),
        count=count,
        metric=metric,
    )
    return rows, jnp.max(jnp.stack(left_out))


def _in_common(
    x: Float[Array, "sets ..."], num_directions: int
) -> tuple[Float[Array, "sets rows"], Float[Array, "rows ..."], Float[Array, ""]]:
    """Write sets as the first one and as many principal directions away from it."""
    away = (x - x[0]).reshape(len(x), -1)  # exactly zero where all agree, as in a mask
    # Relative to its own size: one merge that broke down says nothing about the others.
    size = jnp.max(jnp.abs(away), axis=1, keepdims=True)
    size = jnp.where(size > 0, size, 1)
    unit = away / size
    values, vectors = jnp.linalg.eigh(jnp.matmul(unit, unit.T, precision=_HIGHEST))
    values = jnp.maximum(values, 0)
    top = vectors[:, ::-1][:, :num_directions]
    total = jnp.sum(values)
    left_out = jnp.sum(values[: len(x) - top.shape[1]]) / jnp.where(total > 0, total, 1)
    # Always as many: what was compiled for few sets serves more.
    top = jnp.pad(top, ((0, 0), (0, num_directions - top.shape[1])))
    basis = jnp.concatenate([jnp.ones_like(size), size * top], axis=1)
    directions = jnp.matmul(top.T, unit, precision=_HIGHEST).reshape(-1, *x.shape[1:])
    return basis, jnp.concatenate([x[:1], directions]), jnp.sqrt(left_out)


def _weigh(weights: Array, rows: Array) -> Array:
    """Contract the last axis of the weights with the first of the rows."""
    return jnp.tensordot(weights, rows, 1, precision=_HIGHEST)
