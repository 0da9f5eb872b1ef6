"""Derivatives as rows of the least squares that scores are fitted by."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax.surrogate._quadratic import quadratic_features


def gradient_features(
    z: Float[Array, "samples coefficients"], num_experts: int | None = None
) -> Float[Array, "samples coefficients features"]:
    """Differentiate the quadratic features by each coefficient."""
    features = partial(quadratic_features, num_experts=num_experts)
    return jnp.swapaxes(jax.vmap(jax.jacfwd(features))(z), 1, 2)


def append_gradients(
    targets: Float[Array, "samples 1 tasks"],
    precision: Float[Array, "samples 1 tasks"],
    derivatives: Float[Array, "samples tasks coefficients"],
    importance: Float[Array, ""],
) -> tuple[Float[Array, "samples rows tasks"], Float[Array, "samples rows tasks"]]:
    r"""Give every sample one more row for each coefficient.

    A derivative is linked by the chain rule, and its variance follows from that of the
    score by the same factor, $1 / g'^2$ (delta method): both rows of a sample have one
    precision, up to `importance`.

    Args:
        targets: Linked scores.
        precision: Inverse variance of each, zero to leave it out.
        derivatives: Of the linked scores by each coefficient, per unit of the features'
            scale. A sample and task with one that is not finite has none.
        importance: Precision of a derivative in units of that of its score.
    """
    known = jnp.isfinite(derivatives).all(axis=-1, keepdims=True)
    rows = jnp.swapaxes(jnp.where(known, derivatives, 0.0), 1, 2)
    counts = jnp.swapaxes(jnp.broadcast_to(known, derivatives.shape), 1, 2)
    return (
        jnp.concatenate([targets, rows], axis=1),
        jnp.concatenate([precision, importance * precision * counts], axis=1),
    )


def num_determined(
    num_values: np.ndarray, num_gradients: np.ndarray, num_coefficients: int
) -> np.ndarray:
    """Count the unknowns of a quadratic that samples in general position determine.

    The first gradients say $N + 1$, $N$, $N - 1$, ... new things with their values: for
    any quadratic the difference of two values is the mean of the slopes between them.
    """
    n = num_coefficients
    m = np.minimum(num_gradients, n + 1)
    told = m * (n + 1) - m * (m - 1) // 2 + num_values - num_gradients
    return np.minimum(told, (n + 1) * (n + 2) // 2)
