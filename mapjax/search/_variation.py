"""Offspring in the unit box: simulated binary crossover and polynomial mutation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from evosax.types import Params
from flax import struct
from jaxtyping import Array, Float

from mapjax._types import PRNGKey
from mapjax.search._random import random_words, uniform

# Powers are written with logarithms, which XLA vectorises on CPUs; powers it does not.


@struct.dataclass
class VariationParams(Params):
    """How offspring differ from their parents.

    Attributes:
        crossover_rate: Probability that a pair of parents is crossed.
        crossover_eta: Distribution index; the larger, the nearer children stay.
        mutation_rate: Probability that a coefficient is mutated.
        mutation_eta: Distribution index; the larger, the smaller steps are.
    """

    crossover_rate: Float[Array, ""]
    crossover_eta: Float[Array, ""]
    mutation_rate: Float[Array, ""]
    mutation_eta: Float[Array, ""]


def usual_numbers(num_dims: int, *, rate: float, eta: float) -> dict[str, Array]:
    """Give parameters that cross as asked and mutate one coefficient on average."""
    numbers = np.asarray([rate, eta, 1 / num_dims, 20.0], jnp.result_type(float))
    # Not by `jnp.asarray`, which compiles a conversion of a Python number.
    names = (field.name for field in dataclasses.fields(VariationParams))
    return dict(zip(names, map(jax.device_put, numbers), strict=True))


def offspring(
    first: Float[Array, "population coefficients"],
    second: Float[Array, "population coefficients"],
    params: VariationParams,
    *,
    key: PRNGKey,
) -> Float[Array, "population coefficients"]:
    """Cross each row with its mate and mutate the child."""
    child = simulated_binary_crossover(
        first, second, rate=params.crossover_rate, eta=params.crossover_eta, key=key
    )
    child = polynomial_mutation(
        child, rate=params.mutation_rate, eta=params.mutation_eta, key=key
    )
    return child.astype(first.dtype)


def simulated_binary_crossover(
    first: Float[Array, "population coefficients"],
    second: Float[Array, "population coefficients"],
    *,
    rate: Float[Array, ""],
    eta: Float[Array, ""],
    key: PRNGKey,
) -> Float[Array, "population coefficients"]:
    r"""Cross each row with its mate, giving one child per row.

    A coefficient of a crossed pair is crossed with probability one half. It then lies
    around the lower or the upper parent, either with probability one half, at
    $\frac12 (x_1 + x_2 \mp \beta (x_2 - x_1))$; the density of the spread $\beta$ falls
    like $\beta^{-(\eta + 2)}$ and ends where the child would leave [0, 1].

    Args:
        first: The first parents; a coefficient that is not crossed is theirs.
        second: The second parents.
        rate: Probability that a pair is crossed.
        eta: Distribution index; the larger, the nearer children stay to their parents.
        key: Draws everything.

    References:
        Deb and Agrawal, *Simulated binary crossover for continuous search space*, 1995.
        Deb and Beyer, *Self-adaptive genetic algorithms with simulated binary crossover*,
        2001 (with bounds).
    """
    dtype = first.dtype
    (words,) = random_words(key, first.shape, 1, stream=1)
    (pair,) = random_words(key, first.shape[:1], 1, stream=2)
    crossed = ((words & 1) == 0) & (uniform(pair, dtype) <= rate)[:, None]
    lower = (words & 2) == 0

    gap, total = jnp.abs(first - second), first + second
    # How far both parents lie from the bound, from one parent's side to the other's.
    room = jnp.where(lower, total, 2 - total)
    # Where before divide: two parents on the bound have neither gap nor room. Close to it
    # the gap may exceed the room, by rounding.
    least = jnp.minimum(gap / jnp.where(room > 0, room, 1), 1)
    u = uniform(words, dtype) * (2 - jnp.exp(jnp.log(least) * (eta + 1)))
    # u < 2 but for rounding, after which the child is clipped.
    u = jnp.where(u <= 1, u, 1 / jnp.maximum(2 - u, 1e-9))
    step = jnp.exp(jnp.log(u) / (eta + 1)) * gap
    child = jnp.clip((total + jnp.where(lower, -step, step)) / 2, 0, 1)
    return jnp.where(crossed, child, first)


def polynomial_mutation(
    parent: Float[Array, "population coefficients"],
    *,
    rate: Float[Array, ""],
    eta: Float[Array, ""],
    key: PRNGKey,
) -> Float[Array, "population coefficients"]:
    r"""Mutate each coefficient with a probability, never out of [0, 1].

    The density of the step $\delta$ falls like $(1 - |\delta|)^\eta$ and ends at the
    bounds; up and down are equally likely.

    Args:
        parent: What is mutated.
        rate: Probability that a coefficient is mutated.
        eta: Distribution index; the larger, the smaller steps are.
        key: Draws everything.

    References:
        Deb and Deb, *Analysing mutation schemes for real-parameter genetic algorithms*,
        2014.
    """
    words, chance = random_words(key, parent.shape, 2, stream=3)
    u = uniform(words, parent.dtype)
    down = u < 0.5
    u = jnp.where(down, 2 * u, 2 - 2 * u)
    room = jnp.where(down, parent, 1 - parent)
    u = u + (1 - u) * jnp.exp(jnp.log(1 - room) * (eta + 1))
    step = 1 - jnp.exp(jnp.log(u) / (eta + 1))
    child = jnp.clip(parent + jnp.where(down, -step, step), 0, 1)
    return jnp.where(uniform(chance, parent.dtype) <= rate, child, parent)
