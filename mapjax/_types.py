"""Shared types: aliases, whose axis names are those of the vocabulary, and wide dtypes."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

Params = PyTree[Any, "P"]
"""Model parameters: any pytree of arrays."""

PRNGKey = Key[Array, ""]
"""A typed key, as `jax.random.key` makes it."""

ArrayLike = Array | np.ndarray
"""What a public function takes where it computes on an array."""

Direction = Literal["maximize", "minimize"]
DIRECTIONS = ("maximize", "minimize")

Rule = Callable[..., Any]
"""A merge rule: coefficients `[coefficients]` to parameters."""


def widened(x: Any) -> Any:
    """Give an array the dtype to compute in, float32 at least."""
    return x.astype(wide(x.dtype))


def wide(dtype: Any, other: Any = jnp.float32) -> np.dtype:
    """Give the dtype to compute in: float32 at least, or at least another one.

    Unlike `jnp.promote_types` it also takes floats of eight bits, which JAX does not
    promote by itself; bfloat16 holds whatever they hold.
    """
    small = [
        jnp.issubdtype(d, jnp.floating) and jnp.finfo(d).bits <= 8 for d in (dtype, other)
    ]
    if all(small):
        return jnp.dtype(dtype if dtype == other else jnp.bfloat16)
    if any(small):
        return jnp.dtype(other if small[0] else dtype)
    with jax.numpy_dtype_promotion("standard"):  # as it is asked for
        return jnp.dtype(jnp.promote_types(dtype, other))
