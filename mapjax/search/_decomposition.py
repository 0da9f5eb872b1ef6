"""Any evosax strategy on several objectives: one copy of it per reference direction."""

from typing import Any

import jax
import jax.numpy as jnp
from evosax.algorithms.base import EvolutionaryAlgorithm
from evosax.algorithms.distribution_based.base import DistributionBasedAlgorithm
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm
from evosax.types import Params as BaseParams
from flax import struct
from jaxtyping import Array, Float

from mapjax._checks import check_choice
from mapjax._jit import lenient
from mapjax._types import ArrayLike, PRNGKey
from mapjax.pareto import reference_directions as spread_directions
from mapjax.search._algorithm import MultiObjectiveAlgorithm
from mapjax.search._algorithm import State as BaseState
from mapjax.search._checks import check_num_objectives, read_directions
from mapjax.search._members import follow, revalue
from mapjax.search._scalarize import SCALARIZATIONS

_FAILED = 1e6
"""Value of a failed evaluation, in widths of the front: far, but good to compute with."""

_STD_INIT = 0.3
"""First standard deviation of distributions: that of uniform points in the unit box."""


@struct.dataclass
class DecompositionState(BaseState):
    """The state of any multi-objective algorithm, and those of the strategies.

    The population is the best point so far for each direction, whoever drew it.

    Attributes:
        strategies: State of each direction's strategy, stacked.
        members: Objectives of the members of each strategy's population; None for
            strategies that are distributions.
    """

    strategies: Any
    members: Float[Array, "directions members objectives"] | None


@struct.dataclass
class DecompositionParams(BaseParams):
    """Numbers of the decomposition and of its strategy.

    Attributes:
        strategy: Params of the strategy, shared by all directions.
        reference_directions: Weights of the objectives, one row per direction.
    """

    strategy: Any
    reference_directions: Float[Array, "directions objectives"]


