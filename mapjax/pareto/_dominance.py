"""Pareto dominance: who dominates whom, fronts, ranks and crowding."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mapjax._jit import jit
from mapjax._sizes import room_for
from mapjax._types import ArrayLike
from mapjax.pareto._checks import as_float, as_points, is_concrete

_BLOCK = 256
"""Points compared with all others at a time: bounds memory at `_BLOCK x points`."""

_MOST_PADDED = 4096
"""Points up to which a compilation costs more than some rows that take no part."""


def _dominates(
    a: Float[Array, "*a objectives"], b: Float[Array, "*b objectives"]
) -> Bool[Array, "*both"]:
    # A comparison with NaN is False, so a point with a NaN takes no part in dominance.
    return jnp.all(a <= b, axis=-1) & jnp.any(a < b, axis=-1)


def dominance_matrix(scores: ArrayLike) -> Bool[Array, "points points"]:
    """Tell which point dominates which.

    Point i dominates point j if it is nowhere worse and somewhere better. Identical points
    do not dominate each other, and a point with a NaN neither dominates nor is dominated.

    Args:
        scores: `[points, objectives]`, minimised.

    Returns:
        `matrix[i, j]` is True where i dominates j. Memory is quadratic in points.

    Raises:
        ValueError: If `scores` is not `[points, objectives]`.

    Example:
        >>> import jax.numpy as jnp
        >>> matrix = dominance_matrix(jnp.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))
        >>> matrix.astype(int).tolist()
        [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    """
    return _dominance_matrix(as_points(scores))


@jit
def _dominance_matrix(
    scores: Float[Array, "points objectives"],
) -> Bool[Array, "points points"]:
    return _dominates(scores[:, None], scores[None, :])


def non_dominated(scores: ArrayLike) -> Bool[Array, " points"]:
    """Mark the points that no other point dominates: the front.

    Args:
        scores: `[points, objectives]`, minimised.

    Returns:
        A mask. Identical points are kept together, points with a NaN are left out. Time
        is quadratic in points, memory linear.

    Raises:
        ValueError: If `scores` is not `[points, objectives]`.

    Example:
        >>> import jax.numpy as jnp
        >>> non_dominated(jnp.array([[0.0, 1.0], [1.0, 1.0], [jnp.nan, 0.0]])).tolist()
        [True, False, False]
    """
    points = as_points(scores)
    if not is_concrete(points) or len(points) > _MOST_PADDED:
        return _non_dominated(points)
    # Rows that take no part, so that few sizes are compiled.
    rows = np.asarray(points)
    missing = room_for(len(rows), _BLOCK) - len(rows)
    rows = np.pad(rows, ((0, missing), (0, 0)), constant_values=np.nan)
    return jax.device_put(np.asarray(_non_dominated(jax.device_put(rows)))[: len(points)])


@jit
def _non_dominated(scores: Float[Array, "points objectives"]) -> Bool[Array, " points"]:
    def is_dominated(point):
        return jnp.any(_dominates(scores, point))

    dominated = jax.lax.map(is_dominated, scores, batch_size=_BLOCK)
    return ~dominated & ~jnp.any(jnp.isnan(scores), axis=-1)


def probability_non_dominated(draws: ArrayLike) -> Float[Array, " points"]:
    """Estimate how probable it is that no other point dominates a point.

    Args:
        draws: `[draws, points, objectives]`, minimised: objectives of all points, drawn
            jointly from what is believed of them.

    Returns:
        The share of draws in which each point is non-dominated; NaN where a draw is.

    Raises:
        ValueError: If `draws` is not `[draws, points, objectives]`.

    Example:
        >>> import jax.numpy as jnp
        >>> draws = jnp.array([[[0.0, 1.0], [1.0, 2.0]], [[0.0, 1.0], [1.0, 0.0]]])
        >>> probability_non_dominated(draws).tolist()
        [1.0, 0.5]
    """
    if jnp.ndim(draws) != 3 or 0 in jnp.shape(draws):
        raise ValueError(
            f"`draws` has shape {jnp.shape(draws)}, but must be [draws, points, objectives]."
        )
    return _probability_non_dominated(as_float(draws))


@jit
def _probability_non_dominated(
    draws: Float[Array, "draws points objectives"],
) -> Float[Array, " points"]:
    kept = jnp.mean(jax.lax.map(_non_dominated, draws), axis=0, dtype=draws.dtype)
    return jnp.where(jnp.isnan(draws).any(axis=(0, 2)), jnp.nan, kept)


def non_dominated_ranks(scores: ArrayLike) -> Int[Array, " points"]:
    """Number the fronts: 0 is the front, 1 the front of what is left without it, ...

    Fronts are peeled off one after another from the counts of dominating points; one peel
    is a matrix-vector product with the dominance matrix.

    Args:
        scores: `[points, objectives]`, minimised.

    Returns:
        The rank of each point; a point with a NaN has the worst rank, the number of
        points. Memory is quadratic in points.

    Raises:
        ValueError: If `scores` is not `[points, objectives]`.

    Example:
        >>> import jax.numpy as jnp
        >>> non_dominated_ranks(jnp.array([[0.0, 1.0], [2.0, 2.0], [1.0, 1.0]])).tolist()
        [0, 2, 1]

    References:
        Deb, Pratap, Agarwal and Meyarivan, *A fast and elitist multiobjective genetic
        algorithm: NSGA-II*, 2002 (fast non-dominated sorting).
    """
    return _non_dominated_ranks(as_points(scores))


@jit
def _non_dominated_ranks(
    scores: Float[Array, "points objectives"],
) -> Int[Array, " points"]:
    num_points = scores.shape[0]
    # Sums of zeros and ones are exact in float32 whatever the precision of the product.
    matrix = _dominance_matrix(scores).astype(jnp.float32)

    def peel(state):
        rank, ranks, left, count = state
        front = left & (count == 0)
        ranks = jnp.where(front, rank, ranks)
        return rank + 1, ranks, left & ~front, count - front.astype(jnp.float32) @ matrix

    start = (
        jnp.array(0),
        jnp.full(num_points, num_points),
        ~jnp.any(jnp.isnan(scores), axis=-1),
        jnp.sum(matrix, axis=0),
    )
    return jax.lax.while_loop(lambda state: jnp.any(state[2]), peel, start)[1]


def crowding_distance(
    scores: ArrayLike, ranks: ArrayLike | None = None
) -> Float[Array, " points"]:
    """Measure how much room each point has between its neighbours on its front.

    Per objective, the gap between the two neighbours in sorted order, divided by the range
    of the front; summed over objectives. The ends of a front are infinitely far apart from
    the others. An objective that is constant (or infinite) on a front says nothing there.

    Args:
        scores: `[points, objectives]`.
        ranks: The front each point is on, as `non_dominated_ranks` numbers them; None
            measures all points as one front.

    Returns:
        Distances, at least 0, larger where points are sparse; 0 for a point with a NaN.

    Raises:
        ValueError: If `scores` is not `[points, objectives]` or `ranks` is not one int per
            point.

    Example:
        >>> import jax.numpy as jnp
        >>> crowding_distance(jnp.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])).tolist()
        [inf, 2.0, inf]

    References:
        Deb, Pratap, Agarwal and Meyarivan, *A fast and elitist multiobjective genetic
        algorithm: NSGA-II*, 2002 (section III-B).
    """
    points = as_points(scores)
    if ranks is None:
        ranks = jnp.zeros(points.shape[0], dtype=int)
    ranks = jnp.asarray(ranks)
    integers = jnp.issubdtype(ranks.dtype, jnp.integer)
    if ranks.shape != (points.shape[0],) or not integers:
        raise ValueError(
            f"`ranks` has shape {ranks.shape} and dtype {ranks.dtype}, but must be one int "
            f"for each of the {points.shape[0]} points; pass `non_dominated_ranks(scores)`."
        )
    return _crowding_distance(points, ranks)


@jit
def _crowding_distance(
    scores: Float[Array, "points objectives"], ranks: Int[Array, " points"]
) -> Float[Array, " points"]:
    num_points = scores.shape[0]
    missing = jnp.any(jnp.isnan(scores), axis=-1)
    ranks = jnp.where(missing, jnp.iinfo(ranks.dtype).max, ranks)

    def one_objective(values):
        order = jnp.lexsort((values, ranks))
        sorted_values, sorted_ranks = values[order], ranks[order]
        change = sorted_ranks[1:] != sorted_ranks[:-1]
        first = jnp.concatenate([jnp.array([True]), change])
        last = jnp.concatenate([change, jnp.array([True])])
        gap = jnp.roll(sorted_values, -1) - jnp.roll(sorted_values, 1)

        # Each front is one run of the sorted order: its ends are its extreme values.
        front = jnp.cumsum(first) - 1
        smallest = jnp.full(num_points, jnp.inf, values.dtype).at[front].min(sorted_values)
        largest = jnp.full(num_points, -jnp.inf, values.dtype).at[front].max(sorted_values)
        width = (largest - smallest)[front]
        # Where before divide: a constant objective has width 0, an infinite one inf or NaN.
        usable = (width > 0) & jnp.isfinite(width)
        room = jnp.where(first | last, jnp.inf, gap / jnp.where(usable, width, 1))
        return jnp.zeros_like(values).at[order].set(jnp.where(usable, room, 0))

    distance = jnp.sum(jax.vmap(one_objective, in_axes=1)(scores), axis=0)
    return jnp.where(missing, 0, distance)
