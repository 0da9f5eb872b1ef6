"""What the multi-objective algorithms share: configuration, state and checks."""

import abc
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm
from evosax.types import State as BaseState
from flax import struct
from jaxtyping import Array, Float, Int

from mapjax._checks import check_count
from mapjax._jit import lenient
from mapjax._types import PRNGKey
from mapjax.search._checks import check_num_objectives, check_shape

_LARGEST_ROOT = np.floor(np.sqrt(np.iinfo(np.int32).max))
"""Up to here the square of a number of coefficients is an int32."""


@struct.dataclass
class State(BaseState):
    """What an algorithm carries from one `tell` to the next; every `tell` changes all.

    Attributes:
        population: Coefficients in the unit box.
        fitness: Their objectives, minimised; infinite where an evaluation failed.
        ideal: The least value so far of each objective.
        nadir: The largest value of each objective on the front.
        generation_counter: How often `tell` was called.
    """

    population: Float[Array, "population coefficients"]
    fitness: Float[Array, "population objectives"]
    ideal: Float[Array, " objectives"]
    nadir: Float[Array, " objectives"]
    generation_counter: Int[Array, ""]


class MultiObjectiveAlgorithm(PopulationBasedAlgorithm, abc.ABC):
    """An evosax algorithm whose fitness is `[population, objectives]`, minimised.

    evosax 0.3 takes an argmin of the fitness in `init` and `tell`, which for several
    objectives corrupts the state without a word, so both are replaced here. Coefficients
    live in the unit box. A row of the fitness that is not finite is a failed evaluation,
    and is never preferred to a finite one.

    Equal configurations are equal and share one trace: evosax jits its methods with the
    algorithm itself as a static argument. Numbers are in the params.
    """

    def __init__(self, population_size: int, num_coefficients: int, num_objectives: int):
        check_count("population_size", population_size, 2)
        check_count("num_coefficients", num_coefficients, 1)
        check_num_objectives(num_objectives)
        solution = np.zeros(num_coefficients, np.float32)

        def prepare() -> None:
            super(MultiObjectiveAlgorithm, self).__init__(population_size, solution)
            self.solution_flat = solution
            self.max_num_dims_sq = np.minimum(num_coefficients, _LARGEST_ROOT)

        # evosax computes two attributes with JAX, which would compile five small programs:
        # a tenth of the first search. Traced instead, they are replaced before it ends.
        jax.eval_shape(prepare)
        self.num_objectives = num_objectives

    def _configuration(self) -> tuple:
        return (self.population_size, self.num_dims, self.num_objectives)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, MultiObjectiveAlgorithm)
            and type(other) is type(self)
            and other._configuration() == self._configuration()
        )

    def __hash__(self) -> int:
        return hash((type(self), self._configuration()))

    @partial(jax.jit, static_argnames=("self",))
    @lenient
    def init(self, key: PRNGKey, population: Any, fitness: Any, params: Any) -> Any:
        """Start from an evaluated population.

        Args:
            key: For algorithms that draw something here.
            population: `[population, coefficients]`, in the unit box.
            fitness: `[population, objectives]`, minimised.
            params: `default_params`, or these with some numbers replaced.

        Returns:
            The state.

        Raises:
            ValueError: If a shape is another.
        """
        self._check_shapes(population, fitness)
        return self._start(key, population, without_failures(fitness), params)

    @partial(jax.jit, static_argnames=("self",))
    @lenient
    def tell(
        self, key: PRNGKey, population: Any, fitness: Any, state: Any, params: Any
    ) -> tuple[Any, dict[str, Array]]:
        """Take in the evaluated offspring.

        Args:
            key: Breaks ties.
            population: `[population, coefficients]`, as `ask` gave them.
            fitness: `[population, objectives]`, minimised.
            state: As `ask` gave it.
            params: As for `init`.

        Returns:
            The new state; and metrics: the generation, the ideal and the nadir point.

        Raises:
            ValueError: If a shape is another.
        """
        self._check_shapes(population, fitness)
        fitness = without_failures(fitness)
        state = self._tell(key, population, fitness, state, params)
        state = state.replace(generation_counter=state.generation_counter + 1)
        names = ("generation_counter", "ideal", "nadir")
        return state, {name: getattr(state, name) for name in names}

    def get_best_solution(self, state: Any) -> Any:
        """Refuse: several objectives have no single best solution.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Several objectives have no single best solution; pick one from the front, "
            "`mapjax.pareto.non_dominated(state.fitness)`."
        )

    @abc.abstractmethod
    def _start(self, key: PRNGKey, population: Array, fitness: Array, params: Any) -> Any:
        """Make the state of the first, evaluated population."""

    def _check_shapes(self, population: Any, fitness: Any) -> None:
        size, num, objectives = self._configuration()[:3]
        check_shape("population", population, "[population, coefficients]", (size, num))
        check_shape("fitness", fitness, "[population, objectives]", (size, objectives))


def without_failures(
    fitness: Float[Array, "population objectives"],
) -> Float[Array, "population objectives"]:
    """Replace rows that are not finite by infinity, which every finite row dominates."""
    finite = jnp.all(jnp.isfinite(fitness), axis=1, keepdims=True)
    return jnp.where(finite, fitness, jnp.inf)