class Decomposition(MultiObjectiveAlgorithm):
    """Many single-objective searches at once, each towards its own mix of objectives.

    Each reference direction makes one number of the objectives, normalised by the running
    ideal and nadir points, and has its own copy of the strategy to minimise it; all copies
    run as one `vmap`. A generation evaluates the strategy's population once per direction.
    Samples outside the unit box are moved to its nearest point.

    Example:
        >>> import jax.numpy as jnp
        >>> from evosax.algorithms.population_based.differential_evolution import (
        ...     DifferentialEvolution,
        ... )
        >>> strategy = DifferentialEvolution(population_size=8, solution=jnp.zeros(3))
        >>> Decomposition(strategy, 2, jnp.array([[0.5, 0.5], [0.9, 0.1]])).population_size
        16

    References:
        Zhang and Li, *MOEA/D: a multiobjective evolutionary algorithm based on
        decomposition*, IEEE Transactions on Evolutionary Computation, 2007.
    """

    def __init__(
        self,
        strategy: EvolutionaryAlgorithm,
        num_objectives: int,
        reference_directions: ArrayLike | None = None,
        scalarization: str = "tchebycheff",
    ):
        """Configure the decomposition.

        Args:
            strategy: An algorithm of evosax, population- or distribution-based, for a
                solution that is an array `[coefficients]`.
            num_objectives: How many objectives, at least 2.
            reference_directions: `[directions, objectives]`, non-negative; None spreads
                100 of them.
            scalarization: `"tchebycheff"` (the largest weighted objective, reaches every
                Pareto point), `"smooth_tchebycheff"`, or `"pbi"` (distance along and away
                from the direction).

        Raises:
            ValueError: If an argument is not as stated.
        """
        kinds = (PopulationBasedAlgorithm, DistributionBasedAlgorithm)
        if not isinstance(strategy, kinds) or isinstance(strategy, MultiObjectiveAlgorithm):
            raise ValueError(
                f"`strategy` is {type(strategy).__name__}, but must be a single-objective "
                "algorithm of evosax, such as `CMA_ES` or `DifferentialEvolution`."
            )
        if getattr(strategy.solution, "ndim", 0) != 1:
            raise ValueError(
                f"`strategy` was made for a solution of {strategy.num_dims} numbers that "
                "is not one array [coefficients]; make it with "
                f"`solution=jnp.zeros({strategy.num_dims})`."
            )
        check_choice("scalarization", scalarization, tuple(SCALARIZATIONS))
        check_num_objectives(num_objectives)
        if reference_directions is None:
            reference_directions = spread_directions(num_objectives, 100)
        directions = read_directions(reference_directions, num_objectives)
        super().__init__(
            len(directions) * strategy.population_size, strategy.num_dims, num_objectives
        )
        self.strategy = strategy
        self.scalarization = scalarization
        self.reference_directions = directions

    def _configuration(self) -> tuple:
        # Strategies of evosax are equal only to themselves.
        directions = self.reference_directions
        numbers = (directions.shape, directions.tobytes())
        return (*super()._configuration(), self.strategy, self.scalarization, *numbers)

    @property
    @lenient
    def _default_params(self) -> DecompositionParams:
        params = self.strategy.default_params
        if hasattr(params, "std_init"):
            params = params.replace(std_init=jnp.asarray(_STD_INIT))
        return DecompositionParams(
            strategy=params, reference_directions=jnp.asarray(self.reference_directions)
        )

    def _start(
        self, key: PRNGKey, population: Array, fitness: Array, params: DecompositionParams
    ) -> DecompositionState:
        ideal = jnp.min(fitness, axis=0)
        widest = jnp.max(jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf), axis=0)
        best = jnp.argmin(self._values(fitness, ideal, widest, params), axis=1)
        nadir = jnp.max(fitness[best], axis=0)
        if self._has_members:
            members = self._by_direction(fitness)
            values = self._own_values(members, ideal, nadir, params)
            start = (self._by_direction(population), values)
        else:
            # Each distribution from the best point for its direction, whoever drew it.
            members = None
            evaluated = jnp.isfinite(fitness[best, :1])
            start = (jnp.where(evaluated, population[best], 0.5),)
        in_axes = (0, *(0 for _ in start), None)
        keys = jax.random.split(key, len(best))
        return DecompositionState(
            population=population[best],
            fitness=fitness[best],
            ideal=ideal,
            nadir=nadir,
            generation_counter=jnp.array(0),
            strategies=jax.vmap(self.strategy.init, in_axes)(keys, *start, params.strategy),
            members=members,
        )

    @lenient
    def _ask(
        self, key: PRNGKey, state: DecompositionState, params: DecompositionParams
    ) -> tuple[Array, DecompositionState]:
        keys = jax.random.split(key, len(state.population))
        population, strategies = jax.vmap(self.strategy.ask, (0, 0, None))(
            keys, state.strategies, params.strategy
        )
        population = jnp.clip(population.reshape(-1, self.num_dims), 0, 1)
        population = population.astype(state.population.dtype)
        return population, state.replace(strategies=strategies)

    def _tell(
        self,
        key: PRNGKey,
        population: Array,
        fitness: Array,
        state: DecompositionState,
        params: DecompositionParams,
    ) -> DecompositionState:
        ideal = jnp.minimum(state.ideal, jnp.min(fitness, axis=0))
        scores = jnp.concatenate([fitness, state.fitness])
        best = jnp.argmin(self._values(scores, ideal, state.nadir, params), axis=1)
        nadir = jnp.max(scores[best], axis=0)

        told = self._by_direction(fitness)
        values = self._own_values(told, ideal, nadir, params)
        strategies, members = state.strategies, state.members
        if members is not None:
            old_values = self._own_values(members, ideal, nadir, params)
            strategies = revalue(strategies, members, old_values)
        strategies, _ = jax.vmap(self.strategy.tell, (0, 0, 0, 0, None))(
            jax.random.split(key, len(best)),
            self._by_direction(population),
            values,
            strategies,
            params.strategy,
        )
        if members is not None:
            members = follow(
                strategies,
                jnp.concatenate([told, members], axis=1),
                jnp.concatenate([values, old_values], axis=1),
            )
        return state.replace(
            population=jnp.concatenate([population, state.population])[best],
            fitness=scores[best],
            ideal=ideal,
            nadir=nadir,
            strategies=strategies,
            members=members,
        )

    @property
    def _has_members(self) -> bool:
        return isinstance(self.strategy, PopulationBasedAlgorithm)

    def _by_direction(self, rows: Array) -> Array:
        return rows.reshape(len(self.reference_directions), -1, rows.shape[1])

    def _values(
        self,
        fitness: Float[Array, "points objectives"],
        ideal: Float[Array, " objectives"],
        nadir: Float[Array, " objectives"],
        params: DecompositionParams,
    ) -> Float[Array, "directions points"]:
        """Scalarise every point for every direction."""
        everywhere = jnp.broadcast_to(
            fitness, (len(params.reference_directions), *fitness.shape)
        )
        return self._own_values(everywhere, ideal, nadir, params)

    def _own_values(
        self,
        fitness: Float[Array, "directions points objectives"],
        ideal: Float[Array, " objectives"],
        nadir: Float[Array, " objectives"],
        params: DecompositionParams,
    ) -> Float[Array, "directions points"]:
        """Scalarise each direction's points for that direction."""
        width = jnp.where(jnp.isfinite(nadir) & (nadir > ideal), nadir - ideal, 1)
        directions = params.reference_directions.astype(fitness.dtype)
        scalarize = SCALARIZATIONS[self.scalarization]
        values = jax.vmap(scalarize)((fitness - ideal) / width, directions)
        return jnp.where(jnp.isfinite(values), values, _FAILED)
