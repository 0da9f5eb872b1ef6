"""Keep the members of evosax's populations comparable while objectives are rescaled.

A strategy remembers one number per member. Under a new ideal or nadir point the same
objectives make another number, and old members would look better than they are.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def revalue(
    strategies: Any,
    members: Float[Array, "directions members objectives"],
    values: Float[Array, "directions members"],
) -> Any:
    """Replace the remembered fitness of members whose objectives are known."""
    known = ~jnp.any(jnp.isnan(members), axis=2)
    return strategies.replace(fitness=jnp.where(known, values, strategies.fitness))


def follow(
    strategies: Any,
    scores: Float[Array, "directions points objectives"],
    values: Float[Array, "directions points"],
) -> Float[Array, "directions members objectives"]:
    """Find the objectives of members among those of points, by their fitness.

    Args:
        strategies: Stacked states after a `tell`.
        scores: Objectives of all points that may have become members.
        values: Fitness of these points.

    Returns:
        Objectives, NaN for members of another fitness (a strategy that reshapes it).
    """
    same = strategies.fitness[:, :, None] == values[:, None, :]
    found = jnp.take_along_axis(scores, jnp.argmax(same, axis=2)[:, :, None], axis=1)
    return jnp.where(jnp.any(same, axis=2, keepdims=True), found, jnp.nan)
