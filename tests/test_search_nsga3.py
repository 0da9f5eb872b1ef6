"""The pieces of NSGA-III against pymoo, NumPy and the paper's own loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pymoo.algorithms.moo.nsga3 import associate_to_niches, niching
from pymoo.operators.crossover.sbx import cross_sbx
from pymoo.operators.mutation.pm import mut_pm
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from scipy.stats import ks_2samp

from mapjax.pareto import reference_directions
from mapjax.search._fronts import leading_fronts
from mapjax.search._niching import associate, niche_levels
from mapjax.search._normalize import extreme_points, front_width
from mapjax.search._random import random_words, uniform
from mapjax.search._variation import polynomial_mutation, simulated_binary_crossover


def points(seed, num=60, objectives=3):
    """Points of several fronts, in steps so coarse that some share a value."""
    random = np.random.default_rng(seed)
    return random.integers(0, 12, (num, objectives)).astype(np.float32)


@pytest.mark.parametrize("objectives", [2, 3, 5])
def test_leading_fronts_are_those_of_pymoo(objectives):
    fronts = jax.jit(leading_fronts, static_argnums=1)
    for seed in range(5):
        distinct = np.unique(points(seed, 400, objectives), axis=0)
        scores = np.random.default_rng(seed).permutation(distinct)[:40]
        ranks, last = fronts(jnp.asarray(scores.T), 20)
        expected = NonDominatedSorting().do(scores.astype(float), return_rank=True)[1]
        covered = np.sort(expected)[19]
        assert int(last) == covered
        expected = np.where(expected <= covered, expected, 40)
        np.testing.assert_array_equal(ranks, expected)


def test_copies_of_a_point_go_to_later_fronts():
    scores = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0], [1.0, 1.0]])
    ranks, last = leading_fronts(scores.T, 4)
    assert ranks.tolist() == [0, 1, 0, 2]
    assert int(last) == 2


def test_failures_come_last():
    scores = jnp.array([[jnp.inf, jnp.inf], [5.0, 5.0], [9.0, 9.0], [jnp.inf, jnp.inf]])
    assert leading_fronts(scores.T, 4)[0].tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize("objectives", [2, 4, 8])
def test_association_is_that_of_pymoo(objectives):
    random = np.random.default_rng(objectives)
    scores = random.uniform(size=(80, objectives)).astype(np.float32)
    directions = np.asarray(reference_directions(objectives, 30), np.float64)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    niche, distance = associate(jnp.asarray(scores.T), jnp.asarray(unit, jnp.float32))
    expected, expected_distance, _ = associate_to_niches(
        scores.astype(float), directions, np.zeros(objectives), np.ones(objectives)
    )
    np.testing.assert_array_equal(niche, expected)
    np.testing.assert_allclose(distance, expected_distance**2, rtol=1e-4, atol=1e-6)


def pymoo_niching(niche, distance, selected, candidate, places, directions, seed):
    counts = np.bincount(niche[selected], minlength=directions)
    taken = niching(
        np.flatnonzero(candidate),
        places,
        counts,
        niche[candidate],
        distance[candidate],
        random_state=np.random.default_rng(seed),
    )
    return np.flatnonzero(candidate)[taken]


def our_niching(niche, distance, selected, candidate, places, draw):
    level = niche_levels(*map(jnp.asarray, (niche, distance, selected, candidate, draw)))
    turn = np.where(candidate, level + draw, np.inf)
    return np.argsort(turn)[:places]


def niching_problem(seed):
    random = np.random.default_rng(seed)
    niche = random.integers(0, 10, 50)
    distance = random.uniform(size=50).astype(np.float32)
    front = random.integers(0, 3, 50)
    return niche, distance, front == 0, front == 1


@pytest.mark.parametrize("seed", range(5))
def test_niching_fills_niches_as_the_loop_of_the_paper(seed):
    niche, distance, selected, candidate = niching_problem(seed)
    places = candidate.sum() // 2
    problem = (niche, distance, selected, candidate, places)
    draw = np.random.default_rng(seed).uniform(0.01, 0.99, 50).astype(np.float32)
    ours, loop = our_niching(*problem, draw), pymoo_niching(*problem, 10, seed)
    assert len(set(ours)) == places
    assert candidate[ours].all()

    def members(taken):
        return np.sort(np.bincount(niche[np.r_[np.flatnonzero(selected), taken]]))

    np.testing.assert_array_equal(members(ours), members(loop))
    # A niche that was empty takes its closest candidate first.
    for empty in set(niche[ours]) - set(niche[selected]):
        own = np.flatnonzero(candidate & (niche == empty))
        assert own[np.argmin(distance[own])] in ours


def test_niching_takes_each_candidate_as_often_as_the_loop():
    problem = (*niching_problem(11), 6)
    draws = np.random.default_rng(0).uniform(size=(800, 50)).astype(np.float32)
    ours, loop = np.zeros(50), np.zeros(50)
    niche, distance, selected, candidate = map(jnp.asarray, problem[:4])
    levels = jax.jit(jax.vmap(niche_levels, (None, None, None, None, 0)))(
        niche, distance, selected, candidate, jnp.asarray(draws)
    )
    for seed, (draw, level) in enumerate(zip(draws, np.asarray(levels), strict=True)):
        ours[np.argsort(np.where(problem[3], level + draw, np.inf))[:6]] += 1
        loop[pymoo_niching(*problem, 10, seed)] += 1
    np.testing.assert_allclose(ours / 800, loop / 800, atol=0.09)


@pytest.mark.parametrize("objectives", [2, 3, 8])
def test_width_is_where_the_hyperplane_cuts_the_axes(objectives):
    random = np.random.default_rng(objectives)
    extreme = np.diag(random.uniform(1, 5, objectives)) + random.uniform(
        0, 0.1, (objectives, objectives)
    )
    ideal = random.normal(size=objectives)
    width = front_width(
        jnp.asarray((extreme + ideal).T, jnp.float32),
        jnp.asarray(ideal, jnp.float32),
        jnp.full(objectives, 100.0),
    )
    expected = 1 / np.linalg.solve(extreme, np.ones(objectives))
    np.testing.assert_allclose(width, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "extreme",
    [
        [[1.0, 1.0], [1.0, 1.0]],  # One point twice: no plane.
        [[0.0, 0.0], [0.0, 0.0]],  # The ideal point.
        [[jnp.inf, jnp.inf], [jnp.inf, jnp.inf]],  # No point.
        [[4.0, 1.0], [6.0, 1.0]],  # Parallel to an axis.
        [[3.0, 1.0], [5.0, 2.0]],  # Cuts an axis below the ideal point.
        [[9.0, 0.0], [0.0, 9.0]],  # Cuts both beyond the front.
    ],
)
def test_width_falls_back_to_the_worst_of_the_front(extreme):
    worst = jnp.array([2.0, 3.0])
    width = front_width(jnp.array(extreme).T, jnp.zeros(2), worst)
    np.testing.assert_array_equal(width, worst)


def test_a_constant_objective_has_width_one():
    width = front_width(jnp.ones((2, 2)), jnp.ones(2), jnp.array([4.0, 1.0]))
    np.testing.assert_array_equal(width, [3.0, 1.0])


@pytest.mark.parametrize("unit", [1e-20, 1e-8, 1e8])
def test_width_has_the_unit_of_each_objective(unit):
    extreme = jnp.array([[3.0, 0.5], [0.5, 2.0]]).T
    units, worst = jnp.array([1.0, unit]), jnp.array([4.0, 4.0])
    width = front_width(extreme, jnp.zeros(2), worst)
    found = front_width(units[:, None] * extreme, jnp.zeros(2), units * worst)
    np.testing.assert_allclose(found, units * width, rtol=1e-6)


def test_rounding_is_no_width():
    ideal, worst = jnp.array([1.0, 1000.0]), jnp.array([4.0, jnp.nextafter(1000.0, 2000.0)])
    width = front_width(jnp.stack([worst, worst]), ideal, worst)
    np.testing.assert_array_equal(width, [3.0, 1.0])


def test_extreme_points_minimise_the_achievement_function():
    scores, previous = points(0), np.full((3, 3), np.inf, np.float32)
    previous[:, 1] = [0, 0.25, 0]
    front = np.arange(60) % 2 == 0
    ideal, worst = scores.min(axis=0), scores[front].max(axis=0)
    arguments = (scores.T, front, ideal, worst, previous)
    extreme = np.asarray(extreme_points(*map(jnp.asarray, arguments)))
    pool = np.concatenate([previous.T[1:2], scores[front]])

    def distances(rows, axis):
        weights = np.where(np.arange(3) == axis, 1, 1e6)
        return ((rows - ideal) / (worst - ideal) * weights).max(axis=1)

    for axis in range(3):
        assert distances(extreme.T, axis)[axis] == distances(pool, axis).min()
    np.testing.assert_array_equal(extreme[:, 1], [0, 0.25, 0])


def test_extreme_points_do_not_hang_on_the_last_digits():
    scores = jnp.array([[1e-5, 0.0, 1.0], [3.0, 4.0, 0.0]])
    ends = (jnp.zeros(2), jnp.array([1.0, 4.0]))
    none = jnp.full((2, 2), jnp.inf)
    extreme = extreme_points(scores, jnp.ones(3, bool), *ends, none)
    np.testing.assert_array_equal(extreme, scores[:, jnp.array([2, 0])])


def same_distribution(one, other):
    """Kolmogorov and Smirnov's test, whose p-value SciPy's stubs do not know."""
    return float(np.asarray(ks_2samp(one, other))[1]) > 0.01


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.5), (0.02, 0.9), (0.7, 1.0)])
def test_crossover_has_the_distribution_of_pymoo(first, second):
    num, eta = 4000, 15.0
    children = simulated_binary_crossover(
        jnp.full((num, 4), first),
        jnp.full((num, 4), second),
        rate=jnp.asarray(1.0),
        eta=jnp.asarray(eta),
        key=jax.random.key(3),
    )
    children = np.asarray(children).ravel()
    assert np.mean(children == np.float32(first)) == pytest.approx(0.5, abs=0.02)
    crossed = children[children != np.float32(first)]
    parents = np.stack([np.full((num, 1), first), np.full((num, 1), second)])
    column = np.ones((num, 1))
    theirs = cross_sbx(
        parents,
        np.zeros(1),
        np.ones(1),
        eta * column,
        1.0 * column,
        0.5 * column,
        random_state=np.random.default_rng(0),
    )
    assert same_distribution(crossed, theirs.ravel())
    assert children.min() >= 0
    assert children.max() <= 1


def test_crossover_leaves_uncrossed_pairs_and_equal_parents_alone():
    same = jnp.array([[0.0, 1.0, 0.25]] * 50)
    arguments = {"eta": jnp.asarray(20.0), "key": jax.random.key(0)}
    child = simulated_binary_crossover(same, same, rate=jnp.asarray(1.0), **arguments)
    np.testing.assert_array_equal(child, same)
    other = simulated_binary_crossover(same, 1 - same, rate=jnp.asarray(0.0), **arguments)
    np.testing.assert_array_equal(other, same)


def test_offspring_of_parents_next_to_a_bound_are_finite():
    ends = jnp.array(
        [0.0, 1e-38, 1e-7, 0.5, *(1 - odd * 2.0**-24 for odd in (13, 5, 1, 0))]
    )
    first, second = (x.ravel() for x in jnp.meshgrid(ends, ends))
    for seed in range(20):
        child = simulated_binary_crossover(
            *(jnp.tile(x[:, None], (1, 50)) for x in (first, second)),
            rate=jnp.asarray(1.0),
            eta=jnp.asarray(30.0),
            key=jax.random.key(seed),
        )
        child = polynomial_mutation(
            child, rate=jnp.asarray(0.5), eta=jnp.asarray(20.0), key=jax.random.key(seed)
        )
        assert bool(jnp.all((child >= 0) & (child <= 1)))


@pytest.mark.parametrize("parent", [0.0, 0.1, 0.6, 1.0])
def test_mutation_has_the_distribution_of_pymoo(parent):
    num, eta = 6000, 20.0
    mutants = polynomial_mutation(
        jnp.full((num, 2), parent),
        rate=jnp.asarray(0.5),
        eta=jnp.asarray(eta),
        key=jax.random.key(5),
    )
    mutants = np.asarray(mutants).ravel()
    theirs = mut_pm(
        np.full((num, 1), parent),
        np.zeros(1),
        np.ones(1),
        np.full(num, eta),
        np.ones(num),
        at_least_once=False,
        random_state=np.random.default_rng(0),
    ).ravel()
    changed = mutants[mutants != np.float32(parent)]
    unchanged = np.mean(theirs == parent) / 2
    assert np.mean(mutants == np.float32(parent)) == pytest.approx(
        0.5 + unchanged, abs=0.02
    )
    assert same_distribution(changed, theirs[theirs != parent])
    assert mutants.min() >= 0
    assert mutants.max() <= 1


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_random_words_are_uniform_and_without_a_common_pattern(kind):
    keys = [jax.random.key(i, impl=kind) for i in range(3)]
    arrays = [
        np.asarray(uniform(words, jnp.float32)).ravel()
        for key in keys
        for stream in (0, 1)
        for words in random_words(key, (100, 50), 2, stream=stream)
    ]
    for array in arrays:
        assert array.min() > 0
        assert array.max() < 1
        counts = np.histogram(array, 50, (0, 1))[0]
        assert abs(counts - 100).max() < 50
        assert abs(np.corrcoef(array[1:], array[:-1])[0, 1]) < 0.05
    correlation = np.corrcoef(arrays) - np.eye(len(arrays))
    assert abs(correlation).max() < 0.06
