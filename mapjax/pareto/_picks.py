"""Preference picks: the index of the one point of a set that suits a preference best."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mapjax._jit import jit
from mapjax._types import ArrayLike
from mapjax.pareto._checks import as_points, as_preference, as_vector, check_pickable
from mapjax.pareto._dominance import non_dominated


def pick_weighted_sum(
    scores: ArrayLike, preference: ArrayLike | Sequence[float]
) -> Int[Array, ""]:
    """Pick the point with the least weighted sum, `sum_i w_i f_i`.

    Only points on the convex part of a front can be picked, whatever the preference; see
    `pick_tchebycheff` for all others.

    Args:
        scores: `[points, objectives]`, minimised: negate what is maximised. Their units
            count, nothing is normalised.
        preference: Non-negative weights, one per objective; their scale does not matter.

    Returns:
        The index of the point, the first of equals. A row with a NaN is never picked; -1
        under a transform if all rows have one.

    Raises:
        ValueError: If a shape is wrong, a weight is negative, not finite, or all are 0, or
            every row has a NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> scores = jnp.array([[0.0, 1.0], [0.4, 0.4], [1.0, 0.0]])
        >>> int(pick_weighted_sum(scores, [0.5, 0.5]))
        1
    """
    points = as_points(scores)
    weights = as_preference(preference, points.shape[1])
    check_pickable(points)
    return _pick_weighted_sum(points, weights)


def pick_tchebycheff(
    scores: ArrayLike,
    preference: ArrayLike | Sequence[float],
    *,
    ideal: ArrayLike | Sequence[float] | None = None,
    augmentation: float | Float[Array, ""] = 1e-3,
) -> Int[Array, ""]:
    """Pick the point whose worst weighted distance to the ideal is least.

    Minimises `max_i w_i (f_i - z_i) + augmentation * sum_i w_i (f_i - z_i)`, z the ideal.
    Every point of a front is the pick of some preference, on concave parts too.

    Args:
        scores: `[points, objectives]`, minimised: negate what is maximised. Their units
            count, nothing is normalised.
        preference: Non-negative weights, one per objective; their scale does not matter.
        ideal: The best score per objective; None takes the best of the points.
        augmentation: Weight of the sum, 0 or more, which decides between points with the
            same worst distance; at 0, a dominated point may be picked.

    Returns:
        The index of the point, the first of equals. A row with a NaN is never picked; -1
        under a transform if all rows have one.

    Raises:
        ValueError: If a shape is wrong, a weight is negative, not finite, or all are 0,
            `ideal` is not finite, or every row has a NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> concave = jnp.array([[0.0, 1.0], [0.6, 0.6], [1.0, 0.0]])
        >>> int(pick_tchebycheff(concave, [0.5, 0.5]))
        1
        >>> int(pick_weighted_sum(concave, [0.5, 0.5]))
        0

    References:
        Steuer and Choo, *An interactive weighted Tchebycheff procedure for multiple
        objective programming*, Mathematical Programming, 1983.
    """
    points = as_points(scores)
    weights = as_preference(preference, points.shape[1])
    if ideal is not None:
        ideal = as_vector(ideal, points.shape[1], "ideal")
    check_pickable(points)
    return _pick_tchebycheff(points, weights, ideal, jnp.asarray(augmentation))


def pick_achievement(
    scores: ArrayLike,
    aspirations: ArrayLike | Sequence[float],
    *,
    augmentation: float | Float[Array, ""] = 1e-3,
) -> Int[Array, ""]:
    """Pick the best point that is at least as good as the aspirations.

    Minimises Wierzbicki's achievement function
    `max_i (f_i - q_i) / r_i + augmentation * sum_i (f_i - q_i) / r_i`, with aspirations q
    and the ranges r of the scores of the front. If points meet every aspiration, one of
    them is picked, and the maximum runs over the objectives left open, measured from their
    ideal (over all objectives if none is open). If none does, the point that misses least
    is picked, and the maximum runs over the aspirations.

    Args:
        scores: `[points, objectives]`, minimised: negate what is maximised.
        aspirations: The score that each objective should reach, one per objective, in the
            units of `scores`; plus infinity leaves an objective open. "At least 0.9 on
            task A" of an accuracy is -0.9 at A, with negated scores.
        augmentation: Weight of the sum, 0 or more, which decides between points with the
            same maximum; at 0, a dominated point may be picked.

    Returns:
        The index of the point, the first of equals. A row with a NaN is never picked; -1
        under a transform if all rows have one.

    Raises:
        ValueError: If a shape is wrong, an aspiration is NaN or minus infinity, or every
            row has a NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> accuracy = jnp.array([[0.95, 0.5], [0.91, 0.7], [0.8, 0.9]])
        >>> int(pick_achievement(-accuracy, [-0.9, jnp.inf]))
        1

    References:
        Wierzbicki, *The use of reference objectives in multiobjective optimization*, 1980.
    """
    points = as_points(scores)
    goals = as_vector(aspirations, points.shape[1], "aspirations", infinite=True)
    check_pickable(points)
    return _pick_achievement(points, goals, jnp.asarray(augmentation))


def pick_knee(scores: ArrayLike) -> Int[Array, ""]:
    """Pick the point of the front that lies deepest below the plane of its extremes.

    Scores are scaled so that the front spans [0, 1] in each objective; the distance to the
    plane `sum_i f_i = 1` through the extremes is then largest where the sum is least.
    There, a gain in one objective costs most in the others. Needs no preference.

    Args:
        scores: `[points, objectives]`, minimised: negate what is maximised.

    Returns:
        The index of the point, the first of equals. Dominated points and rows with a NaN
        are never picked; -1 under a transform if all rows have one.

    Raises:
        ValueError: If a shape is wrong or every row has a NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> int(pick_knee(jnp.array([[0.0, 1.0], [0.1, 0.2], [0.6, 0.1], [1.0, 0.0]])))
        1

    References:
        Das, *On characterizing the "knee" of the Pareto curve based on normal-boundary
        intersection*, Structural Optimization, 1999.
    """
    points = as_points(scores)
    check_pickable(points)
    return _pick_knee(points)


def _least(values: Float[Array, " points"], eligible: Bool[Array, " points"]) -> Array:
    # An infinite value must still come before a row that is not eligible.
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    order = jnp.lexsort((values, ~eligible))
    return jnp.where(jnp.any(eligible), order[0], -1)


def _present(scores: Float[Array, "points objectives"]) -> Bool[Array, " points"]:
    return ~jnp.any(jnp.isnan(scores), axis=-1)


def _weighted(
    weights: Float[Array, " objectives"], scores: Float[Array, "points objectives"]
) -> Float[Array, "points objectives"]:
    # An objective of no weight may be infinite: 0 times infinity would be NaN.
    return jnp.where(weights > 0, weights * jnp.where(weights > 0, scores, 0), 0)


def _ideal_and_range(
    scores: Float[Array, "points objectives"], counted: Bool[Array, " points"]
) -> tuple[Float[Array, " objectives"], Float[Array, " objectives"]]:
    """Give the best score and the width per objective; the width of a constant is 1."""
    used = counted[:, None] & jnp.isfinite(scores)
    ideal = jnp.min(jnp.where(used, scores, jnp.inf), axis=0)
    worst = jnp.max(jnp.where(used, scores, -jnp.inf), axis=0)
    width = worst - ideal
    # Where before divide: 0 for a constant objective, not finite without finite scores.
    usable = jnp.isfinite(width) & (width > 0)
    return jnp.where(jnp.isfinite(ideal), ideal, 0), jnp.where(usable, width, 1)


@jit
def _pick_weighted_sum(
    scores: Float[Array, "points objectives"], weights: Float[Array, " objectives"]
) -> Int[Array, ""]:
    return _least(jnp.sum(_weighted(weights, scores), axis=1), _present(scores))


@jit
def _pick_tchebycheff(
    scores: Float[Array, "points objectives"],
    weights: Float[Array, " objectives"],
    ideal: Float[Array, " objectives"] | None,
    augmentation: Float[Array, ""],
) -> Int[Array, ""]:
    present = _present(scores)
    if ideal is None:
        ideal, _ = _ideal_and_range(scores, present)
    loss = _weighted(weights, scores - ideal)
    return _least(jnp.max(loss, axis=1) + augmentation * jnp.sum(loss, axis=1), present)


@jit
def _pick_achievement(
    scores: Float[Array, "points objectives"],
    aspirations: Float[Array, " objectives"],
    augmentation: Float[Array, ""],
) -> Int[Array, ""]:
    present = _present(scores)
    ideal, width = _ideal_and_range(scores, non_dominated(scores))
    given = jnp.isfinite(aspirations)
    loss = (scores - jnp.where(given, aspirations, ideal)) / width

    feasible = present & jnp.all(scores <= aspirations, axis=1)
    met = jnp.any(feasible)
    decisive = jnp.where(met, ~given | jnp.all(given), given)
    worst = jnp.max(jnp.where(decisive, loss, -jnp.inf), axis=1)
    return _least(
        worst + augmentation * jnp.sum(loss, axis=1), jnp.where(met, feasible, present)
    )


@jit
def _pick_knee(scores: Float[Array, "points objectives"]) -> Int[Array, ""]:
    front = non_dominated(scores)
    ideal, width = _ideal_and_range(scores, front)
    return _least(jnp.sum((scores - ideal) / width, axis=1), front)
