"""The arithmetic of a streamed merge, compiled for the host."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mapjax._jit import lenient
from mapjax.transforms._elect import disjoint_mean

_ALIGNMENT = 64  # JAX reads buffers that begin at such multiples where they are


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """Make a buffer that JAX takes as an argument without a copy."""
    raw = np.empty(size * dtype.itemsize + _ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % _ALIGNMENT
    return raw[begin : begin + size * dtype.itemsize].view(dtype)


@functools.partial(jax.jit, static_argnames=("sums", "rounded"))
def linear(
    c: Array, base: Array, experts: Sequence[Array], sums: np.dtype, rounded: np.dtype
) -> tuple[Array, Array]:
    """Merge linearly; also say whether the rounded result is finite."""
    return _sum(c, base, _vectors(base, experts, sums), sums, rounded)


@functools.partial(jax.jit, static_argnames=("sums", "rounded"))
@lenient
def elected(
    c: Array,
    base: Array,
    experts: Sequence[Array],
    least: Array,
    sums: np.dtype,
    rounded: np.dtype,
) -> tuple[Array, Array]:
    """Merge what TIES leaves of the vectors."""
    vectors = jnp.stack(_vectors(base, experts, sums))
    keep = jnp.abs(vectors).astype(jnp.float32) >= least[:, None]
    edited = disjoint_mean(jnp.where(keep, vectors, 0))
    return _sum(c, base, list(edited), sums, rounded)


@functools.partial(jax.jit, static_argnames="sums")
def magnitudes(base: Array, expert: Array, sums: np.dtype) -> Array:
    """Compute how far an expert has moved, number by number, in float32."""
    return jnp.abs(expert.astype(sums) - base.astype(sums)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="sums")
def differences(
    base: Array, experts: Sequence[Array], sums: np.dtype
) -> tuple[Array, Array]:
    """Return the base and the stacked vectors, wide enough to compute with."""
    return base.astype(sums), jnp.stack(_vectors(base, experts, sums))


def _vectors(base: Array, experts: Sequence[Array], sums: np.dtype) -> list[Array]:
    return [expert.astype(sums) - base.astype(sums) for expert in experts]


def _sum(
    c: Array, base: Array, vectors: Sequence[Array], sums: np.dtype, rounded: np.dtype
) -> tuple[Array, Array]:
    total = base.astype(sums)
    for i, v in enumerate(vectors):
        total = total + c[i].astype(sums) * v
    merged = total.astype(rounded)
    return merged, jnp.isfinite(merged.astype(sums)).all()  # rounding may overflow too
