"""Evolution: known and degenerate fronts, tracing, and as evosax users call it."""

import cProfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.algorithms.distribution_based.cma_es import CMA_ES
from jaxtyping import Array

from mapjax.pareto import non_dominated, reference_directions
from mapjax.search import NSGA2, NSGA3, evolve
from mapjax.search._archive import Archive, archive_weights
from mapjax.search._compile import supported
from mapjax.search._scalarize import max_product


class Quadratics(eqx.Module):
    """Squared distances from targets: with two targets, the front is between them."""

    targets: Array

    def __call__(self, c):
        return jnp.sum((c - self.targets) ** 2, axis=1)


class Degenerate(eqx.Module):
    """Objectives that have broken searches, all of one shape."""

    kind: Array

    def __call__(self, c):
        first, second = c[0], 1 - c[0]
        ordinary = jnp.stack([first + c[1], second + c[1]])
        return jnp.select(
            [self.kind == i for i in range(7)],
            [
                ordinary,
                jnp.stack([first, jnp.ones_like(first)]),  # A constant objective.
                jnp.ones(2),  # All points are identical.
                jnp.stack([first, first]),  # The front is one point.
                jnp.where(c[1] < 0.5, jnp.nan, ordinary),
                jnp.where(c[0] < 0.5, jnp.array([-jnp.inf, 0.0]), ordinary),
                jnp.full(2, jnp.nan),
            ],
        )


SMALL = NSGA3(population_size=12, num_coefficients=2, num_objectives=2)
ALGORITHMS = {
    "NSGA3": SMALL,
    "NSGA2": NSGA2(population_size=12, num_coefficients=2, num_objectives=2),
    "NSGA3, more directions than points": NSGA3(12, 2, 2, reference_directions(2, 40)),
}


