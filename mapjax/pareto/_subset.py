"""A few points that stand for a whole set."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mapjax._checks import check_count
from mapjax._jit import jit
from mapjax._sizes import USUAL_POINTS, room_for
from mapjax._types import ArrayLike
from mapjax.pareto._checks import as_points


def spread_subset(scores: ArrayLike, num_points: int) -> Int[Array, " subset"]:
    """Choose points that are far apart, the best of each objective first.

    Farthest-point selection on objectives scaled to [0, 1]: a 2-approximation of the
    subset that covers the set best. Of points that are best to a thousandth of the range, the
    one with the least sum is taken. How many there are depends on the scores, so this is
    not for use under a transform.

    Args:
        scores: `[points, objectives]`, minimised.
        num_points: How many points to choose, at least 1.

    Returns:
        Distinct indices, as many as asked for or as there are finite points.

    Raises:
        ValueError: If `num_points` is not an int of at least 1, or `scores` is not
            `[points, objectives]`.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.linspace(0.0, 1.0, 5)
        >>> spread_subset(jnp.stack([x, 1 - x], axis=1), 3)
        Array([0, 4, 2], dtype=int32)

    References:
        Gonzalez, *Clustering to minimize the maximum intercluster distance*, Theoretical
        Computer Science 38, 1985.
    """
    check_count("num_points", num_points, 1)
    points = np.asarray(as_points(scores))
    complete = np.isfinite(points).all(axis=1)
    count = min(num_points, int(np.sum(complete)))
    # Rows that count for nothing, so that few sizes are compiled.
    missing = room_for(len(points), USUAL_POINTS) - len(points)
    points = np.pad(points, ((0, missing), (0, 0)))
    complete = np.pad(complete, (0, missing))
    # As many as were asked for, and the first of them do not depend on how many.
    most = min(num_points, len(points))
    chosen = _farthest(jnp.asarray(points), jnp.asarray(complete), most)
    return jax.device_put(np.asarray(chosen)[:count])


@jit
def _farthest(
    points: Float[Array, "points objectives"], complete: Bool[Array, " points"], count: int
) -> Int[Array, " subset"]:
    # Others are set to the best point's place: never chosen, and no NaN in the arithmetic.
    low = jnp.min(points, axis=0, where=complete[:, None], initial=jnp.inf)
    high = jnp.max(points, axis=0, where=complete[:, None], initial=-jnp.inf)
    width = jnp.where(high > low, high - low, 1.0)  # a constant objective separates nothing
    unit = (jnp.where(complete[:, None], points, low) - low) / width

    def choose(state, step):
        distance, taken = state
        # The best of each objective first, if it is not chosen yet; ties go by the sum.
        objective = jnp.minimum(step, points.shape[1] - 1)
        merit = unit[:, objective] + 1e-3 * unit.sum(axis=1)
        best = jnp.argmin(jnp.where(complete, merit, jnp.inf))
        farthest = jnp.argmax(jnp.where(complete & ~taken, distance, -1.0))
        index = jnp.where((step < points.shape[1]) & ~taken[best], best, farthest)
        reach = jnp.sum((unit - unit[index]) ** 2, axis=1)
        return (jnp.minimum(distance, reach), taken.at[index].set(True)), index

    start = (jnp.full(len(points), jnp.inf, unit.dtype), jnp.zeros(len(points), bool))
    return jax.lax.scan(choose, start, jnp.arange(count))[1]
