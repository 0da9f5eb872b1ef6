"""The evaluations that every user already has: the base and the experts."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import check_count, check_shares
from mapjax.design._box import distinct


def corners(
    num_coefficients: int, num_experts: int | None = None
) -> Float[Array, "points coefficients"]:
    """List the base (zeros) and then every expert (ones in its coefficients).

    Args:
        num_coefficients: How many there are, at least 1.
        num_experts: How many experts share them out, each a run of as many; by default
            each coefficient is an expert's only one.

    Returns:
        One more row than there are experts.

    Raises:
        ValueError: If there are no coefficients, or the experts cannot share them evenly.

    Example:
        >>> corners(2).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        >>> corners(4, num_experts=2).tolist()
        [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    return jnp.asarray(_corners(num_coefficients, num_experts), jnp.zeros(()).dtype)


def starting_points(num_coefficients: int, num_experts: int | None = None) -> np.ndarray:
    """List the base, the experts and the uniform merge (which may be an expert itself)."""
    first = _corners(num_coefficients, num_experts)
    uniform = np.full((1, num_coefficients), 1 / (len(first) - 1))
    return distinct(np.concatenate([first, uniform]))


def _corners(num_coefficients: int, num_experts: int | None) -> np.ndarray:
    n = num_coefficients if num_experts is None else num_experts
    check_count("num_coefficients", num_coefficients, 1)
    check_shares(n, num_coefficients)
    return np.repeat(np.eye(n + 1, n, k=-1), num_coefficients // n, axis=1)