def test_evolve_finds_the_front_of_a_problem_with_a_known_one():
    objective = Quadratics(jnp.array([[0.2, 0.4], [0.8, 0.6]]))
    front = evolve(objective, SMALL, 100, key=jax.random.key(0))
    along = (np.asarray(front.coefficients) - [0.2, 0.4]) @ [0.6, 0.2] / 0.4
    nearest = np.array([0.2, 0.4]) + np.clip(along, 0, 1)[:, None] * [0.6, 0.2]
    np.testing.assert_allclose(front.coefficients, nearest, atol=0.06)
    np.testing.assert_allclose(
        front.scores, jax.vmap(objective)(front.coefficients), rtol=1e-5, atol=1e-6
    )
    assert np.sort(along)[0] < 0.05
    assert np.sort(along)[-1] > 0.95
    assert np.diff(np.sort(along)).max() < 0.1
    assert bool(jnp.all(non_dominated(front.scores)))
    assert np.all(np.diff(front.scores[:, 0]) > 0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_degenerate_fronts(name, key):
    def run(kind):
        return evolve(Degenerate(jnp.asarray(kind)), ALGORITHMS[name], 30, key=key)

    ordinary, constant, identical, one, missing, infinite, failed = map(run, range(7))
    np.testing.assert_allclose(ordinary.coefficients[:, 1], 0, atol=0.02)
    assert len(ordinary) > 10
    assert constant.scores.tolist() == [[pytest.approx(0, abs=1e-3), 1]]
    assert identical.scores.tolist() == [[1, 1]]
    np.testing.assert_allclose(one.scores, [[0, 0]], atol=1e-3)
    assert bool(jnp.all(missing.coefficients[:, 1] >= 0.5))
    np.testing.assert_allclose(missing.coefficients[:, 1], 0.5, atol=0.06)
    assert bool(jnp.all(infinite.coefficients[:, 0] >= 0.5))
    assert bool(jnp.all(jnp.isfinite(infinite.scores)))
    assert len(failed) == 0


@pytest.mark.parametrize(("num", "objectives"), [(1, 2), (32, 8)])
def test_few_and_many(num, objectives, key):
    targets = jax.random.uniform(key, (objectives, num))
    algorithm = NSGA3(17, num, objectives, reference_directions(objectives, 9))
    front = evolve(Quadratics(targets), algorithm, 10, key=key, archive_size=5)
    assert front.coefficients.shape == (len(front), num)
    assert front.scores.shape == (len(front), objectives)
    assert len(front) > 5


def test_bounds_hold_and_may_differ_between_coefficients(key):
    lower, upper = np.array([-2.0, 3.0]), np.array([-1.0, 5.0])
    objective = Quadratics(jnp.array([[-1.5, 0.0], [0.0, 4.0]]))
    front = evolve(objective, SMALL, 40, bounds=(lower, upper), key=key)
    assert np.all(front.coefficients >= lower)
    assert np.all(front.coefficients <= upper)
    np.testing.assert_allclose(front.coefficients.min(axis=0), [-1.5, 3.0], atol=0.05)
    np.testing.assert_allclose(front.coefficients.max(axis=0), [-1.0, 4.0], atol=0.05)


def test_the_same_key_gives_the_same_front():
    objective = Quadratics(jnp.eye(2))
    one, same, other = (
        evolve(objective, SMALL, 20, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.coefficients, same.coefficients)
    assert not np.array_equal(one.coefficients[:5], other.coefficients[:5])


def test_traced_once_for_other_numbers():
    traced = 0

    class Counted(Quadratics):
        def __call__(self, c):
            nonlocal traced
            traced += 1
            return super().__call__(c)

    def run(targets, algorithm, bounds, seed, **changed):
        params = algorithm.default_params.replace(**changed)
        key = jax.random.key(seed)
        evolve(Counted(targets), algorithm, 5, bounds=bounds, key=key, params=params)
        return traced

    once = run(jnp.eye(2), SMALL, (0.0, 1.0), 0)
    bounds = (np.zeros(2), np.array([2.0, 3.0]))
    assert run(jnp.ones((2, 2)), NSGA3(12, 2, 2), bounds, 1) == once
    weights = SMALL.default_params.reference_directions[::-1]
    assert run(jnp.eye(2), SMALL, (0.0, 1.0), 2, reference_directions=weights) == once
    assert run(jnp.eye(2), SMALL, (0.0, 1.0), 2, mutation_eta=jnp.asarray(5.0)) == once
    assert run(jnp.eye(2), NSGA3(14, 2, 2), (0.0, 1.0), 0) > once


def test_in_double_precision(x64):
    front = evolve(Quadratics(jnp.eye(2)), NSGA3(12, 2, 2), 20, key=jax.random.key(0))
    assert front.coefficients.dtype == front.scores.dtype == jnp.float64
    assert np.median(np.abs(front.coefficients.sum(axis=1) - 1)) < 0.1


def test_an_archive_keeps_the_best_point_for_each_weight():
    random = np.random.default_rng(0)
    weights = archive_weights(3, 15)
    assert weights.shape == (15, 3)
    batches = random.uniform(size=(4, 30, 3)).astype(np.float32)
    batches[:, 3] = np.inf
    archive = Archive(jnp.zeros((15, 1)), jnp.full((15, 3), jnp.inf))
    for start, batch in enumerate(batches):
        archive = archive.update(
            30.0 * start + jnp.arange(30.0)[:, None],
            jnp.asarray(batch),
            weights=jnp.asarray(weights.T, jnp.float32),
            ideal=jnp.zeros(3),
            nadir=jnp.array([1.0, 2.0, 0.0]),
        )
    scores = batches.reshape(-1, 3)
    values = (scores / [1, 2, 1] * weights[:, None]).max(axis=2)
    np.testing.assert_array_equal(archive.coefficients[:, 0], values.argmin(axis=1))
    np.testing.assert_array_equal(archive.scores, scores[values.argmin(axis=1)])


def test_max_product_is_a_product_with_a_maximum():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(5, 3)), random.normal(size=(3, 7))
    expected = (a[:, :, None] * b).max(axis=1)
    product = max_product(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(product, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["NSGA3", "NSGA2"])
def test_as_a_user_of_evosax_calls_it(name, key):
    algorithm = ALGORITHMS[name]
    params = algorithm.default_params
    objective = jax.vmap(Quadratics(jnp.eye(2)))
    population = jax.random.uniform(key, (12, 2))
    state = algorithm.init(key, population, objective(population), params)
    for generation, step in enumerate(jax.random.split(key, 10)):
        ask_key, tell_key = jax.random.split(step)
        population, state = algorithm.ask(ask_key, state, params)
        assert population.shape == (12, 2)
        assert bool(jnp.all((population >= 0) & (population <= 1)))
        fitness = objective(population)
        state, metrics = algorithm.tell(tell_key, population, fitness, state, params)
        assert int(metrics["generation_counter"]) == generation + 1
    np.testing.assert_array_equal(algorithm.get_population(state), state.population)
    np.testing.assert_allclose(state.fitness, objective(state.population), rtol=1e-5)
    np.testing.assert_allclose(metrics["ideal"], 0, atol=0.1)
    assert bool(jnp.all(metrics["nadir"] > 1))
    with pytest.raises(ValueError, match="no single best solution"):
        algorithm.get_best_solution(state)


def test_options_that_xla_does_not_know_are_left_out():
    assert supported({})
    assert not supported({"xla_an_option_of_tomorrow": True})


def test_equal_configurations_are_equal():
    assert NSGA3(8, 3, 2) == NSGA3(8, 3, 2, 2 * reference_directions(2, 8))
    assert hash(NSGA3(8, 3, 2)) == hash(NSGA3(8, 3, 2))
    assert NSGA3(8, 3, 2) != NSGA3(8, 3, 2, reference_directions(2, 7))
    assert NSGA3(8, 3, 2) != NSGA2(8, 3, 2)
    assert NSGA2(8, 3, 2) == NSGA2(8, 3, 2) != NSGA2(9, 3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NSGA3(1, 2, 2), "`population_size` is 1, .* at least 2"),
        (lambda: NSGA3(8, 0, 2), "`num_coefficients` is 0, .* at least 1"),
        (lambda: NSGA3(8, 2, 1), "`num_objectives` is 1, .*evosax as it is"),
        (lambda: NSGA2(8, 2, 0), "`num_objectives` is 0, .* at least 2"),
        (lambda: NSGA3(8, 2, 2, np.ones((4, 3))), r"shape \(4, 3\), .* 2 objectives"),
        (lambda: NSGA3(8, 2, 2, np.zeros((4, 2))), "above zero in each row"),
        (lambda: NSGA3(8, 2, 2, -np.eye(2)), "non-negative"),
    ],
)
def test_errors_of_configuration(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"search": CMA_ES(8, jnp.zeros(2))}, "`search` is CMA_ES, .*Decomposition"),
        ({"num_generations": 0}, "`num_generations` is 0, .* at least 1"),
        ({"archive_size": 0}, "`archive_size` is 0, .* at least 1"),
        ({"bounds": (1.0, 0.0)}, "every lower bound must be below"),
        ({"bounds": (np.zeros(3), 1.0)}, "two arrays of 2"),
        ({"bounds": (0.0, np.inf)}, "both finite"),
        ({"key": jax.random.PRNGKey(0)}, "`key` is .*, but must be one typed key"),
        ({"key": jax.random.split(jax.random.key(0))}, "must be one typed key"),
        ({"objective": lambda c: c[0]}, r"`objective` returns .*\(2,\)"),
        ({"objective": lambda c: (c[0], c[1])}, "must return one array"),
        ({"objective": Quadratics(jnp.ones((3, 2)))}, r"`objective` returns .*\(2,\)"),
    ],
)
def test_errors_of_evolve(changed, message, key):
    arguments = {"objective": Quadratics(jnp.eye(2)), "search": SMALL}
    arguments |= {"num_generations": 2, "key": key} | changed
    with pytest.raises(ValueError, match=message):
        evolve(**arguments)


@pytest.mark.parametrize("name", ["NSGA3", "NSGA2"])
def test_errors_of_shapes(name, key):
    algorithm = ALGORITHMS[name]
    params, population = algorithm.default_params, jnp.zeros((12, 2))
    with pytest.raises(ValueError, match=r"`fitness` has shape \(12,\), .* \(12, 2\)"):
        algorithm.init(key, population, jnp.zeros(12), params)
    with pytest.raises(ValueError, match=r"`population` has shape \(12, 3\)"):
        algorithm.init(key, jnp.zeros((12, 3)), population, params)
    state = algorithm.init(key, population, population, params)
    with pytest.raises(ValueError, match=r"`fitness` has shape \(12, 3\)"):
        algorithm.tell(key, population, jnp.zeros((12, 3)), state, params)


def test_runs_under_a_profiler(key):
    # It holds references to arrays that nobody else does.
    objective = Quadratics(jnp.eye(2))
    front = cProfile.Profile().runcall(evolve, objective, SMALL, 3, key=key)
    assert len(front) > 0
