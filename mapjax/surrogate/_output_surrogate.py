"""The output-space surrogate: predicted outputs, pushed through the true metric."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mapjax._algebra import HIGHEST
from mapjax._jit import jit, unchecked
from mapjax._types import ArrayLike, PRNGKey
from mapjax.surrogate._checks import check_width
from mapjax.surrogate._kernel import Kernel
from mapjax.surrogate._mixtures import Rows
from mapjax.surrogate._quadratic import Quadratic

_POINTS_AT_ONCE = 64


class OutputSurrogate(eqx.Module):
    r"""A model of every output as a Taylor series in the coefficients, behind the metrics.

    A metric such as accuracy is a step function of the coefficients $c$; the outputs $y$
    are smooth and nearly linear. They are regressed on the terms of a Taylor series at the
    base, of degree one, two or all, with a ridge penalty. As the features are the same for
    all outputs, predicted ones are one weighted sum of the sampled ones,

    $$\hat y(c) = \bar y + \sum_k w_k(c)\, (y_k - \bar y), \quad
    w(c) = (G + \lambda I)^{-1} g(c),$$

    with the kernel $k(c, c') = \sum_{n \le d} (c \cdot c')^n / n!$ of the series, centred,
    between samples ($G$) and with them ($g$). The true metric is applied to $\hat y$.
    Calling the surrogate with coefficients `[..., coefficients]` predicts scores
    `[..., tasks]`.

    Attributes:
        mean: What outputs are predicted by.
        doubt: What tells how far they may be off: of the highest degree there is to choose,
            since a series that ends early is sure of what it leaves out.
        tasks: For each task the sampled outputs, with targets and metric.
        noise: For each task, how far scores differ from predictions where the outputs'
            posterior variance is one.
        power: Scores err in proportion to the outputs' deviation to this power.
        blend: For each task, how much of `scalar` is mixed in, from 0 to 1: what leaves
            the least leave-one-out error.
        scalar: A quadratic of the scores themselves, mixed in where `blend` is above
            zero; None where there will never be one.
        left_out: Scores of every sample as predicted from all the others; NaN for the
            base and the experts, which are never left out.
        ridge: The penalty $\lambda$, the same for all tasks.
        r2: Share of the variance of the scores that is explained; 1 where there is none.
        loo_r2: The same with samples left out, base and experts excepted; NaN where there
            are not two others.
        rank: Of the centred samples' features, and one more for the mean.
        condition_number: Of $G + \lambda I$, as the root of the ratio of eigenvalues.
    """

    mean: Kernel
    doubt: Kernel
    tasks: tuple[Rows, ...]
    noise: Float[Array, " tasks"]
    power: Float[Array, ""]
    blend: Float[Array, " tasks"]
    scalar: Quadratic | None
    left_out: Float[Array, "samples tasks"]
    ridge: Float[Array, " tasks"]
    r2: Float[Array, " tasks"]
    loo_r2: Float[Array, " tasks"]
    rank: Int[Array, " tasks"]
    condition_number: Float[Array, " tasks"]

    @unchecked
    def with_noise(self, factor: float) -> "OutputSurrogate":
        """Multiply all standard deviations by a factor."""
        return eqx.tree_at(lambda s: s.noise, self, self.noise * factor)

    @property
    def differentiable(self) -> bool:
        """Whether every metric has a derivative that says something."""
        return all(task.metric.differentiable for task in self.tasks)

    @property
    def part(self) -> "OutputSurrogate | None":
        """The same of a part of the examples; None where they are too few to be parted."""
        if not any(task.can_part for task in self.tasks):
            return None
        return eqx.tree_at(lambda s: s.tasks, self, tuple(t.part() for t in self.tasks))

    @eqx.filter_jit  # as metrics may be the users' own
    def __call__(
        self, coefficients: Float[ArrayLike, "*batch coefficients"]
    ) -> Float[Array, "*batch tasks"]:
        """Predict scores, in the direction and units of the metrics.

        Args:
            coefficients: One merge per row, or a single one.

        Raises:
            ValueError: If the number of coefficients is another than that of the fit.
        """
        return self._each(self._score, coefficients)

    @jit
    def std(
        self, coefficients: Float[ArrayLike, "*batch coefficients"]
    ) -> Float[Array, "*batch tasks"]:
        r"""Predict the standard deviation of a new evaluation, in units of the scores.

        The variance $v$ of the outputs is that of a Gaussian process. A score errs in
        proportion to $\sqrt v$ where all examples err alike, to $\sqrt[4]{v}$ where single
        examples change sides, and by the same everywhere where samples are no less certain
        than the rest: $v$ is taken to the highest power that the leave-one-out errors of
        the scores do not speak against, and scaled to them.

        Args:
            coefficients: One merge per row, or a single one.

        Raises:
            ValueError: If the number of coefficients is another than that of the fit.
        """
        return self._each(lambda c: self._deviation(self.doubt.variance(c)), coefficients)

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

        With what is predicted, which is dear, they are draws of the scores.

        Args:
            coefficients: One merge per row; memory is quadratic in them.
            num_draws: How many draws, each of all merges at once.
            key: A typed key.
            noise: Whether to add what single evaluations differ by from what is fitted.
        """
        c = jnp.asarray(coefficients, self.mean.samples.dtype)
        left, floor = self.doubt.covariance(c), self.doubt.floor
        # Eigenvalues, since rounding can turn the smallest below zero.
        values, vectors = jnp.linalg.eigh(left)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0))
        # All at once, as each call of a generator is compiled for itself.
        shape = (1 + noise, num_draws, len(c), len(self.tasks))
        normal = jax.random.normal(key, shape, c.dtype)
        path = jnp.einsum("pq,dqt->dpt", root, normal[0], precision=HIGHEST)
        if noise:
            path = path + jnp.sqrt(floor) * normal[1]
        variance = jnp.sum(root**2, axis=1) + floor
        size = jax.vmap(self._deviation)(variance) / jnp.sqrt(variance)[:, None]
        return (size * path).astype(c.dtype)

    def _deviation(self, variance: Array) -> Array:
        """Turn a variance of the outputs into a standard deviation of each score."""
        return self.noise * variance ** (self.power / 2)

    def _each(self, function, coefficients: ArrayLike) -> Array:
        c = jnp.asarray(coefficients, self.mean.samples.dtype)
        n = self.mean.samples.shape[1]
        check_width(c.shape, n)
        if c.ndim == 1:
            return function(c)
        flat = c.reshape(-1, n)
        # In blocks, so that memory does not grow with the number of points.
        out = jax.lax.map(function, flat, batch_size=_POINTS_AT_ONCE)
        return out.reshape(*c.shape[:-1], len(self.tasks))

    def _score(self, c: Array) -> Array:
        weights = self.mean.weights(c)
        scores = jnp.stack([task.score(weights) for task in self.tasks])
        if self.scalar is None:
            return scores
        # Of a task that it does not help it may say anything.
        mixed = scores + self.blend * (self.scalar(c) - scores)
        return jnp.where(self.blend > 0, mixed, scores)
