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
    total = jnp.sum(columns, axis=0)
    # A last point that all others dominate: its count says how many are not ranked yet.
    worst = jnp.full((len(columns) + 1, 1), jnp.inf, columns.dtype)
    rows = jnp.concatenate([jnp.concatenate([columns, total[None]]), worst], axis=1)

    no_worse = jnp.all(rows[:-1, :, None] <= rows[:-1, None, :], axis=0)
    # Of two points of which one is no worse, that one has the lower sum, or they are equal.
    total, place = rows[-1], jnp.arange(num_points + 1)
    equal_but_first = (total[:, None] == total[None, :]) & (place[:, None] < place)
    dominates = no_worse & ((total[:, None] < total[None, :]) | equal_but_first)
    matrix = dominates.astype(jnp.float32)  # Sums of ones, exact up to 2^24.

    def unfinished(state):
        _, _, counts = state
        return counts[-1] > num_points - quota

    def peel(state):
        rank, ranks, counts = state
        front = counts == 0
        members = front.astype(matrix.dtype)
        ranks = jnp.where(front, rank, ranks)
        # Members go below zero, where no later front brings them back.
        return rank + 1, ranks, counts - members @ matrix - members

    unranked = jnp.full(num_points + 1, num_points)
    start = (jnp.array(0), unranked, jnp.sum(matrix, axis=0))
    after_last, ranks, _ = jax.lax.while_loop(unfinished, peel, start)
    return ranks[:-1], after_last - 1
