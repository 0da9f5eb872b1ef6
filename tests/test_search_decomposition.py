"""Decomposition: single-objective strategies of evosax on several objectives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms.distribution_based.cma_es import CMA_ES
from evosax.algorithms.population_based.differential_evolution import (
    DifferentialEvolution,
)
from evosax.algorithms.population_based.pso import PSO
from jaxtyping import Array
from pymoo.decomposition.pbi import PBI
from pymoo.decomposition.tchebicheff import Tchebicheff

from mapjax.pareto import reference_directions
from mapjax.search import NSGA2, Decomposition, evolve
from mapjax.search._members import follow, revalue
from mapjax.search._scalarize import (
    penalty_boundary_intersection,
    smooth_tchebycheff,
    tchebycheff,
)


class Quadratics(eqx.Module):
    targets: Array
    missing: Array

    def __call__(self, c):
        scores = jnp.sum((c - self.targets) ** 2, axis=1)
        return jnp.where(c[0] < self.missing, jnp.nan, scores)


STRATEGIES = {
    "CMA_ES": CMA_ES(population_size=6, solution=jnp.zeros(2)),
    "DifferentialEvolution": DifferentialEvolution(
        population_size=8, solution=jnp.zeros(2)
    ),
    "PSO": PSO(population_size=8, solution=jnp.zeros(2)),
}


def objective(missing=0.0):
    targets = jnp.array([[0.2, 0.4], [0.8, 0.6]])
    return Quadratics(targets, jnp.asarray(missing))


def best_at(direction, scalarize):
    """The best point of the whole front for one direction, by trying all of it."""
    along = np.linspace(0, 1, 10_001)[:, None]
    scores = np.hstack([along**2, (1 - along) ** 2])
    return along[np.argmin(scalarize(jnp.asarray(scores), jnp.asarray(direction)))][0]


@pytest.mark.parametrize(
    ("strategy", "scalarization", "scalarize"),
    [
        ("CMA_ES", "tchebycheff", tchebycheff),
        ("CMA_ES", "pbi", penalty_boundary_intersection),
        ("DifferentialEvolution", "smooth_tchebycheff", smooth_tchebycheff),
    ],
)
@pytest.mark.slow
def test_each_direction_finds_its_own_best_point(strategy, scalarization, scalarize):
    directions = jnp.array([[1.0, 0.0], [0.7, 0.3], [0.5, 0.5], [0.2, 0.8], [0.0, 1.0]])
    search = Decomposition(STRATEGIES[strategy], 2, directions, scalarization)
    params, key = search.default_params, jax.random.key(0)
    population = jax.random.uniform(key, (search.population_size, 2))
    evaluate = jax.vmap(objective())
    state = search.init(key, population, evaluate(population), params)
    for step in jax.random.split(key, 60):
        population, state = search.ask(step, state, params)
        state, metrics = search.tell(step, population, evaluate(population), state, params)
    assert population.shape == (search.population_size, 2)
    assert bool(jnp.all((population >= 0) & (population <= 1)))
    assert int(metrics["generation_counter"]) == 60
    np.testing.assert_allclose(metrics["ideal"], 0, atol=1e-3)
    expected = np.array([best_at(direction, scalarize) for direction in directions])
    path = np.array([0.2, 0.4]) + expected[:, None] * [0.6, 0.2]
    np.testing.assert_allclose(state.population, path, atol=0.05)
    np.testing.assert_allclose(metrics["nadir"], evaluate(path).max(axis=0), atol=0.03)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.slow
def test_any_strategy_evolves_a_front_past_failures(name, key):
    search = Decomposition(STRATEGIES[name], 2, reference_directions(2, 6))
    front, partly, failed = (
        evolve(objective(missing), search, 40, key=key) for missing in (0.0, 0.5, 2.0)
    )
    assert len(front) > 10
    along = front.coefficients @ jnp.array([1.0, -3.0])
    assert np.median(np.abs(along + 1.0)) < 0.1
    assert bool(jnp.all(partly.coefficients[:, 0] >= 0.5))
    np.testing.assert_allclose(partly.coefficients[:, 0].min(), 0.5, atol=0.05)
    assert len(failed) == 0


def test_scalarizations_are_those_of_pymoo():
    random = np.random.default_rng(0)
    scores, direction = random.uniform(size=(20, 3)), np.array([0.5, 0.3, 0.2])
    zeros, ones = np.zeros(3), np.ones(3)
    for ours, theirs in (
        (tchebycheff, Tchebicheff()),
        (penalty_boundary_intersection, PBI()),
    ):
        expected = theirs.do(
            scores,
            direction[None],
            ideal_point=zeros,
            utopian_point=zeros,
            nadir_point=ones,
        )
        value = ours(jnp.asarray(scores), jnp.asarray(direction))
        np.testing.assert_allclose(value, np.ravel(expected), rtol=1e-5)


def test_a_smooth_tchebycheff_bounds_the_sharp_one():
    scores = jax.random.uniform(jax.random.key(0), (50, 4))
    direction = jnp.full(4, 0.25)
    sharp, smooth = tchebycheff(scores, direction), smooth_tchebycheff(scores, direction)
    assert bool(jnp.all(smooth >= sharp - 1e-6))
    assert bool(jnp.all(smooth <= sharp + 0.01 * jnp.log(4.0) + 1e-6))


def test_members_are_followed_and_revalued():
    search = Decomposition(STRATEGIES["DifferentialEvolution"], 2, jnp.eye(2))
    population = jax.random.uniform(jax.random.key(1), (16, 2))
    fitness = jax.vmap(objective())(population)
    state = search.init(jax.random.key(0), population, fitness, search.default_params)
    values = state.strategies.fitness
    np.testing.assert_array_equal(
        follow(state.strategies, state.members, values), state.members
    )
    renewed = revalue(state.strategies, state.members, 2 * values)
    np.testing.assert_array_equal(renewed.fitness, 2 * values)
    # A fitness of no known point stays what it is.
    unknown = follow(state.strategies, state.members, values + 1)
    assert bool(jnp.all(jnp.isnan(unknown)))
    kept = revalue(state.strategies, unknown, 2 * values)
    np.testing.assert_array_equal(kept.fitness, values)


def test_equal_configurations_are_equal():
    strategy, directions = STRATEGIES["CMA_ES"], reference_directions(2, 6)
    one = Decomposition(strategy, 2, directions)
    assert one == Decomposition(strategy, 2, directions)
    assert hash(one) == hash(Decomposition(strategy, 2, directions))
    assert one != Decomposition(strategy, 2, directions, "pbi")
    assert one != Decomposition(STRATEGIES["PSO"], 2, directions)
    assert Decomposition(strategy, 3).population_size == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NSGA2(8, 2, 2), 2), "`strategy` is NSGA2, .* single-objective"),
        ((CMA_ES(6, {"a": jnp.zeros(2)}), 2), "of 2 numbers .*solution=jnp.zeros"),
        ((STRATEGIES["CMA_ES"], 1), "`num_objectives` is 1"),
        ((STRATEGIES["CMA_ES"], 2, jnp.eye(3)), r"shape \(3, 3\), .* 2 objectives"),
        (
            (STRATEGIES["CMA_ES"], 2, None, "sum"),
            "is 'sum'; choose from .*'pbi'",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Decomposition(*arguments)
