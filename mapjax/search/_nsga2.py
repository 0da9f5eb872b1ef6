"""NSGA-II as an evosax algorithm."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from mapjax._types import PRNGKey
from mapjax.pareto import crowding_distance
from mapjax.search._algorithm import MultiObjectiveAlgorithm
from mapjax.search._algorithm import State as BaseState
from mapjax.search._fronts import leading_fronts
from mapjax.search._random import random_words
from mapjax.search._variation import VariationParams, offspring, usual_numbers


@struct.dataclass
class NSGA2State(BaseState):
    """The state of any multi-objective algorithm, and what its tournaments compare.

    Attributes:
        rank: The front each member is on.
        crowding: Room around each member on its front.
    """

    rank: Int[Array, " population"]
    crowding: Float[Array, " population"]


class NSGA2(MultiObjectiveAlgorithm):
    """NSGA-II: non-dominated sorting, then the points with the most room around them.

    Defaults are those of the paper: pairs crossed with probability 0.9 and index 20, each
    coefficient mutated with probability 1/N and index 20. Best with two objectives; with
    more than three use `NSGA3`.

    Example:
        >>> algorithm = NSGA2(population_size=8, num_coefficients=3, num_objectives=2)
        >>> algorithm == NSGA2(8, 3, 2)
        True

    References:
        Deb, Pratap, Agarwal and Meyarivan, *A fast and elitist multiobjective genetic
        algorithm: NSGA-II*, 2002.
    """

    @property
    def _default_params(self) -> VariationParams:
        return VariationParams(**usual_numbers(self.num_dims, rate=0.9, eta=20.0))

    def _start(
        self, key: PRNGKey, population: Array, fitness: Array, params: VariationParams
    ) -> NSGA2State:
        ranks, _ = leading_fronts(fitness.T, self.population_size)
        return NSGA2State(
            population=population,
            fitness=fitness,
            ideal=jnp.min(fitness, axis=0),
            nadir=_nadir(fitness, ranks),
            generation_counter=jnp.array(0),
            rank=ranks,
            crowding=crowding_distance(fitness, ranks),
        )

    def _ask(
        self, key: PRNGKey, state: NSGA2State, params: VariationParams
    ) -> tuple[Array, NSGA2State]:
        size = self.population_size
        (words,) = random_words(key, (4, size), 1)
        one, other, three, four = (words % size).astype(int)
        first = state.population[_winner(state, one, other)]
        second = state.population[_winner(state, three, four)]
        return offspring(first, second, params, key=key), state

    def _tell(
        self,
        key: PRNGKey,
        population: Array,
        fitness: Array,
        state: NSGA2State,
        params: VariationParams,
    ) -> NSGA2State:
        # Offspring first: of identical points, the first is kept.
        population = jnp.concatenate([population, state.population])
        fitness = jnp.concatenate([fitness, state.fitness])
        ranks, last = leading_fronts(fitness.T, self.population_size)
        crowding = crowding_distance(fitness, ranks)
        turn = jnp.where(ranks == last, 1 / (1 + crowding), jnp.inf)
        turn = jnp.where(ranks < last, -1, turn)
        survivors = jax.lax.top_k(-turn, self.population_size)[1]
        return state.replace(
            population=population[survivors],
            fitness=fitness[survivors],
            ideal=jnp.minimum(state.ideal, jnp.min(fitness, axis=0)),
            nadir=_nadir(fitness, ranks),
            rank=ranks[survivors],
            crowding=crowding[survivors],
        )


def _nadir(
    fitness: Float[Array, "points objectives"], ranks: Int[Array, " points"]
) -> Float[Array, " objectives"]:
    return jnp.max(jnp.where((ranks == 0)[:, None], fitness, -jnp.inf), axis=0)


def _winner(
    state: NSGA2State, one: Int[Array, " population"], other: Int[Array, " population"]
) -> Int[Array, " population"]:
    """Let pairs of members fight: the better front wins, on the same one more room."""
    same = state.rank[one] == state.rank[other]
    roomier = state.crowding[other] > state.crowding[one]
    better = state.rank[other] < state.rank[one]
    return jnp.where(better | (same & roomier), other, one)
