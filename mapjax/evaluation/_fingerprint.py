"""A fingerprint of arrays, the same on every device and however they are sharded."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from mapjax._types import widened


def fingerprints(trees: list[PyTree]) -> list[str | None]:
    """Hash what the arrays of each tree hold, in one pass over them.

    Every number is mixed with its place and the results are added as integers, so that
    the order of summation, and with it devices and sharding, makes no difference.

    Returns:
        For each tree 16 hexadecimal digits, or None if it has no arrays. Arrays that
        functions close over are not seen.
    """
    arrays = [[x for x in jax.tree.leaves(tree) if _is_numeric(x)] for tree in trees]
    sums = _checksums(arrays)
    return [_digest(*each) if each[0] else None for each in zip(arrays, sums, strict=True)]


def _is_numeric(x: Any) -> bool:
    if isinstance(x, jax.Array):
        return True
    return isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biufc"


def _digest(arrays: list[Any], sums: list[Array]) -> str:
    seen = [(str(x.dtype), x.shape, int(s)) for x, s in zip(arrays, sums, strict=True)]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


@jax.jit
def _checksums(trees: list[list[Any]]) -> list[list[Array]]:
    return jax.tree.map(_checksum, trees)


def _checksum(x: Array) -> Array:
    bits = _bits(x)
    place, stride = jnp.uint32(0), 1
    for axis in reversed(range(bits.ndim)):
        # One axis at a time: flattening would gather a sharded array.
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + along * np.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_mix(bits + _mix(place)), dtype=jnp.uint32)


def _mix(h: Array) -> Array:
    """Scramble 32 bits, as the finaliser of MurmurHash3 does."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _bits(x: Array) -> Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = widened(x)
    elif x.dtype.itemsize < 8:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
