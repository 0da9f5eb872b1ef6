"""One number for several objectives, given a direction."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._jit import lenient

LEAST_WEIGHT = 1e-3
"""Weights below this let weakly dominated points win; a front's ends need them small."""

_PENALTY = 5.0


def max_product(
    rows: Float[Array, "rows objectives"], columns: Float[Array, "objectives columns"]
) -> Float[Array, "rows columns"]:
    """Multiply matrices with a maximum for the sum: scores with weights, either way round.

    Without NaN. Let the columns be the longer side: they are what XLA vectorises over.
    """
    parts = (1,) * len(columns)
    pairs = zip(jax.lax.split(rows, parts, 1), jax.lax.split(columns, parts), strict=True)
    largest, *products = (column * row for column, row in pairs)
    for product in products:
        # A maximum would look for NaN, which takes three times as long.
        largest = jnp.where(largest > product, largest, product)
    return largest


def tchebycheff(
    scores: Float[Array, "*points objectives"], direction: Float[Array, " objectives"]
) -> Float[Array, "*points"]:
    """Take the largest objective, weighted: every Pareto point is best for some weights."""
    return jnp.max(jnp.maximum(direction, LEAST_WEIGHT) * scores, axis=-1)


@lenient
def smooth_tchebycheff(
    scores: Float[Array, "*points objectives"],
    direction: Float[Array, " objectives"],
    smoothing: float | Float[Array, ""] = 0.01,
) -> Float[Array, "*points"]:
    r"""Smooth the largest weighted objective: $\mu \log \sum_k \exp(w_k f_k / \mu)$.

    References:
        Lin, Zhang, Yang, Liu and Zhang, *Smooth Tchebycheff scalarization for
        multi-objective optimization*, ICML 2024.
    """
    weighted = jnp.maximum(direction, LEAST_WEIGHT) * scores
    return smoothing * jax.nn.logsumexp(weighted / smoothing, axis=-1)


def penalty_boundary_intersection(
    scores: Float[Array, "*points objectives"], direction: Float[Array, " objectives"]
) -> Float[Array, "*points"]:
    """Add the distance along the direction and, as a penalty, that away from it.

    References:
        Zhang and Li, *MOEA/D*, IEEE Transactions on Evolutionary Computation, 2007.
    """
    unit = direction / jnp.linalg.norm(direction)
    along = jnp.sum(scores * unit, axis=-1)
    away = jnp.linalg.norm(scores - along[..., None] * unit, axis=-1)
    return along + _PENALTY * away


SCALARIZATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "tchebycheff": tchebycheff,
    "smooth_tchebycheff": smooth_tchebycheff,
    "pbi": penalty_boundary_intersection,
}
