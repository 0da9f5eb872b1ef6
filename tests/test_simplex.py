"""Drivers on mixtures of the experts: coefficients that sum to one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax import design
from mapjax._run import Run
from mapjax.surrogate import num_unknowns
from mapjax.surrogate._quadratic import quadratic_features

KEY = jax.random.key(0)
WANTED = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], np.float32)


def two_wishes(c):
    """Two tasks that each want a mixture; the distance is that of proportions."""
    shares = np.asarray(c) / np.asarray(c).sum(axis=1, keepdims=True)
    gaps = shares[:, None] - WANTED
    return 1 - (gaps**2).sum(axis=2)


def on_simplex(c, atol=1e-5):
    c = np.asarray(c)
    return (c >= 0).all() and np.allclose(c.sum(axis=1), 1, atol=atol)


@pytest.mark.parametrize("name", ["dirichlet", "simplex_lattice"])
@pytest.mark.parametrize(("n", "groups"), [(2, 1), (4, 1), (3, 2)])
def test_a_design_of_mixtures_starts_with_the_experts_and_their_mean(name, n, groups):
    points = np.asarray(
        design.make_design(name, 30, n * groups, bounds="simplex", num_experts=n, key=KEY)
    )
    each = points.reshape(30, n, groups)
    np.testing.assert_array_equal(each[:n], np.repeat(np.eye(n)[..., None], groups, axis=2))
    np.testing.assert_allclose(each[n], 1 / n, rtol=1e-6)
    assert (each >= 0).all()
    np.testing.assert_allclose(each.sum(axis=1), 1, atol=1e-5)
    gaps = np.abs(points[:, None] - points).max(axis=2) + np.eye(30)
    assert gaps.min() > 1e-5
    if groups > 1 and name == "dirichlet":  # each group is drawn for itself
        assert np.abs(each[n + 1 :, :, 0] - each[n + 1 :, :, 1]).max() > 0.1


def test_mixtures_are_even_on_the_simplex():
    points = design.make_design("dirichlet", 4000, 3, bounds="simplex", key=KEY)
    # The marginals of a flat Dirichlet distribution: Beta(1, 2).
    c = np.sort(np.asarray(points), axis=0)
    ranks = (np.arange(4000) + 0.5) / 4000
    np.testing.assert_allclose(1 - (1 - c) ** 2, np.stack([ranks] * 3, axis=1), atol=0.04)


def test_enough_mixtures_determine_a_quadratic_of_what_is_free():
    n = 4
    points = np.asarray(
        design.make_design("dirichlet", n * (n + 1) // 2, n, bounds="simplex", key=KEY)
    ).astype(float)
    free = points[:, :-1]
    i, j = np.triu_indices(n - 1)
    basis = np.column_stack([np.ones(len(free)), free, free[:, i] * free[:, j]])
    assert np.linalg.matrix_rank(basis) == basis.shape[1] == n * (n + 1) // 2


def test_to_simplex_is_a_quotient():
    c = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    c[0, :2] = 0
    each = c.reshape(5, 3, 2)
    wanted = (each / each.sum(axis=1, keepdims=True)).reshape(5, 6)
    np.testing.assert_allclose(design.to_simplex(c, num_experts=3), wanted, rtol=1e-6)
    np.testing.assert_allclose(design.to_simplex(np.zeros(4)), 0.25)
    np.testing.assert_allclose(design.to_simplex(np.array([-1.0, 2.0, 2.0])), [0, 0.5, 0.5])
    assert np.isnan(design.to_simplex(np.array([np.nan, 1.0]))).all()
    jacobian = jax.jacobian(design.to_simplex)
    assert jnp.isfinite(jacobian(jnp.zeros(3))).all()
    # At an expert, where two coefficients are zero: the slopes from inside.
    wanted = np.array([[0, -1, -1], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(jacobian(jnp.array([1.0, 0.0, 0.0])), wanted, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"`num_experts` is 2, but must .* coefficients, 5"
    ):
        design.to_simplex(np.ones(5), 2)


@pytest.mark.parametrize("driver", [partial(mj.map_front, rounds=1), mj.bayesian_front])
@pytest.mark.slow
def test_the_front_of_mixtures_is_the_segment_between_two_wishes(driver):
    solution = driver(two_wishes, num_coefficients=3, bounds="simplex", budget=14, key=KEY)
    assert solution.result == mj.RESULTS.successful  # not rank-deficient: two are free
    assert on_simplex(solution.samples.coefficients)
    assert on_simplex(solution.front.coefficients)
    np.testing.assert_allclose(
        two_wishes(solution.front.coefficients), solution.front.scores, atol=1e-2
    )
    first, second = WANTED
    along = (solution.front.coefficients - first) @ (second - first)
    along = np.asarray(along / ((second - first) ** 2).sum())
    nearest = first + along[:, None] * (second - first)
    assert np.abs(solution.front.coefficients - nearest).max() < 0.05
    assert along.min() < 0.05
    assert along.max() > 0.95
    assert solution.references() == {"c0": 0, "c1": 1, "c2": 2, "uniform": 3}


@pytest.mark.parametrize(("n", "samples"), [(3, 8), (8, 45)])
def test_a_quadratic_of_mixtures_is_recovered(n, samples):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, n)), rng.normal(size=n)
    points = design.make_design("dirichlet", samples + 300, n, bounds="simplex", key=KEY)
    c = np.asarray(points, float)
    truth = 1 + c @ b + np.einsum("ki,ij,kj->k", c, a, c)
    scores = truth[:samples, None].astype(np.float32)
    fitted = mj.surrogate.fit_quadratic(points[:samples], scores, num_tied=1)
    assert int(fitted.rank[0]) == n * (n + 1) // 2
    assert 1 < float(fitted.condition_number[0]) < 1e3
    error = np.abs(np.asarray(fitted(points[samples:]))[:, 0] - truth[samples:])
    assert error.max() < 1e-4 * np.ptp(truth)
    with pytest.raises(ValueError, match=f"`num_tied` is {n}, but must be from 0"):
        mj.surrogate.fit_quadratic(points[:samples], scores, num_tied=n)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("m", [2, 3, 5])
@pytest.mark.parametrize("low_rank", [False, True])
def test_unknowns_on_the_simplex_are_the_rank_of_the_features(m, groups, low_rank):
    n = m * groups
    experts = m if low_rank and groups > 1 else None
    count = num_unknowns(n, experts, groups)
    drawn = np.random.default_rng(0).dirichlet(np.ones(m), (count + 20, groups))
    c = drawn.swapaxes(1, 2).reshape(count + 20, n)
    features = quadratic_features(jnp.asarray(c), experts)
    matrix = np.column_stack([np.ones(len(c)), np.asarray(features, float)])
    assert np.linalg.matrix_rank(matrix, tol=1e-5) == count


def evaluator_of(rule):
    tasks = [
        mj.Task(f"t{i}", lambda p, x: x @ p, np.eye(2, dtype="f"), target.astype("f"),
                metric=mj.metrics.mean_squared_error)
        for i, target in enumerate(np.eye(2))
    ]  # fmt: skip
    return mj.Evaluator(rule, tasks)


def test_a_rule_of_proportions_is_searched_on_the_simplex_by_default():
    tv = mj.TaskVectors.from_params(jnp.zeros(2), list(2 * jnp.eye(2)))
    rule = mj.rules.weighted_average(tv)
    assert evaluator_of(rule).bounds == "simplex"
    assert evaluator_of(rule.scaled()).bounds == evaluator_of(tv).bounds == (0.0, 1.0)
    assert Run(evaluator_of(rule), budget=3, key=KEY).domain.num_tied == 1
    assert Run(evaluator_of(rule), budget=3, key=KEY, bounds=(0, 1)).domain.num_tied == 0
    alone = mj.TaskVectors.from_params(jnp.zeros(2), [jnp.ones(2)])
    assert mj.rules.weighted_average(alone).bounds == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("acquisition", ["hypervolume", "cells"])
def test_groups_are_mixed_each_for_itself(acquisition):
    x = np.eye(4, dtype=np.float32)
    tv = mj.TaskVectors.from_params(
        {"a": jnp.zeros(2), "b": jnp.zeros(2)},
        [{"a": jnp.full(2, i), "b": jnp.full(2, i**2)} for i in (1.0, 2.0, 3.0)],
    )
    grouped = mj.group(tv, by=lambda path: path)
    tasks = [
        mj.Task(name, lambda p, x: x @ jnp.concatenate([p["a"], p["b"]]), x, target * x[0],
                metric=mj.metrics.mean_squared_error)
        for name, target in (("low", 1.0), ("high", 2.5))
    ]  # fmt: skip
    solution = mj.bayesian_front(
        mj.Evaluator(mj.rules.weighted_average(grouped), tasks),
        budget=17,
        acquisition=acquisition,
        surrogate="quadratic",
        num_points=20,
        key=KEY,
    )
    assert solution.result == mj.RESULTS.successful  # 15 unknowns: two sums are fixed
    for c in (solution.samples.coefficients, solution.front.coefficients):
        np.testing.assert_allclose(c.reshape(-1, 3, 2).sum(axis=1), 1, atol=1e-5)


ASKED = {"num_coefficients": 3, "budget": 10, "key": KEY, "bounds": "simplex"}


@pytest.mark.parametrize(
    ("driver", "change", "words"),
    [
        (mj.map_front, {"budget": 3}, "the uniform merge and 3 experts alone take 4"),
        (mj.map_front, {"design": "sobol"}, "'sobol', whose points do not sum"),
        (mj.map_front, {"bounds": "box"}, "`bounds` is 'box', but must be"),
        (mj.nested_front, {}, "`bounds` is 'simplex', but a tree chooses"),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_any_evaluation(driver, change, words):
    def never(c):
        raise AssertionError("evaluated")

    with pytest.raises(ValueError, match=words):
        driver(never, **(ASKED | change))


def test_one_expert_makes_no_mixtures():
    with pytest.raises(ValueError, match="two experts or more"):
        design.make_design("dirichlet", 3, 1, bounds="simplex", key=KEY)
    with pytest.raises(ValueError, match=r"is 'ball', but must be .* take 'simplex'"):
        design.make_design("dirichlet", 3, 2, bounds="ball", key=KEY)


@pytest.mark.slow
def test_a_run_on_the_simplex_goes_on_where_it_was_interrupted(tmp_path):
    calls = []

    def counted(c):
        calls.append(len(c))
        return two_wishes(c)

    options = ASKED | {"save_to": tmp_path / "samples.jsonl"}
    first = mj.map_front(counted, **options)
    done = sum(calls)
    again = mj.map_front(counted, **options)
    assert sum(calls) == done == 10
    np.testing.assert_array_equal(first.front.coefficients, again.front.coefficients)


@pytest.mark.parametrize(("n", "groups"), [(2, 1), (5, 1), (3, 2)])
def test_an_axial_design_goes_both_ways_from_the_uniform_mixture(n, groups):
    points = np.asarray(
        design.make_design(
            "axial", 30, n * groups, bounds="simplex", num_experts=n, key=KEY
        )
    )
    each = points.reshape(30, n, groups).astype(float)
    np.testing.assert_allclose(each[0], 1 / n, rtol=1e-6)
    for i in range(n):
        others = np.arange(n) != i
        without, towards = each[1 + i], each[1 + n + i]
        np.testing.assert_allclose(without[i], 0.2 / n, rtol=1e-5)
        np.testing.assert_allclose(without[others], (1 - 0.2 / n) / (n - 1), rtol=1e-5)
        np.testing.assert_allclose(towards[i], 0.5 + 0.5 / n, rtol=1e-5)
        np.testing.assert_allclose(towards[others], 0.5 / n, rtol=1e-5)
    assert (each >= 0).all()
    np.testing.assert_allclose(each.sum(axis=1), 1, atol=1e-5)
    if groups > 1:  # what is random is drawn for each group
        assert np.abs(each[2 * n + 1 :, :, 0] - each[2 * n + 1 :, :, 1]).max() > 0.1


class Preferring:
    """A rule that says where drivers begin."""

    num_coefficients = 3
    coefficient_names = ("a", "b", "c")
    bounds = "simplex"
    design = "axial"

    def __call__(self, c):
        return c


@pytest.mark.parametrize("driver", [mj.map_front, mj.bayesian_front])
@pytest.mark.slow
def test_a_rule_says_where_drivers_begin(driver):
    def predict(params, x):
        return -((params - x) ** 2)

    total = mj.metrics.Metric(lambda outputs, _: 1 + outputs.sum(axis=-1).mean())
    tasks = [
        mj.Task(name, predict, wanted[None], np.zeros(1), metric=total)
        for name, wanted in zip("ab", WANTED, strict=True)
    ]
    evaluator = mj.Evaluator(Preferring(), tasks)
    axial = design.make_design("axial", 8, 3, bounds="simplex", key=KEY)
    for budget, first in (
        (4, 4),
        (8, 7),
    ):  # the middle of the design at least, then all of it
        found = driver(evaluator, budget=budget, key=KEY, num_generations=5)
        np.testing.assert_allclose(
            found.samples.coefficients[:first], axial[:first], atol=1e-6
        )
    assert found.references() == {"uniform": 0}
    assert (
        found.hypervolume(verified=False) > 0
    )  # without the experts, from the worst sample
    # A rule's design is for its own domain, said or not.
    said = driver(evaluator, budget=4, key=KEY, num_generations=5, bounds="simplex")
    np.testing.assert_allclose(said.samples.coefficients, axial[:4], atol=1e-6)
    for bounds, asked in (((0.0, 1.0), None), (None, "dirichlet")):
        found = driver(
            evaluator, budget=4, key=KEY, num_generations=5, bounds=bounds, design=asked
        )
        assert {*"abc"} <= {*found.references()}


@pytest.mark.slow
def test_what_another_design_has_left_in_the_file_is_paid_for(tmp_path):
    path, made = tmp_path / "samples.jsonl", []

    def evaluate(c):
        made.extend(np.asarray(c))
        return two_wishes(c)

    run = partial(
        mj.map_front,
        evaluate,
        num_coefficients=3,
        bounds="simplex",
        num_generations=5,
        key=KEY,
        save_to=path,
    )
    run(budget=10, design="dirichlet")
    assert len(made) == 10
    # Of the start it shares the uniform mixture alone.
    run(budget=14, design="axial")
    assert len(made) == 14
