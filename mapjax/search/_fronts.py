"""Fronts peeled off until enough points are on them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def leading_fronts(
    columns: Float[Array, "objectives points"], quota: int
) -> tuple[Int[Array, " points"], Int[Array, ""]]:
    """Number the fronts from 0 until `quota` points are on them.

    Unlike `mapjax.pareto.non_dominated_ranks`, which ranks every point, this stops early,
    and of several identical points the first dominates the others: copies should not fill
    a population.

    Args:
        columns: Minimised; without NaN.
        quota: At most the number of points.

    Returns:
        The front of each point, or the number of points if it was not reached; and the
        last front that was.
    """
    num_points = columns.shape[1]
    # Of two points of which one is no worse, that one has the lower sum, or they are equal.
    total, place = jnp.sum(columns, axis=0), jnp.arange(num_points)
    equal_but_first = (total[:, None] == total) & (place[:, None] < place)
    dominates = (total[:, None] < total) | equal_but_first
    for row in jax.lax.split(columns, (1,) * len(columns)):
        dominates &= row >= row.T
    matrix = jnp.where(dominates, 1.0, 0.0)  # Sums of ones are exact.

    def unfinished(state):
        _, _, left = state
        return jnp.sum(left) > num_points - quota

    def peel(state):
        rank, ranks, left = state
        front = (left > 0) & (left @ matrix == 0)
        return rank + 1, jnp.where(front, rank, ranks), jnp.where(front, 0, left)

    unranked = jnp.full(num_points, num_points)
    start = (jnp.array(0), unranked, jnp.ones(num_points, matrix.dtype))
    after_last, ranks, _ = jax.lax.while_loop(unfinished, peel, start)
    return ranks, after_last - 1
