"""Extreme points and the width of the front, for NSGA-III."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mapjax.search._scalarize import max_product

_OFF_AXIS = 1e6
_ON_AXIS = 1e-3
_LEAST_SHARE = 1e-6
_ROUNDING = 4
_LEAST_PIVOT = 1e-6


def extreme_points(
    columns: Float[Array, "objectives points"],
    front: Bool[Array, " points"],
    ideal: Float[Array, " objectives"],
    worst: Float[Array, " objectives"],
    previous: Float[Array, "objectives objectives"],
) -> Float[Array, "objectives objectives"]:
    """Find, per axis, the point of the front that lies nearest to it.

    Nearest by the achievement scalarising function max_k f_k / w_k, with weight 1 on the
    axis and 1e-6 off it, of objectives as shares of the front.

    Args:
        columns: Objectives of all points.
        front: Which points are on the front.
        ideal: The ideal point.
        worst: The largest value of each objective on the front.
        previous: Extreme points of the generations before, which may win again.

    Returns:
        One extreme point per column, infinite if there was none.
    """
    points = jnp.concatenate([previous, jnp.where(front, columns, jnp.inf)], axis=1)
    # Where before divide: an objective that is constant on the front.
    width = jnp.where(worst > ideal, worst - ideal, 1)
    share = (points - ideal[:, None]) / width[:, None]
    # Times a million, the last digits of an objective would decide alone.
    share = jnp.where(share < _ON_AXIS, 0, share)
    weights = jnp.where(jnp.eye(len(columns), dtype=bool), 1, _OFF_AXIS)
    distance = max_product(weights.astype(columns.dtype), share)
    return points[:, jnp.argmin(distance, axis=1)]


def front_width(
    extreme: Float[Array, "objectives objectives"],
    ideal: Float[Array, " objectives"],
    worst: Float[Array, " objectives"],
) -> Float[Array, " objectives"]:
    """Measure the front along each axis: the nadir point minus the ideal point.

    The nadir point is where the hyperplane through the extreme points cuts the axes, but
    nowhere beyond the worst of the front. If there is no such plane, or it cuts an axis at
    or below the ideal point, then the nadir point is the worst of the front.

    Args:
        extreme: Extreme points, one per column.
        ideal: The ideal point.
        worst: The largest value of each objective on the front.

    Returns:
        Widths above zero; 1 for an objective that is constant on the front.
    """
    flat = worst - ideal
    size = jnp.maximum(jnp.abs(worst), jnp.abs(ideal))
    # Comparisons with NaN are False.
    varies = flat > _ROUNDING * jnp.finfo(flat.dtype).eps * size
    flat = jnp.where(varies, flat, 1)
    # In shares of the front, so that no unit is too small for a pivot.
    share = jnp.where(varies[:, None], (extreme - ideal[:, None]) / flat[:, None], 0)
    plane = _solve_ones(share.T)
    # The cut lies at 1 / plane.
    sound = jnp.all((plane > 0) & (plane * _LEAST_SHARE < 1))
    return jnp.where(sound, jnp.minimum(1 / plane, 1), 1) * flat


def _solve_ones(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    """Solve `matrix @ x = 1` by Gauss-Jordan steps; zeros in x where it is singular.

    Extreme points lie near their own axes, so that the diagonal makes good pivots; an LU
    decomposition takes much longer to compile.
    """
    num = len(matrix)
    least = _LEAST_PIVOT * jnp.max(jnp.abs(matrix))

    def eliminate(step, system):
        row = jax.lax.dynamic_index_in_dim(system, step)
        column = jax.lax.dynamic_index_in_dim(system, step, axis=1)
        pivot = jax.lax.dynamic_index_in_dim(column, step)
        found = jnp.abs(pivot) > least
        row = jnp.where(found, row / jnp.where(found, pivot, 1), 0)
        cleared = system - column * row
        return jnp.where((jnp.arange(num) == step)[:, None], row, cleared)

    system = jnp.concatenate([matrix, jnp.ones((num, 1), matrix.dtype)], axis=1)
    return jax.lax.fori_loop(0, num, eliminate, system)[:, -1]
