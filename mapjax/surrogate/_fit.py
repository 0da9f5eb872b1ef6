"""The computation of a fit: closed form, fixed shapes, for use under jit and vmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._algebra import HIGHEST
from mapjax._jit import jit
from mapjax.surrogate._gradient_rows import append_gradients, gradient_features
from mapjax.surrogate._least_squares import Factorization, factorise, leave_one_out
from mapjax.surrogate._links import delta_weights, per_task
from mapjax.surrogate._quadratic import Quadratic, curvature_of, quadratic_features

PENALTIES = np.array([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0])
"""Where `ridge="auto"` looks, in descending order so that ties go to the smoother fit."""

# Second-order coefficients are penalised 50 times as much as first-order ones, so that a
# strong penalty means linear interpolation, and not a constant.
STIFFNESS = 50.0**0.5


@jit
def fit(
    coefficients: Float[Array, "samples coefficients"],
    scores: Float[Array, "samples tasks"],
    weights: Float[Array, "samples tasks"],
    lower: Float[Array, " tasks"],
    width: Float[Array, " tasks"],
    margin: Float[Array, " tasks"],
    penalties: Float[Array, " penalties"],
    jacobian: Float[Array, "samples tasks coefficients"] | None = None,
    importance: Float[Array, ""] | None = None,
    *,
    links: tuple[str, ...],
    shared: bool,
    keep_zero: bool,
    num_unknowns: int,
    num_experts: int | None = None,
) -> Quadratic:
    """Fit a quadratic per task, choosing each task's penalty by leave-one-out error.

    Nothing is checked: `fit_quadratic` does that. A task of which no score counts
    predicts NaN.

    Args:
        coefficients: One merge per row, finite.
        scores: What was measured; NaN and infinite ones count for nothing.
        weights: Non-negative; zero leaves a score out.
        lower: Lowest score of each task; 0 for identity links.
        width: Highest score minus lowest for sigmoid links, else 1.
        margin: How close a unit score comes to a bound.
        penalties: In descending order, zero last; a single one is taken as it is.
        jacobian: Derivatives of the scores, or None; NaN where there are none.
        importance: Weight of a derivative by a standardised coefficient, that of the
            score itself being one.
        links: Name of each task's link.
        shared: Whether all tasks have the same weights, link included, so that one
            factorisation serves them all.
        keep_zero: Whether a task whose samples determine the quadratic takes the last
            penalty without looking at the others.
        num_unknowns: The rank at which samples determine the quadratic.
        num_experts: Which features there are; see `quadratic_features`.
    """
    num_coefficients = coefficients.shape[1]
    finite = jnp.isfinite(scores)
    weights = jnp.where(finite, weights, 0.0)
    share = weights / jnp.sum(weights, axis=0)
    centre = jnp.sum(share * jnp.where(finite, scores, 0.0), axis=0)
    # Scores that count for nothing still pass through the links: any finite one does.
    scores = jnp.where(weights > 0, scores, centre)

    used = jnp.any(weights > 0, axis=1)
    shift, scale, z = _standardise(coefficients, used, num_experts)
    features = quadratic_features(z, num_experts)[:, None]
    stiffness = jnp.ones(features.shape[2], z.dtype).at[num_coefficients:].set(STIFFNESS)
    unit = per_task(links, "clip", (scores - lower) / width, margin)
    targets = per_task(links, "inverse", unit)
    precision = weights * delta_weights(links, unit)
    targets, precision = targets[:, None], precision[:, None]
    if jacobian is not None and importance is not None:
        # A clipped score is not where its derivative was taken.
        clipped = jnp.abs(unit - (scores - lower) / width) > 0
        slope = width * per_task(links, "slope", unit)
        derivatives = jacobian / jnp.where(clipped, jnp.nan, slope)[..., None] * scale
        slopes_of = gradient_features(z, num_experts)
        features = jnp.concatenate([features, slopes_of], axis=1)
        targets, precision = append_gradients(targets, precision, derivatives, importance)

    if shared:
        first = precision[..., 0]
        axis, factorization = None, factorise(features, first, stiffness, num_unknowns - 1)
    else:
        by_task = jax.vmap(factorise, in_axes=(None, -1, None, None))
        axis = 0
        factorization = by_task(features, precision, stiffness, num_unknowns - 1)
    tasks = jax.vmap(leave_one_out, in_axes=(axis, None, -1, None), out_axes=-1)

    def grid(penalty):
        return tasks(factorization, features, targets, penalty)

    # With derivatives, all penalties at once would take too much memory.
    each = jax.vmap(grid) if jacobian is None else partial(jax.lax.map, grid)
    slopes, fitted, left_out, freedom = each(penalties)

    def score_error(latent):
        residual = scores - lower - width * per_task(links, "forward", latent)
        return jnp.sum(weights * residual**2, axis=-2)

    error, left_out_error = score_error(fitted[:, :, 0]), score_error(left_out)
    determined = factorization.rank >= num_unknowns
    best = _choose(left_out_error, determined, keep_zero=keep_zero)
    chosen = (best, ..., jnp.arange(len(links)))

    free = jnp.sum(precision > 0, axis=(0, 1)) - freedom[chosen]
    away = targets - jnp.moveaxis(fitted[chosen], 0, -1)
    residual = jnp.sum(precision * away**2, axis=(0, 1))
    noise = jnp.where(free > 0.5, residual / jnp.where(free > 0.5, free, 1.0), jnp.nan)

    variation = jnp.sum(weights * (scores - centre) ** 2, axis=0)
    rounding = 4 * float(jnp.finfo(scores.dtype).eps) * centre
    varies = variation > rounding**2 * jnp.sum(weights, axis=0)

    def explained(error):
        return jnp.where(varies, 1 - error / jnp.where(varies, variation, 1.0), 1.0)

    size = num_coefficients, num_experts
    describe = jax.vmap(partial(_describe, size=size), in_axes=(axis, 0, 1, 0))
    return Quadratic(
        links=links,
        num_experts=num_experts,
        lower=lower,
        width=width,
        shift=shift,
        scale=scale,
        **describe(factorization, slopes[chosen], targets[:, 0], penalties[best]),
        left_out=lower + width * per_task(links, "forward", left_out[chosen].T),
        noise=jnp.sqrt(noise),
        ridge=penalties[best],
        r2=explained(error[chosen]),
        loo_r2=explained(left_out_error[chosen]),
    )


def _standardise(
    coefficients: Array, used: Array, num_experts: int | None
) -> tuple[Array, Array, Array]:
    """Return centre, scale and standardised coefficients of the used samples."""
    share = used[:, None] / jnp.sum(used)
    shift = jnp.sum(share * coefficients, axis=0)
    deviation = coefficients - shift
    scale = jnp.sqrt(jnp.sum(share * deviation**2, axis=0))
    # A coefficient that was never varied has only rounding left to divide by.
    varies = scale > 4 * float(jnp.finfo(shift.dtype).eps) * jnp.abs(shift)
    scale = jnp.where(varies, scale, 1.0)
    if num_experts is not None:  # an expert's sum is one of equal parts
        each = scale.reshape(num_experts, -1)
        common = jnp.sqrt(jnp.mean(each**2, axis=1))
        scale = jnp.repeat(common, each.shape[1])
    return shift, scale, jnp.where(varies, deviation / scale, 0.0)


def _choose(errors: Array, determined: Array, *, keep_zero: bool) -> Array:
    """Return the index of each task's penalty, given errors [penalties, tasks]."""
    if errors.shape[0] == 1:
        return jnp.zeros(errors.shape[1], int)
    errors = jnp.where(jnp.isfinite(errors), errors, jnp.inf)
    errors = errors.at[-1].set(jnp.where(determined, errors[-1], jnp.inf))
    best = jnp.argmin(errors, axis=0)
    return jnp.where(determined, errors.shape[0] - 1, best) if keep_zero else best


def _describe(
    factorization: Factorization,
    slopes: Array,
    targets: Array,
    penalty: Array,
    size: tuple[int, int | None],
) -> dict[str, Array]:
    """Turn one task's standardised slopes into the numbers of its quadratic."""
    f = factorization
    beta = slopes / f.scale
    squared = f.singular**2 + penalty
    root = jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    return dict(
        intercept=jnp.vdot(f.share[:, 0], targets, precision=HIGHEST)
        - jnp.vdot(f.mean, beta, precision=HIGHEST),
        slope=beta[: size[0]],
        curvature=curvature_of(beta[size[0] :], *size),
        feature_mean=f.mean,
        factor=f.right.T * root / f.scale[:, None] / jnp.sqrt(f.total),
        inverse_total=1 / f.total,
        rank=f.rank,
        condition_number=f.condition_number,
    )
