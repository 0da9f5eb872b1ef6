"""Weighted ridge regression from one singular value decomposition."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

HIGHEST = lax.Precision.HIGHEST


class Factorization(eqx.Module):
    """Features made ready for any targets and any penalty.

    Attributes:
        mean: Weighted mean of every feature: the intercept is the mean of the targets.
        scale: What a centred feature is divided by; infinite where it does not vary.
        total: Sum of the weights.
        share: Weights that sum to one.
        left: Left singular vectors of the standardised features, times root `share`.
        singular: Their singular values, at most the root of the number of features.
        right: Right singular vectors, transposed.
        rank: Of the design matrix, intercept included.
        condition_number: Of the centred features, every one at unit variance.
    """

    mean: Float[Array, " features"]
    scale: Float[Array, " features"]
    total: Float[Array, ""]
    share: Float[Array, " samples"]
    left: Float[Array, "samples features"]
    singular: Float[Array, " features"]
    right: Float[Array, "features features"]
    rank: Int[Array, ""]
    condition_number: Float[Array, ""]


def factorise(
    features: Float[Array, "samples features"],
    weights: Float[Array, " samples"],
    stiffness: Float[Array, " features"],
) -> Factorization:
    """Centre, scale and decompose.

    Args:
        features: One row per sample, without an intercept.
        weights: Non-negative; zero leaves a sample out.
        stiffness: How much more than another a feature is penalised, as the root of the
            factor on its squared coefficient.
    """
    total = jnp.sum(weights)
    share = weights / jnp.where(total > 0, total, 1.0)
    mean = jnp.matmul(share, features, precision=HIGHEST)
    centred = features - mean
    variance = jnp.matmul(share, centred**2, precision=HIGHEST)
    # A feature that is constant up to rounding is dropped, not blown up to unit variance.
    varies = variance > (tolerance(features) * mean) ** 2
    scale = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), jnp.inf)

    matrix = jnp.sqrt(share)[:, None] * centred / scale
    # Rows of zeros change nothing but make `right` square: the directions that the
    # samples leave open belong to the posterior.
    missing = max(0, features.shape[1] - features.shape[0])
    matrix = jnp.pad(matrix, ((0, missing), (0, 0)))
    plain = jnp.linalg.svd(matrix, compute_uv=False)
    rank = jnp.sum(plain > plain[0] * tolerance(matrix))
    full = rank == features.shape[1]
    condition_number = jnp.where(full, plain[0] / jnp.where(full, plain[-1], 1.0), jnp.inf)

    left, singular, right = jnp.linalg.svd(matrix / stiffness, full_matrices=False)
    return Factorization(
        mean=mean,
        scale=scale * stiffness,
        total=total,
        share=share,
        left=left[: features.shape[0]],
        singular=singular,
        right=right,
        rank=rank + 1,
        condition_number=condition_number,
    )


def leave_one_out(
    factorization: Factorization,
    features: Float[Array, "samples features"],
    targets: Float[Array, " samples"],
    penalty: Float[Array, ""],
) -> tuple[
    Float[Array, " features"],
    Float[Array, " samples"],
    Float[Array, " samples"],
    Float[Array, ""],
]:
    r"""Fit, and predict every sample with itself and from a fit to all the others.

    Minimises $\sum_k s_k (y_k - \bar y - x_k \cdot \beta)^2 + \lambda |\beta|^2$ with
    standardised features $x$ and weights $s$ that sum to one. The residual of a sample
    that was left out follows from its leverage $h$: it is $(y - \hat y) / (1 - h)$. It is
    NaN where $h = 1$, as the other samples do not determine the fit there.

    Args:
        factorization: Of the features.
        features: Those that were factorised.
        targets: One per sample, finite.
        penalty: $\lambda$, non-negative.

    Returns:
        $\beta$, the fitted targets, those left out, and the degrees of freedom used.
    """
    f = factorization
    mean = jnp.vdot(f.share, targets, precision=HIGHEST)
    weighted = jnp.sqrt(f.share) * (targets - mean)
    projected = jnp.matmul(weighted, f.left, precision=HIGHEST)
    # The others are rounding, and get no say whatever the penalty.
    usable = jnp.arange(f.singular.size) < f.rank - 1
    damped = jnp.where(usable, f.singular**2 + penalty, 1.0)
    inverse = jnp.where(usable, f.singular / damped, 0.0)
    slopes = jnp.matmul(inverse * projected, f.right, precision=HIGHEST)
    fitted = mean + jnp.matmul((features - f.mean) / f.scale, slopes, precision=HIGHEST)

    hat = f.singular * inverse
    free = 1 - f.share - jnp.matmul(f.left**2, hat, precision=HIGHEST)
    defined = free > float(jnp.finfo(free.dtype).eps) ** 0.5
    residual = (targets - fitted) / jnp.where(defined, free, 1.0)
    left_out = jnp.where(defined, targets - residual, jnp.nan)
    return slopes, fitted, left_out, 1 + jnp.sum(hat)


def tolerance(matrix: Array) -> float:
    """Relative size below which a singular value is rounding."""
    return max(matrix.shape) * float(jnp.finfo(matrix.dtype).eps)
