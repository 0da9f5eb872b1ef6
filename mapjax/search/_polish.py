"""Move points onto the front by the gradients of a differentiable objective."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mapjax._checks import check_count, read_bounds
from mapjax._result import Front
from mapjax._sizes import padded
from mapjax._types import ArrayLike
from mapjax.pareto import non_dominated
from mapjax.search._checks import (
    evaluate_all,
    read_directions,
)
from mapjax.search._compile import quick_jit
from mapjax.search._distinct import distinct_front
from mapjax.search._scalarize import smooth_tchebycheff

_FIRST_SMOOTHING = 0.3
_FIRST_DAMPING = 1e-2
_DAMPING_FACTOR = 4.0


def polish(
    objective: Callable[[Float[Array, " coefficients"]], Float[Array, " objectives"]],
    coefficients: ArrayLike,
    reference_directions: ArrayLike,
    bounds: Any = (0.0, 1.0),
    *,
    num_steps: int = 30,
    smoothing: float = 1e-3,
) -> Front:
    r"""Find the best point for each reference direction by damped Newton steps.

    Each direction $w$ minimises the smooth Tchebycheff scalarisation
    $\mu \log \sum_k \exp(w_k g_k(c) / \mu)$ of the objectives $g$, normalised by the ideal
    and the nadir point of the given points, from the best of these points. Steps are those
    of Newton's method on the coefficients that are not held at a bound, damped until they
    improve (Levenberg and Marquardt), while $\mu$ falls. All directions run as one `vmap`;
    time is that of `num_steps` Hessians each.

    Args:
        objective: From one point `[coefficients]` to its objectives, minimised; twice
            differentiable. As for `evolve`, pass a pytree of arrays to compile once.
        coefficients: Points to start from, `[points, coefficients]`, such as the front of
            `evolve`; moved into the box.
        reference_directions: Weights `[directions, objectives]`: the larger an entry, the
            smaller that objective will be.
        bounds: Lower and upper end of the box, each a number or one per coefficient.
        num_steps: At least 1.
        smoothing: The last $\mu$, above 0, in widths of the front.

    Returns:
        Distinct points of which none dominates another, of the polished and the given
        points: the front is never worse than it was.

    Raises:
        ValueError: If an argument is not as stated, or the objective does not return one
            number per objective of the directions.

    Example:
        >>> import jax.numpy as jnp
        >>> def two_corners(c):
        ...     return jnp.stack([jnp.sum(c**2), jnp.sum((c - 1) ** 2)])
        >>> start, weights = jnp.array([[0.2, 0.9], [0.8, 0.1]]), jnp.array([[0.5, 0.5]])
        >>> front = polish(two_corners, start, weights)
        >>> front.coefficients.round(2).tolist()
        [[0.5, 0.5]]

    References:
        Lin, Zhang, Yang, Liu and Zhang, *Smooth Tchebycheff scalarization for
        multi-objective optimization*, ICML 2024.
    """
    if jnp.ndim(coefficients) != 2 or 0 in jnp.shape(coefficients):
        raise ValueError(
            f"`coefficients` has shape {jnp.shape(coefficients)}, but must be [points, "
            "coefficients] with at least one of each; pass one point as `c[None]`."
        )
    if jnp.ndim(reference_directions) != 2:
        raise ValueError(
            f"`reference_directions` has shape {jnp.shape(reference_directions)}, but must "
            "be [directions, objectives]."
        )
    check_count("num_steps", num_steps, 1)
    if not smoothing > 0:
        raise ValueError(f"`smoothing` is {smoothing}, but must be above 0; try 1e-3.")
    dtype = np.dtype(jnp.result_type(float))
    directions = read_directions(reference_directions, np.shape(reference_directions)[1])
    lower, upper = read_bounds(bounds, np.shape(coefficients)[1], dtype)
    width = upper - lower
    start = padded(np.clip((np.asarray(coefficients, dtype) - lower) / width, 0, 1))
    # From the largest smoothing to the last, evenly in logarithms.
    largest = max(_FIRST_SMOOTHING, smoothing)
    ratio = (smoothing / largest) ** (1 / max(num_steps - 1, 1))
    unit, scores = jax.device_get(
        quick_jit(_polish)(
            objective,
            start,
            directions.astype(dtype),
            lower,
            width,
            np.asarray([largest, ratio], dtype),
            np.asarray(num_steps),
        )
    )
    return distinct_front(lower + unit * width, scores)


def _polish(
    objective: Callable[[Array], Array],
    start: Float[ArrayLike, "points coefficients"],
    directions: Float[ArrayLike, "directions objectives"],
    lower: Float[ArrayLike, " coefficients"],
    width: Float[ArrayLike, " coefficients"],
    schedule: Float[ArrayLike, " two"],
    num_steps: Int[ArrayLike, ""],
) -> tuple[Float[Array, "all coefficients"], Float[Array, "all objectives"]]:
    """Return the given and the polished points, in the unit box, and their objectives.

    The smoothing begins at the first number of the schedule, and each step multiplies it by
    the second. The number of steps is an array, so that any is compiled once.
    """
    # Which they are, but where JAX compiles nothing.
    start, schedule = jnp.asarray(start), jnp.asarray(schedule)

    def evaluate(points):
        inside = lower[None] + points * width[None]
        return evaluate_all(objective, inside, directions.shape[1])

    scores = evaluate(start).astype(start.dtype)
    finite = jnp.all(jnp.isfinite(scores), axis=1, keepdims=True)
    front = non_dominated(scores)[:, None] & finite
    ideal = jnp.min(jnp.where(front, scores, jnp.inf), axis=0)
    nadir = jnp.max(jnp.where(front, scores, -jnp.inf), axis=0)
    # Where before divide: one point, or a constant objective, has no width.
    scale = jnp.where(nadir > ideal, nadir - ideal, 1)

    def value(point, direction, smoothing):
        normalised = (objective(lower + point * width) - ideal) / scale
        return smooth_tchebycheff(normalised, direction, smoothing)

    def rise(point, direction, smoothing):
        now, slope = jax.value_and_grad(value)(point, direction, smoothing)
        return slope, (now, slope)

    def minimise(direction):
        normalised = (scores - ideal[None]) / scale[None]
        values = smooth_tchebycheff(normalised, direction, schedule[0])
        first = start[jnp.argmin(jnp.where(finite[:, 0], values, jnp.inf))]

        def step(_, carry):
            point, damping, smoothing = carry
            bend, (now, slope) = jax.jacfwd(rise, has_aux=True)(point, direction, smoothing)
            candidate = jnp.clip(point - _newton(point, slope, bend, damping), 0, 1)
            # Comparisons with NaN are False: a step to nowhere is not taken.
            better = value(candidate, direction, smoothing) <= now
            point = jnp.where(better, candidate, point)
            factor = jnp.where(better, 1 / _DAMPING_FACTOR, _DAMPING_FACTOR)
            return point, damping * factor, smoothing * schedule[1]

        damping = jnp.asarray(_FIRST_DAMPING, start.dtype)
        carry = (first, damping, schedule[0])
        return jax.lax.fori_loop(0, num_steps, step, carry)[0]

    polished = jax.vmap(minimise)(jnp.asarray(directions))
    return (
        jnp.concatenate([start, polished]),
        jnp.concatenate([scores, evaluate(polished).astype(start.dtype)]),
    )


def _newton(
    point: Float[Array, " coefficients"],
    slope: Float[Array, " coefficients"],
    bend: Float[Array, "coefficients coefficients"],
    damping: Float[Array, ""],
) -> Float[Array, " coefficients"]:
    """Solve for a damped Newton step of the coefficients that are free to move."""
    held = ((point <= 0) & (slope > 0)) | ((point >= 1) & (slope < 0))
    size = jnp.mean(jnp.abs(jnp.diagonal(bend)))
    identity = jnp.eye(len(point), dtype=point.dtype)
    bend = jnp.where(held[:, None] | held[None, :], 0, bend)
    # Above zero, for an objective that is linear.
    bend = bend + (damping * size + 1e-6) * identity + jnp.diag(held.astype(bend.dtype))
    return jnp.linalg.solve(bend, jnp.where(held, 0, slope))
