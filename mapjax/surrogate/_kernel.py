"""The Gaussian process that outputs are predicted by, and how it follows from samples."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._algebra import matmul

_LEAST_KNOWN = 0.01
"""Eigenvalue, per penalty, of a direction that samples say anything about."""


class Kernel(eqx.Module):
    r"""A Gaussian process of the outputs, whatever they are, given where they were sampled.

    Its kernel is $k(c, c') = \sum_{n \le d} (c \cdot c')^n / n!$, centred between samples
    ($G$) and with them ($g$): that of a ridge regression on the terms of a Taylor series.

    Attributes:
        degree: Of the series: 1, 2 or infinity.
        unit: What scalar products are multiplied by: one over the number of groups of
            tensors with coefficients of their own, each a part of the task vectors.
        samples: The sampled coefficients, with rows of zeros up to a capacity.
        share: One over the number of samples, and 0 for rows that fill up.
        vectors: Eigenvectors of $G$, one per column, with zeros for those rows.
        values: Its eigenvalues.
        gram_mean: Mean kernel of each sample with all samples.
        gram_total: Mean of all kernels.
        ridge: The penalty $\lambda$.
    """

    degree: Float[Array, ""]
    unit: Float[Array, ""]
    samples: Float[Array, "rows coefficients"]
    share: Float[Array, " rows"]
    vectors: Float[Array, "rows rows"]
    values: Float[Array, " rows"]
    gram_mean: Float[Array, " rows"]
    gram_total: Float[Array, ""]
    ridge: Float[Array, ""]

    def weights(self, c: Float[Array, " coefficients"]) -> Float[Array, " rows"]:
        """Give the weight of every sample in the prediction at one merge; they sum to 1."""
        # By eigenvectors, as the inverse of G + ridge would magnify rounding by 1 / ridge.
        parts = matmul(self._centred(c), self.vectors) / (self.values + self.ridge)
        deviation = matmul(self.vectors, parts)
        return deviation + self.share * (1 - jnp.sum(deviation))

    def variance(self, c: Float[Array, " coefficients"]) -> Float[Array, ""]:
        """Give the variance of a new evaluation of one merge."""
        return jnp.maximum(self.covariance(c[None])[0, 0], 0) + self.floor

    def covariance(
        self, c: Float[Array, "points coefficients"]
    ) -> Float[Array, "points points"]:
        """Give the covariance of several merges, without what single evaluations add."""
        g = jax.vmap(self._centred)(c)
        mean = matmul(jax.vmap(self._with_samples)(c), self.share)
        prior = _taylor_kernel(self.unit * matmul(c, c.T), self.degree)
        prior = prior - mean - mean[:, None] + self.gram_total
        # Features in the directions that samples lie in, of unit prior variance. What the
        # penalty leaves open there is a sum; by the inverse of G + ridge it would be a
        # difference of numbers that are one over the penalty as large.
        known = self.values > _LEAST_KNOWN * self.ridge
        values = jnp.where(known, self.values, 1)
        features = jnp.where(known, matmul(g, self.vectors) / jnp.sqrt(values), 0)
        left = features * self.ridge / (values + self.ridge)
        return prior - matmul(features, features.T) + matmul(left, features.T)

    @property
    def floor(self) -> Float[Array, ""]:
        """Variance of an evaluation that the series leaves open, and of the mean."""
        return self.ridge * (1 + jnp.max(self.share))

    def _with_samples(self, c: Array) -> Array:
        return _taylor_kernel(self.unit * matmul(self.samples, c), self.degree)

    def _centred(self, c: Array) -> Array:
        kernel = self._with_samples(c)
        return kernel - matmul(self.share, kernel) - self.gram_mean + self.gram_total


class Gram(NamedTuple):
    """The samples' kernels among each other, centred, with their eigenvalues.

    All of a few samples: on the host, in double precision, with nothing to compile.
    """

    samples: np.ndarray
    unit: float
    degree: Any
    mean: np.ndarray
    total: float
    vectors: np.ndarray
    values: np.ndarray

    @property
    def rank(self) -> int:
        """Rank of the design matrix, intercept included."""
        threshold = self.values.max() * len(self.values) * np.finfo(float).eps
        return 1 + int(np.sum(self.values > threshold))

    def hat(self, ridge: float) -> np.ndarray:
        """Give the matrix from sampled to fitted outputs."""
        share = self.values / (self.values + ridge)
        return 1 / len(self.values) + (self.vectors * share) @ self.vectors.T

    def left_out(self, ridge: float) -> np.ndarray:
        """Give the matrix from sampled outputs to those predicted without each sample.

        A row is NaN where the other samples do not determine the prediction.
        """
        hat = self.hat(ridge)
        free = 1 - np.diag(hat)
        np.fill_diagonal(hat, 0.0)
        return hat / np.where(free > 1e-9, free, np.nan)[:, None]

    def left_out_variance(self, ridge: float) -> np.ndarray:
        """Give the variance of each sample as predicted from the others, noise included."""
        return ridge / np.maximum(1 - np.diag(self.hat(ridge)), 1e-12)

    def kernel(self, ridge: float, rows: int, dtype: Any) -> Kernel:
        """Make the process, with room for more samples.

        Rows of zeros stand for those: processes of one size share what was compiled.
        """
        count = len(self.values)

        def put(value: Any, *grows: bool) -> Array:
            x = np.asarray(value, dtype)
            if grows:
                x = np.pad(x, [(0, rows - count if one else 0) for one in grows])
            return jax.device_put(x)

        return Kernel(
            degree=put(self.degree),
            unit=put(self.unit),
            samples=put(self.samples, True, False),
            share=put(np.full(count, 1 / count), True),
            vectors=put(self.vectors, True, True),
            values=put(self.values, True),
            gram_mean=put(self.mean, True),
            gram_total=put(self.total),
            ridge=put(ridge),
        )


def make_gram(c: np.ndarray, unit: float, degree: Any) -> Gram:
    """Compute the kernels of samples `[samples, coefficients]` among each other."""
    x = unit * c @ c.T
    kernels = _taylor_kernel(x, degree, np)
    mean, total = kernels.mean(axis=0), kernels.mean()
    values, vectors = np.linalg.eigh(kernels - mean - mean[:, None] + total)
    return Gram(c, unit, degree, mean, total, vectors, np.maximum(values, 0.0))


def _taylor_kernel(x: Any, degree: Any, xp: Any = jnp) -> Any:
    r"""Sum the terms $x^n / n!$ of a Taylor series from the first to the given degree.

    Args:
        x: Scalar products of coefficients.
        degree: 1, 2 or infinity; an array, so that one compilation serves all of them.
        xp: NumPy, for double precision on the host, or `jax.numpy`.
    """
    quadratic = x + 0.5 * x**2
    return xp.where(degree == 1, x, xp.where(degree == 2, quadratic, xp.expm1(x)))
