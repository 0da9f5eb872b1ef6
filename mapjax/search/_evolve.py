"""Evolve a front in one jitted loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms.base import EvolutionaryAlgorithm
from jaxtyping import Array, Float, Int, UInt32

from mapjax._checks import check_count, read_bounds
from mapjax._keys import generator
from mapjax._result import Front
from mapjax._sizes import room_for
from mapjax._types import ArrayLike
from mapjax.search._algorithm import MultiObjectiveAlgorithm, without_failures
from mapjax.search._archive import Archive, archive_weights
from mapjax.search._checks import evaluate_all, read_start
from mapjax.search._compile import quick_jit
from mapjax.search._distinct import distinct_front

_USUAL_GENERATIONS = 256


def evolve(
    objective: Callable[[Float[Array, " coefficients"]], Float[Array, " objectives"]],
    search: EvolutionaryAlgorithm,
    num_generations: int,
    bounds: Any = (0.0, 1.0),
    *,
    key: Array,
    params: Any = None,
    archive_size: int = 200,
    start: ArrayLike | None = None,
) -> Front:
    """Search for the coefficients whose objectives no others dominate.

    The first generation is drawn uniformly from the box, `start` aside, each further one
    by the search:
    `num_generations * search.population_size` evaluations, in one jitted loop. The result
    is what is non-dominated among the last population and an archive, which holds the best
    point ever seen for each of many weights.

    The objective is an argument of the jitted loop: pass an `equinox.Module` or another
    pytree of arrays, and other numbers in it, other bounds, another key and any number of
    generations up to 256 use the same compilation. A plain function is compiled anew for
    every new function object.

    Args:
        objective: From one point `[coefficients]` to its objectives, minimised. A point
            with a NaN or infinite objective counts as a failed evaluation.
        search: `NSGA3`, `NSGA2` or `Decomposition`.
        num_generations: At least 1.
        bounds: Lower and upper end of the box, each a number or one per coefficient.
        key: A typed key, which draws everything.
        params: Numbers of the search; None takes `search.default_params`.
        archive_size: Points in the archive, at least 1.
        start: Points `[points, coefficients]` to begin from; the first generation takes
            as many of them as it has room for.

    Returns:
        Distinct non-dominated points, with objectives as `scores`, sorted by the first
        objective; empty if every evaluation failed.

    Raises:
        ValueError: If an argument is not as stated, or the objective does not return one
            number per objective of the search.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from mapjax.search import NSGA3
        >>> def two_corners(c):
        ...     return jnp.stack([jnp.sum(c**2), jnp.sum((c - 1) ** 2)])
        >>> algorithm = NSGA3(population_size=20, num_coefficients=2, num_objectives=2)
        >>> front = evolve(two_corners, algorithm, 40, key=jax.random.key(0))
        >>> bool(jnp.all(jnp.abs(front.coefficients @ jnp.array([1.0, -1.0])) < 0.2))
        True
    """
    if not isinstance(search, MultiObjectiveAlgorithm):
        raise ValueError(
            f"`search` is {type(search).__name__}, but must be `NSGA3`, `NSGA2` or "
            "`Decomposition`; wrap an algorithm of evosax as `Decomposition(algorithm, "
            "num_objectives)`."
        )
    check_count("num_generations", num_generations, 1)
    size, num = search.population_size, search.num_dims
    check_count("archive_size", archive_size, 1)
    dtype = np.dtype(jnp.result_type(float))
    lower, upper = read_bounds(bounds, num, dtype)
    width = upper - lower

    # On the host, where nothing of this has to be compiled.
    random = generator(key)
    first = random.random((size, num), dtype)
    if start is not None:
        given = read_start(start, num)[:size]
        first[: len(given)] = np.clip((given - lower) / width, 0, 1)
    # Room for more, so that another number of generations compiles nothing.
    words = np.zeros((room_for(num_generations, _USUAL_GENERATIONS), 2, 2), np.uint32)
    words[:num_generations] = random.integers(2**32, size=(num_generations, 2, 2))
    # In columns, as the archive reads them.
    weights = archive_weights(search.num_objectives, archive_size).T.astype(dtype, "C")
    if params is None:
        params = search.default_params
    # By way of NumPy, since weak types would be compiled anew.
    params = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), params)

    unit, scores = jax.device_get(
        quick_jit(_evolve)(
            objective,
            search,
            params,
            first,
            words,
            np.asarray(num_generations),
            weights,
            lower,
            width,
        )
    )
    return distinct_front(lower + unit * width, scores)


def _evolve(
    objective: Callable[[Array], Array],
    search: MultiObjectiveAlgorithm,
    params: Any,
    start: Float[ArrayLike, "population coefficients"],
    words: UInt32[ArrayLike, "room 2 2"],
    num_generations: Int[ArrayLike, ""],
    weights: Float[ArrayLike, "objectives archive"],
    lower: Float[ArrayLike, " coefficients"],
    width: Float[ArrayLike, " coefficients"],
) -> tuple[Float[Array, "points coefficients"], Float[Array, "points objectives"]]:
    """Return the archive and the last population, in the unit box, and their scores."""

    def evaluate(population):
        points = lower[None] + population * width[None]
        scores = evaluate_all(objective, points, search.num_objectives)
        return without_failures(scores.astype(start.dtype))

    keys = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    # Not evaluated yet: a population of failures, which any evaluated one replaces.
    failed = jnp.full((len(start), search.num_objectives), jnp.inf, start.dtype)
    state = search.init(keys[0, 0], start, failed, params)

    archive = Archive(
        jnp.zeros((weights.shape[1], start.shape[1]), start.dtype),
        jnp.full(weights.shape[::-1], jnp.inf, start.dtype),
    )

    def generation(i, carry):
        state, archive = carry
        is_first = state.generation_counter == 0
        population, state = search.ask(keys[i, 0], state, params)
        # The first generation goes through the loop too: one objective to be compiled.
        population = jnp.where(is_first, start, population)
        scores = evaluate(population)
        state, _ = search.tell(keys[i, 1], population, scores, state, params)
        archive = archive.update(
            population,
            scores,
            weights=jnp.asarray(weights),
            ideal=state.ideal,
            nadir=state.nadir,
        )
        return state, archive

    carry = state, archive
    state, archive = jax.lax.fori_loop(0, num_generations, generation, carry)
    unit = jnp.concatenate([archive.coefficients, state.population])
    return unit, jnp.concatenate([archive.scores, state.fitness])
