"""NSGA-III as an evosax algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from mapjax._types import ArrayLike, PRNGKey
from mapjax.pareto import reference_directions as spread_directions
from mapjax.search._algorithm import MultiObjectiveAlgorithm
from mapjax.search._algorithm import State as BaseState
from mapjax.search._checks import read_directions
from mapjax.search._fronts import leading_fronts
from mapjax.search._niching import associate, niche_levels
from mapjax.search._normalize import extreme_points, front_width
from mapjax.search._random import random_words, uniform
from mapjax.search._variation import VariationParams, offspring, usual_numbers


@struct.dataclass
class NSGA3State(BaseState):
    """The state of any multi-objective algorithm, and the extreme points so far.

    Attributes:
        extreme: In column k, the objectives of the point nearest to axis k.
    """

    extreme: Float[Array, "objectives objectives"]


@struct.dataclass
class NSGA3Params(VariationParams):
    """Numbers of NSGA-III: those of its variation, and its niches.

    Attributes:
        reference_directions: Of length one.
    """

    reference_directions: Float[Array, "directions objectives"]


class NSGA3(MultiObjectiveAlgorithm):
    """NSGA-III: non-dominated sorting with a niche around each reference direction.

    Defaults are those of the paper: every pair of parents is crossed with index 30, each
    coefficient mutated with probability 1/N and index 20.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> algorithm = NSGA3(population_size=8, num_coefficients=3, num_objectives=2)
        >>> params, key = algorithm.default_params, jax.random.key(0)
        >>> def evaluate(c):
        ...     return jnp.stack([c.sum(axis=1), (1 - c).sum(axis=1)], axis=1)
        >>> population = jax.random.uniform(key, (8, 3))
        >>> state = algorithm.init(key, population, evaluate(population), params)
        >>> population, state = algorithm.ask(key, state, params)
        >>> state, metrics = algorithm.tell(
        ...     key, population, evaluate(population), state, params
        ... )
        >>> state.fitness.shape, int(metrics["generation_counter"])
        ((8, 2), 1)

    References:
        Deb and Jain, *An evolutionary many-objective optimization algorithm using
        reference-point-based nondominated sorting approach, part I*, 2014.
    """

    def __init__(
        self,
        population_size: int,
        num_coefficients: int,
        num_objectives: int,
        reference_directions: ArrayLike | None = None,
    ):
        """Configure the algorithm.

        Args:
            population_size: Points per generation, at least 2.
            num_coefficients: How many coefficients, at least 1.
            num_objectives: How many objectives, at least 2.
            reference_directions: `[directions, objectives]`, non-negative, any number of
                them; None spreads as many as there are points.

        Raises:
            ValueError: If a number is too small or the directions are not as stated.
        """
        super().__init__(population_size, num_coefficients, num_objectives)
        if reference_directions is None:
            reference_directions = spread_directions(num_objectives, population_size)
        directions = read_directions(reference_directions, num_objectives)
        length = np.linalg.norm(directions, axis=1, keepdims=True)
        self.reference_directions = directions / length

    def _configuration(self) -> tuple:
        directions = self.reference_directions
        return (*super()._configuration(), directions.shape, directions.tobytes())

    @property
    def _default_params(self) -> NSGA3Params:
        directions = jnp.asarray(self.reference_directions)
        return NSGA3Params(
            **usual_numbers(self.num_dims, rate=1.0, eta=30.0),
            reference_directions=directions,
        )

    def _start(
        self, key: PRNGKey, population: Array, fitness: Array, params: NSGA3Params
    ) -> NSGA3State:
        shape = (self.num_objectives, self.num_objectives)
        return NSGA3State(
            population=population,
            fitness=fitness,
            ideal=jnp.min(fitness, axis=0),
            nadir=jnp.max(fitness, axis=0),
            generation_counter=jnp.array(0),
            extreme=jnp.full(shape, jnp.inf, fitness.dtype),
        )

    def _ask(
        self, key: PRNGKey, state: NSGA3State, params: NSGA3Params
    ) -> tuple[Array, NSGA3State]:
        first, size = state.population, self.population_size
        # Mates by a rotation through a random number of places: everyone is a first and a
        # second parent once, and never its own mate.
        (words,) = random_words(key, (1,), 1)
        places = jnp.arange(size, dtype=jnp.uint32) + 1 + words % (size - 1)
        second = first[places % size]
        return offspring(first, second, params, key=key), state

    def _tell(
        self,
        key: PRNGKey,
        population: Array,
        fitness: Array,
        state: NSGA3State,
        params: NSGA3Params,
    ) -> NSGA3State:
        # Offspring first: of identical points, the first is kept.
        population = jnp.concatenate([population, state.population])
        columns = jnp.concatenate([fitness.T, state.fitness.T], axis=1)
        dtype = columns.dtype

        ranks, last = leading_fronts(columns, self.population_size)
        front = ranks == 0
        ideal = jnp.minimum(state.ideal, jnp.min(columns, axis=1))
        worst = jnp.max(jnp.where(front, columns, -jnp.inf), axis=1)
        extreme = extreme_points(columns, front, ideal, worst, state.extreme)
        width = front_width(extreme, ideal, worst)

        niche, distance = associate(
            (columns - ideal[:, None]) / width[:, None],
            params.reference_directions.astype(dtype),
        )
        # XLA draws cheap numbers again for every pair of points, but no square roots.
        (words,) = random_words(key, ranks.shape, 1, stream=4)
        draw = jnp.sqrt(uniform(words, dtype))
        selected, candidate = ranks < last, ranks == last
        level = niche_levels(niche, distance, selected, candidate, draw)
        turn = jnp.where(selected, -1, jnp.where(candidate, level + draw, jnp.inf))
        survivors = jax.lax.top_k(-turn, self.population_size)[1]
        return state.replace(
            population=population[survivors],
            fitness=columns[:, survivors].T,
            ideal=ideal,
            nadir=ideal + width,
            extreme=extreme,
        )
