"""The evaluations that every user already has: the base and the experts."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax.design._box import distinct


def corners(num_coefficients: int) -> Float[Array, "points coefficients"]:
    """List the base (zeros) and then every expert (one-hot).

    Args:
        num_coefficients: How many experts there are, at least 1.

    Returns:
        One more row than there are coefficients.

    Raises:
        ValueError: If there are no coefficients.

    Example:
        >>> corners(2).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    if num_coefficients < 1:
        raise ValueError(f"`num_coefficients` is {num_coefficients}, expected at least 1.")
    return jnp.eye(num_coefficients + 1, num_coefficients, k=-1)


def starting_points(num_coefficients: int) -> np.ndarray:
    """List the base, the experts and the uniform merge (which may be an expert itself)."""
    n = num_coefficients
    return distinct(np.concatenate([np.eye(n + 1, n, k=-1), np.full((1, n), 1 / n)]))
