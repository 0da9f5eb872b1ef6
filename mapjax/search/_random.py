"""Random words for evolution: a counter hashed with the bits of a key."""

from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from mapjax._types import PRNGKey


def random_words(
    key: PRNGKey, shape: tuple[int, ...], num: int, *, stream: int = 0
) -> list[UInt32[Array, "..."]]:
    """Draw `num` arrays of 32 random bits per entry.

    Threefry takes ten nanoseconds a number on a CPU and a quarter of a second to compile,
    more than the rest of the search; variation does not need numbers of that quality.

    Args:
        key: Of any kind.
        shape: Of each array.
        num: How many arrays.
        stream: Different streams of the same key have nothing in common.
    """
    seed = jnp.uint32(stream)
    for word in jax.random.key_data(key).ravel():
        seed = _mix(seed + word + jnp.uint32(0x9E3779B9))
    size = prod(shape)
    counter = jax.lax.iota(jnp.uint32, size).reshape(shape)
    return [_mix((counter + jnp.uint32(i * size)) ^ seed) for i in range(num)]


def uniform(words: UInt32[Array, "*shape"], dtype) -> Float[Array, "*shape"]:
    """Turn the upper 24 bits of each word into a number inside (0, 1)."""
    return ((words >> 8).astype(dtype) + 0.5) * 2.0**-24


def _mix(word: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    # "lowbias32" of https://github.com/skeeto/hash-prospector (public domain).
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)
