"""Typed keys, as `jax.random.key` makes them, and NumPy's randomness from one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_key(key: Any) -> None:
    """Refuse what is not one typed key.

    Raises:
        ValueError: If it is a number, of the old kind, or several keys.
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.ndim:
        raise ValueError(
            f"`key` is {key!r}, but must be one typed key: pass `key=jax.random.key(0)`, not a "
            "number and not `jax.random.PRNGKey`."
        )


def generator(key: Any) -> np.random.Generator:
    """Draw on the host, where nothing has to be compiled.

    Raises:
        ValueError: If `key` is not one typed key.
    """
    check_key(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
