"""Shared type aliases; axis names are those of the vocabulary."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Key, PyTree

Params = PyTree[Any, "P"]
"""Model parameters: any pytree of arrays."""

PRNGKey = Key[Array, ""]
"""A typed key, as `jax.random.key` makes it."""

ArrayLike = Array | np.ndarray
"""What a public function takes where it computes on an array."""

Direction = Literal["maximize", "minimize"]

Rule = Callable[..., Any]
"""A merge rule: coefficients `[coefficients]` to parameters."""
