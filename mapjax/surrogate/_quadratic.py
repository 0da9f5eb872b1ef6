"""The quadratic surrogate: what a fit returns, and how it predicts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mapjax._algebra import HIGHEST
from mapjax._jit import jit, unchecked
from mapjax._types import ArrayLike, PRNGKey
from mapjax.surrogate._checks import check_width
from mapjax.surrogate._links import per_task


class Quadratic(eqx.Module):
    r"""A quadratic of the coefficients per task, behind a link.

    Calling it with coefficients `[..., coefficients]` predicts scores `[..., tasks]`,
    $g(e + b \cdot c + \frac12 c^\top A c)$ with each task's link $g$. The numbers are
    kept at the centre of the samples and per unit of `scale`, where they lose no digits.

    Attributes:
        links: Name of each task's link.
        num_experts: Where the Hessian is a diagonal and what the sums of each expert's
            coefficients add, how many experts there are; None for a full one.
        lower: Lowest score of each task; 0 where there is none.
        width: Highest score minus lowest; 1 unless both exist.
        shift: Centre of the sampled coefficients.
        scale: Standard deviation of the sampled coefficients; 1 for one never varied.
        intercept: Value at the centre, before the link.
        slope: Gradient at the centre, per unit of `scale`.
        curvature: Hessian, per unit of `scale` squared.
        feature_mean: Weighted mean of the quadratic features.
        factor: Root of the coefficients' posterior covariance, per unit of `noise`.
        noise: Residual standard deviation of a sample of weight one, before the link;
            NaN where no degree of freedom is left to estimate it.
        inverse_total: One over the sum of the weights.
        left_out: Scores of every sample as predicted from all the others; NaN where the
            others do not determine the prediction.
        ridge: The penalty of each task.
        r2: Share of the variance of the scores that is explained; 1 for a task whose
            scores are all the same.
        loo_r2: The same with every sample predicted from all the others; NaN where the
            others do not determine the prediction.
        rank: Rank of the design matrix, at most $(N+1)(N+2)/2$.
        condition_number: Of the design matrix with centred columns of unit variance;
            infinite below full rank.
    """

    links: tuple[str, ...] = eqx.field(static=True)
    num_experts: int | None = eqx.field(static=True)
    lower: Float[Array, " tasks"]
    width: Float[Array, " tasks"]
    shift: Float[Array, " coefficients"]
    scale: Float[Array, " coefficients"]
    intercept: Float[Array, " tasks"]
    slope: Float[Array, "tasks coefficients"]
    curvature: Float[Array, "tasks coefficients coefficients"]
    feature_mean: Float[Array, "tasks features"]
    factor: Float[Array, "tasks features features"]
    noise: Float[Array, " tasks"]
    inverse_total: Float[Array, " tasks"]
    left_out: Float[Array, "samples tasks"]
    ridge: Float[Array, " tasks"]
    r2: Float[Array, " tasks"]
    loo_r2: Float[Array, " tasks"]
    rank: Int[Array, " tasks"]
    condition_number: Float[Array, " tasks"]

    @jit
    def __call__(
        self, coefficients: Float[ArrayLike, "*batch coefficients"]
    ) -> Float[Array, "*batch tasks"]:
        """Predict scores, in the direction and units of those that were fitted.

        Args:
            coefficients: One merge per row, or a single one.

        Raises:
            ValueError: If the number of coefficients is another than that of the fit.
        """
        unit = per_task(
            self.links, "forward", self._latent(self._standardise(coefficients))
        )
        return self.lower + self.width * unit

    @jit
    def std(
        self, coefficients: Float[ArrayLike, "*batch coefficients"]
    ) -> Float[Array, "*batch tasks"]:
        r"""Predict the standard deviation of a new evaluation, in units of the scores.

        The fit is a Bayesian linear regression on features $\phi$ with weights $W$ and
        penalty $\Lambda$, so that the variance before the link is
        $s^2 (1/w + \phi^\top (\Phi^\top W \Phi + \Lambda)^{-1} \phi)$. The link is
        linearised (delta method).

        Args:
            coefficients: One merge per row, or a single one.

        Raises:
            ValueError: If the number of coefficients is another than that of the fit.
        """
        z = self._standardise(coefficients)
        spread, slope, variance = self._posterior(z)
        leverage = self.inverse_total + jnp.sum(spread**2, axis=-1)
        # slope^2 (1/w + leverage), written so that a saturated link divides by nothing.
        return self.width * self.noise * jnp.sqrt(variance + slope**2 * leverage)

    @jit
    def errors(
        self,
        coefficients: Float[ArrayLike, "points coefficients"],
        num_draws: int,
        *,
        key: PRNGKey,
        noise: bool = True,
    ) -> Float[Array, "draws points tasks"]:
        """Draw how far scores of some merges are off, jointly from the posterior.

        With what is predicted they are draws of the scores, as `std` describes them.

        Args:
            coefficients: One merge per row.
            num_draws: How many draws, each of all merges at once.
            key: A typed key.
            noise: Whether to add what single evaluations differ by from what is fitted.
        """
        z = self._standardise(coefficients)
        spread, slope, variance = self._posterior(z)
        tasks, points = len(self.links), len(z)
        features = spread.shape[-1]
        # All at once, as each call of a generator is compiled for itself.
        normal = jax.random.normal(key, (num_draws, features + 1 + points, tasks), z.dtype)
        shared, common, own = jnp.split(normal, [features, features + 1], axis=1)
        path = jnp.einsum("ptf,dft->dpt", spread, shared, precision=HIGHEST)
        path = path + jnp.sqrt(self.inverse_total) * common
        deviation = slope * path + jnp.sqrt(variance) * own * noise
        return self.width * self.noise * deviation

    @unchecked
    def with_noise(self, factor: float) -> "Quadratic":
        """Multiply all standard deviations by a factor."""
        return eqx.tree_at(lambda s: s.noise, self, self.noise * factor)

    @property
    def differentiable(self) -> bool:
        """Whether its derivative says anything: always."""
        return True

    @property
    def constant(self) -> Float[Array, " tasks"]:
        """Value at the base, before the link: $e$."""
        return self._latent(-self.shift / self.scale)

    @property
    def linear(self) -> Float[Array, "tasks coefficients"]:
        """Gradient at the base, before the link: $b$."""
        z = -self.shift / self.scale
        turn = jnp.einsum("tij,j->ti", self.curvature, z, precision=HIGHEST)
        return (self.slope + turn) / self.scale[None]

    @property
    def hessian(self) -> Float[Array, "tasks coefficients coefficients"]:
        """Hessian before the link, symmetric: $A$."""
        return self.curvature / jnp.outer(self.scale, self.scale)[None]

    def _standardise(self, coefficients: ArrayLike) -> Array:
        c = jnp.asarray(coefficients)
        check_width(c.shape, self.shift.shape[0])
        return (c - self.shift) / self.scale

    def _posterior(self, z: Array) -> tuple[Array, Array, Array]:
        """Give the roots of the leverage, the link's slope and an evaluation's variance."""
        unit = per_task(self.links, "forward", self._latent(z))
        features = quadratic_features(z, self.num_experts)
        # One matrix product for all tasks: a batch of them takes many times as long on CPU.
        factors = jnp.moveaxis(self.factor, 0, 1)
        centre = jnp.einsum("tf,tfg->tg", self.feature_mean, self.factor, precision=HIGHEST)
        spread = jnp.tensordot(features, factors, 1, precision=HIGHEST) - centre
        return (
            spread,
            per_task(self.links, "slope", unit),
            per_task(self.links, "variance", unit),
        )

    def _latent(self, z: Array) -> Array:
        bend = jnp.einsum("...i,tij->...tj", z, self.curvature, precision=HIGHEST)
        slope = self.slope + 0.5 * bend
        rise = jnp.einsum("...tj,...j->...t", slope, z, precision=HIGHEST)
        return self.intercept + rise


def num_unknowns(
    num_coefficients: int, num_experts: int | None = None, num_tied: int = 0
) -> int:
    """Count what a quadratic has to learn; see `quadratic_features`.

    Args:
        num_coefficients: How many there are.
        num_experts: Of a Hessian of low rank beside a diagonal; None for a full one.
        num_tied: How many sums of coefficients over experts are fixed, each of another
            group: on a simplex as many as there are groups.
    """
    n, m = num_coefficients, num_experts
    free = n - num_tied
    if m is None:
        return (free + 1) * (free + 2) // 2
    if not num_tied:
        return 1 + 2 * n + m * (m + 1) // 2
    # With two experts a square is that of the other, too.
    return 1 + free + (n if m > 2 else free) + m * (m - 1) // 2


def hessian_rank(num_coefficients: int, num_experts: int, num_samples: int) -> int | None:
    """Choose the Hessian: its rank beside a diagonal, or None for a full one.

    With half as many samples as a full one has unknowns, both predict new merges equally
    well (toys of 8 to 32 coefficients); with more the full one does better, with fewer the
    other has the smaller leave-one-out error and is far cheaper to fit.
    """
    n = num_coefficients
    few = n > num_experts and num_unknowns(n) > 2 * num_samples
    return num_experts if few else None


def quadratic_features(
    z: Float[Array, "*batch coefficients"], num_experts: int | None = None
) -> Float[Array, "*batch features"]:
    """List every coefficient and every product of two, without the constant.

    With a number of experts, which share the coefficients out evenly, instead every
    coefficient, its square, and every product of the experts' sums.
    """
    if num_experts is None:
        return jnp.concatenate([z, _products(z)], axis=-1)
    sums = jnp.sum(z.reshape(*z.shape[:-1], num_experts, -1), axis=-1)
    return jnp.concatenate([z, z**2, _products(sums)], axis=-1)


def curvature_of(
    products: Float[Array, " products"],
    num_coefficients: int,
    num_experts: int | None = None,
) -> Float[Array, "coefficients coefficients"]:
    """Arrange the coefficients of the products as a symmetric Hessian."""
    if num_experts is None:
        return _symmetric(products, num_coefficients)
    squares, products = jnp.split(products, [num_coefficients])
    each = num_coefficients // num_experts
    shared = jnp.repeat(_symmetric(products, num_experts), each, axis=0)
    return jnp.repeat(shared, each, axis=1) + jnp.diag(2 * squares)


def _products(z: Array) -> Array:
    i, j = np.triu_indices(z.shape[-1])
    return z[..., i] * z[..., j]


def _symmetric(products: Array, size: int) -> Array:
    i, j = np.triu_indices(size)
    upper = jnp.zeros((size, size), products.dtype).at[i, j].set(products)
    return upper + upper.T
