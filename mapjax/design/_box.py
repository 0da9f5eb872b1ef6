"""What every design shares: the box it stays in and the randomness it draws."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import check_count, read_bounds
from mapjax._types import ArrayLike

Bounds = Sequence[Any] | ArrayLike
"""Lower and upper end, each a number or one per coefficient."""


def read_box(
    num_points: int, num_coefficients: int, bounds: Any, *, simplex: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the box, one per coefficient, or say what is wrong."""
    check_count("num_points", num_points, 1)
    check_count("num_coefficients", num_coefficients, 1)
    return read_bounds(bounds, num_coefficients, np.float64, simplex=simplex)


def as_points(points: np.ndarray) -> Float[Array, "points coefficients"]:
    """Hand points out in JAX's default precision."""
    return jnp.asarray(points, jnp.zeros(()).dtype)


def distinct(points: np.ndarray) -> np.ndarray:
    """Drop repeated rows, the first of each stays where it was."""
    _, first = np.unique(np.asarray(points, np.float32), axis=0, return_index=True)
    return points[np.sort(first)]


def quadratic_basis(points: np.ndarray) -> np.ndarray:
    """Evaluate 1, every coefficient and every product of two."""
    i, j = np.triu_indices(points.shape[1])
    ones = np.ones((len(points), 1))
    return np.concatenate([ones, points, points[:, i] * points[:, j]], axis=1)


def from_base(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the point of the box nearest to the base, and how far the box goes on from there.

    Upwards, or where there is no room above, downwards: then the number is negative.
    """
    nearest = np.clip(0.0, lower, upper)
    return nearest, np.where(nearest < upper, upper, lower) - nearest
