"""Links between scores and the quadratic: identity, sigmoid and softplus."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

UnitScores = Float[Array, "*batch tasks"]


class Link(NamedTuple):
    """A link on unit scores: shifted to start at 0 and, if bounded twice, scaled to 1.

    Attributes:
        forward: From the quadratic's value to the unit score.
        inverse: The other way, finite on what `clip` returns.
        slope: Derivative of `forward`, as a function of the unit score.
        variance: Sampling variance of a unit score, up to a factor.
        clip: Unit scores and a margin to unit scores at which `inverse` is finite.
    """

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    variance: Callable[[Array], Array]
    clip: Callable[[Array, Array], Array]


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1.0)


LINKS = {
    "identity": Link(
        forward=lambda x: x,
        inverse=lambda u: u,
        slope=jnp.ones_like,
        variance=jnp.ones_like,
        clip=lambda u, margin: u,
    ),
    "sigmoid": Link(
        forward=jax.nn.sigmoid,
        inverse=lambda u: jnp.log(u) - jnp.log1p(-u),
        slope=lambda u: u * (1 - u),
        variance=lambda u: u * (1 - u),
        clip=lambda u, margin: jnp.clip(u, margin, 1 - margin),
    ),
    "softplus": Link(
        forward=jax.nn.softplus,
        inverse=lambda u: u + jnp.log(-jnp.expm1(-u)),
        slope=lambda u: -jnp.expm1(-u),
        variance=jnp.ones_like,
        clip=lambda u, margin: jnp.maximum(u, margin * _positive(jnp.max(u, axis=0))),
    ),
}
"""Every link by its name."""


def per_task(links: tuple[str, ...], name: str, x: UnitScores, *args: Array) -> UnitScores:
    """Apply the function `name` of each task's own link to that task's column."""
    out = getattr(LINKS["identity"], name)(x, *args)
    for link in sorted(set(links) - {"identity"}):
        mine = np.array([each == link for each in links])
        # 0.5 lies inside the domain of every function of every link, so that the columns
        # of other tasks cannot put NaNs into a gradient.
        mapped = getattr(LINKS[link], name)(jnp.where(mine, x, 0.5), *args)
        out = jnp.where(mine, mapped, out)
    return out


def delta_weights(links: tuple[str, ...], unit: UnitScores) -> UnitScores:
    """Inverse variance of the linked score, by the delta method."""
    return per_task(links, "slope", unit) ** 2 / per_task(links, "variance", unit)
