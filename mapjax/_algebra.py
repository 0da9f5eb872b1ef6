"""Norms, decompositions without directions of value zero, solves for all tasks at once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax import lax
from jaxtyping import Array, Float, Inexact

from mapjax._types import widened

HIGHEST = lax.Precision.HIGHEST

Axes = int | tuple[int, ...]


class Singular(NamedTuple):
    """Singular vectors and values, from the largest down.

    Directions whose value is zero up to rounding are columns of zeros in `left` and
    `right`: a decomposition may return any vectors for them, and they would otherwise
    displace what other tasks have there.
    """

    left: Float[Array, "... inputs rank"]
    values: Float[Array, "... rank"]
    right: Float[Array, "... outputs rank"]

    def top(self, count: int) -> "Singular":
        """Keep the largest."""
        return Singular(
            self.left[..., :count], self.values[..., :count], self.right[..., :count]
        )


def singular(
    matrix: Float[Array, "... inputs outputs"],
    scale: Float[Array, "..."] | None = None,
) -> Singular:
    """Decompose matrices.

    Args:
        matrix: One or more.
        scale: The size of numbers whose rounding is in `matrix`, if it is a difference;
            by default the largest singular value.
    """
    u, s, vt = svd(matrix)
    # Rounding grows with the shorter side, and in the sums along the longer one with its
    # root; with all of its length, real directions of tall matrices would be lost.
    short, long = sorted(matrix.shape[-2:])
    tolerance = jnp.finfo(s.dtype).eps * (short + long**0.5)
    real = s > tolerance * (s[..., :1] if scale is None else scale[..., None])
    keep = real[..., None, :]
    return Singular(jnp.where(keep, u, 0), jnp.where(real, s, 0), jnp.where(keep, vt.mT, 0))


def svd(
    matrix: Float[Array, "... rows columns"], at_once: int | None = None
) -> tuple[Array, Array, Array]:
    """Compute thin singular value decompositions, on the CPU one by one.

    Args:
        matrix: One or more.
        at_once: How many to batch at most on other devices, all by default.
    """

    def decompose(x: Array) -> tuple[Array, Array, Array]:
        u, s, vt = jnp.linalg.svd(x, full_matrices=False)
        return u, s, vt

    if matrix.ndim < 3:
        return decompose(matrix)
    # On the CPU a batch waits for threads of the pool that it runs in itself: two batches at
    # a time can wait for each other for ever, as they did on two cores.
    return lax.platform_dependent(
        matrix,
        cpu=lambda x: lax.map(decompose, x),
        default=lambda x: lax.map(decompose, x, batch_size=min(at_once or len(x), len(x))),
    )


def polar(matrix: Float[Array, "... inputs outputs"]) -> Float[Array, "... inputs outputs"]:
    """Compute the orthogonal factor of the polar decomposition, zero off the range."""
    d = singular(matrix)
    return matmul(d.left, d.right.mT)


def largest(x: Array, axis: Axes) -> Array:
    """Give the largest magnitude along some axes, or one where all numbers are zero.

    Squares of numbers that are divided by it neither overflow nor vanish. The axes stay,
    with one entry.
    """
    top = jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0)
    return jnp.where(top > 0, top, 1)


def norms(x: Array, axis: Axes) -> Array:
    """Compute Euclidean norms along some axes, of numbers of any size."""
    unit = largest(x, axis)
    return jnp.squeeze(unit, axis) * jnp.sqrt(jnp.sum(jnp.abs(x / unit) ** 2, axis=axis))


def norms_over(tensors: Sequence[Inexact[Array, "tasks ..."]]) -> Float[Array, " tasks"]:
    """Compute the norm of each task's numbers in all tensors together."""
    each = [norms(widened(v).reshape(len(v), -1), 1) for v in tensors]
    return norms(jnp.stack(each), 0)


def matmul(a: Array, b: Array) -> Array:
    """Multiply matrices without rounding the factors."""
    return jnp.matmul(a, b, precision=HIGHEST)


def solve(
    definite: Float[Array, "rows rows"], right: Float[Array, "tasks rows columns"]
) -> Float[Array, "tasks rows columns"]:
    """Solve with one positive definite matrix for all tasks."""
    solved = jsl.cho_solve(jsl.cho_factor(definite), side_by_side(right))
    return apart(solved, len(right))


def side_by_side(
    blocks: Float[Array, "tasks side columns"],
) -> Float[Array, "side all"]:
    """Put the columns of all tasks next to one another."""
    return jnp.moveaxis(blocks, 0, 1).reshape(
        blocks.shape[1], blocks.shape[0] * blocks.shape[2]
    )


def apart(
    columns: Float[Array, "side all"], num_tasks: int
) -> Float[Array, "tasks side columns"]:
    """Undo `side_by_side`."""
    side, total = columns.shape
    return jnp.moveaxis(columns.reshape(side, num_tasks, total // num_tasks), 1, 0)
