"""Typed keys, as `jax.random.key` makes them, and NumPy's randomness from one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mapjax._types import PRNGKey


def is_typed_key(key: Any) -> bool:
    """Tell one typed key from a number, an old-style key and several keys."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return typed and not key.ndim


def generator(key: PRNGKey) -> np.random.Generator:
    """Draw on the host, where nothing has to be compiled."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
