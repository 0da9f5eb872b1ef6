"""Nested MAP: trees of merges of two, on problems whose best merges are known."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import mapjax as mj
from mapjax._nested._pairing import closest_pairs, pairs_of_tree, read_pairing

KEY = jax.random.key(0)
FOUR: dict[str, Any] = dict(num_coefficients=4, key=KEY, num_points=20, budget=29)


def corners(c):
    """Score merges so that every task wants its own expert alone."""
    c = np.asarray(c, float)
    return -((c[:, None] - np.eye(c.shape[1])) ** 2).sum(axis=2)


def bumps(c):
    """Score merges by no quadratics, with experts that help or hinder each other."""
    c = np.asarray(c, float)
    n = c.shape[1]
    mix = np.eye(n) + 0.4 * np.random.default_rng(0).normal(size=(n, n)) / np.sqrt(n)
    gaps = np.einsum("ktn,nm->ktm", c[:, None] - 0.9 * np.eye(n), mix)
    return np.exp(-0.7 * (gaps**2).sum(axis=2))


@pytest.fixture(scope="module")
def evaluator():
    """Four small classifiers: the experts of four labellings of the same points."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)).astype(np.float32)
    weights = rng.normal(size=(4, 6, 3)).astype(np.float32)
    base = {"w": 0.2 * weights.mean(axis=0)}
    vectors = mj.TaskVectors.from_params(
        base, {name: {"w": w} for name, w in zip("abcd", weights, strict=True)}
    )
    tasks = [
        mj.Task(name, lambda p, x: x @ p["w"], x, np.argmax(x @ w, axis=1))
        for name, w in zip("abcd", weights, strict=True)
    ]
    return mj.Evaluator(vectors, tasks)


@pytest.mark.parametrize("method", ["composed", "paper"])
def test_the_merge_of_quadratics_is_the_best_there_is(method):
    preference = np.array([0.4, 0.3, 0.2, 0.1])
    solution = mj.nested_front(corners, preference=preference, method=method, **FOUR)
    # max_c -sum_t w_t |c - e_t|^2 is at c = w, and the tree's path leads there.
    np.testing.assert_allclose(solution.pick(preference), preference, atol=0.015)
    assert len(solution.front) == 1
    assert solution.result == mj.RESULTS.successful
    c = np.asarray(solution.front.coefficients)
    np.testing.assert_allclose(solution.front.scores, corners(c), atol=1e-4)


def test_the_path_composes_to_the_coefficients_exactly():
    weights = dict(zip("wxyz", [0.1, 0.2, 0.3, 0.4], strict=True))
    solution = mj.nested_front(bumps, preference=weights, task_names=list("wxyz"), **FOUR)
    rows: dict[Any, Any] = {f"c{i}": np.eye(4)[i] for i in range(4)}
    for first, second, (x, y) in solution.stats["path"]:
        rows[(first, second)] = x * rows[first] + y * rows[second]
    composed = rows[solution.stats["tree"]]
    np.testing.assert_array_equal(solution.pick(weights), composed.astype(np.float32))


@pytest.mark.parametrize("method", ["composed", "paper"])
@pytest.mark.slow
def test_a_tree_comes_near_the_best_merge_of_all_coefficients(method):
    preference = np.random.default_rng(3).dirichlet(np.ones(6))
    options: dict[str, Any] = dict(num_coefficients=6, key=KEY, method=method, budget=60)
    solution = mj.nested_front(bumps, preference=preference, **options)

    def loss(c):
        return -float(bumps(c[None])[0] @ preference)

    starts = [np.full(6, 1 / 6), *np.eye(6)]
    best = min(minimize(loss, x, bounds=[(0, 1)] * 6).fun for x in starts)
    expert = min(loss(x) for x in np.eye(6))
    found = loss(np.asarray(solution.pick(preference), float))
    assert found < expert - 0.5 * (expert - best)  # most of what can be gained
    assert found < best + 0.03


@pytest.mark.slow
def test_evaluations_grow_as_n_log_n():
    counts = {}
    for n in (16, 32):
        calls = []

        def evaluate(c, calls=calls):
            calls.append(len(c))
            return corners(c)

        wanted = np.ones(n)
        solution = mj.nested_front(evaluate, num_coefficients=n, preference=wanted, key=KEY)
        counts[n] = sum(calls)
        assert counts[n] == solution.stats["num_evaluations"] == len(solution.samples)
        assert 0 < counts[n] <= max(n + 1 + 2 * n * math.log2(n), 8 * n)
        np.testing.assert_allclose(solution.pick(wanted), 1 / n, atol=0.03)
        # Most of them are for a few tasks only.
        assert solution.stats["num_task_scores"] < 0.8 * n * counts[n]
    print("evaluations", counts)
    # A quadratic of all coefficients takes (N + 1)(N + 2) / 2 at the least.
    assert counts[32] < 0.7 * 33 * 34 / 2
    assert counts[32] / counts[16] < 1.2 * 32 * 5 / (16 * 4)


@pytest.mark.slow
def test_samples_of_another_run_are_fitted_too(evaluator, tmp_path):
    asked: dict[str, Any] = dict(budget=12, num_points=20, save_to=tmp_path / "s.jsonl")
    mj.nested_front(evaluator, key=KEY, **asked)
    solution = mj.nested_front(evaluator, key=jax.random.key(7), **asked)
    assert solution.stats["num_reused"] == 12
    assert len(solution.samples) > 12
    assert np.isfinite(solution.front.scores).all()


def test_a_front_of_many_preferences_shares_its_evaluations():
    solution = mj.nested_front(corners, **{**FOUR, "budget": 120})
    one = mj.nested_front(corners, preference=np.ones(4), **FOUR)
    assert len(solution.samples) <= 120
    assert len(solution.front) > 10
    assert len(solution.front) * (len(one.samples) - 5) > 120
    c, scores = (
        np.asarray(x) for x in (solution.front.coefficients, solution.front.scores)
    )
    np.testing.assert_allclose(scores, corners(c), atol=5e-3)
    assert np.asarray(mj.pareto.non_dominated(-scores)).all()
    for task in range(4):  # each task alone is among the preferences
        np.testing.assert_allclose(
            solution.pick(np.eye(4)[task]), np.eye(4)[task], atol=0.05
        )
    np.testing.assert_allclose(solution.pick(np.ones(4)), 0.25, atol=0.05)


@pytest.mark.slow
def test_outputs_predict_a_front_with_deviations(evaluator):
    solution = mj.nested_front(evaluator, budget=21, num_points=30, verify=3, key=KEY)
    assert isinstance(solution.surrogate, mj.surrogate.OutputSurrogate)
    assert 21 < solution.stats["num_evaluations"] <= 24
    front = solution.front
    assert front.std is not None
    assert front.probability is not None
    assert np.isfinite(np.asarray(front.std)).all()
    # Scores are steps of one example in sixty; rounding may move a step or two.
    again = np.asarray(solution.surrogate(front.coefficients))
    assert np.abs(again - np.asarray(front.scores)).max() <= 2.1 / 60
    # What is predicted is nearly what is measured, and nearly the best of 1,000 merges.
    real = np.asarray(evaluator(front.coefficients))
    assert np.abs(real - np.asarray(front.scores)).mean() < 0.05
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(4), 100)
    picked = np.argmax(weights @ np.asarray(front.scores).T, axis=1)
    reached = np.sum(weights * real[picked], axis=1)
    others = np.asarray(evaluator(rng.random((1000, 4)) * rng.random((1000, 1))))
    assert np.mean(np.max(weights @ others.T, axis=1) - reached) < 0.02
    assert solution.verified is not None


@pytest.mark.slow
def test_the_base_and_the_experts_are_enough_with_outputs(evaluator):
    solution = mj.nested_front(evaluator, budget=5, preference={"a": 1, "b": 1}, key=KEY)
    assert solution.stats["num_evaluations"] == 5
    c = np.asarray(solution.pick())
    half = np.asarray(evaluator(c[None]))[0, :2].mean()
    known = np.asarray(solution.samples.scores)[:, :2].mean(axis=1)
    assert half >= known.max() - 1e-6


def test_the_same_key_gives_the_same_and_a_second_run_evaluates_nothing(tmp_path):
    calls = []

    def evaluate(c):
        calls.append(len(c))
        return bumps(c)

    options: dict[str, Any] = dict(
        preference=[1, 2, 3, 4], save_to=tmp_path / "samples.jsonl", **FOUR
    )
    first = mj.nested_front(evaluate, **options)
    made = sum(calls)
    del options["save_to"]
    again = mj.nested_front(evaluate, **options)
    np.testing.assert_array_equal(first.samples.coefficients, again.samples.coefficients)
    np.testing.assert_array_equal(first.pick(), again.pick())
    assert made == len(first.samples) == sum(calls) / 2


def test_minimised_tasks_and_other_boxes():
    solution = mj.nested_front(
        lambda c: -corners(c), preference=np.ones(4), directions="minimize", **FOUR
    )
    np.testing.assert_allclose(solution.pick(), 0.25, atol=0.02)
    wide = mj.nested_front(
        lambda c: corners(-np.asarray(c)),
        preference=np.ones(4),
        bounds=(-1.0, 0.1),
        **FOUR,
    )
    np.testing.assert_allclose(wide.pick(), -0.25, atol=0.03)
    tight = mj.nested_front(corners, preference=np.ones(4), bounds=(0.0, 0.2), **FOUR)
    np.testing.assert_allclose(tight.pick(), 0.2, atol=1e-5)


def test_scores_that_fail_are_left_out_and_kept():
    def evaluate(c):
        scores = bumps(c)
        scores[np.asarray(c).sum(axis=1) > 1.5] = np.nan
        return scores

    with pytest.warns(UserWarning, match="Some scores were NaN"):
        solution = mj.nested_front(evaluate, preference=np.ones(4), **FOUR)
    assert solution.result == mj.RESULTS.nonfinite_scores
    assert np.isfinite(evaluate(np.asarray(solution.pick())[None])).all()
    with pytest.raises(ValueError, match="no finite score at all") as caught:
        mj.nested_front(lambda c: corners(c) * [1, 1, 1, np.nan], **FOUR)
    assert len(vars(caught.value)["samples"]) == 5
    with pytest.warns(UserWarning, match="no finite score at all"):
        solution = mj.nested_front(
            lambda c: corners(c) * [1, 1, 1, np.nan], throw=False, **FOUR
        )
    assert len(solution.front) == 0


def test_pairs_are_the_closest_by_brute_force():
    rng = np.random.default_rng(0)
    for n in (2, 5, 8):
        x = rng.normal(size=n)
        pairs, left = closest_pairs(np.abs(np.subtract.outer(x, x)))
        assert sorted([*itertools.chain(*pairs), *left]) == list(range(n))
        assert len(left) == n % 2
        nearest = min(
            itertools.combinations(range(n), 2), key=lambda p: abs(x[p[0]] - x[p[1]])
        )
        assert pairs[0] == nearest


@pytest.mark.slow
def test_pairings_by_cosine_or_given(evaluator):
    solution = mj.nested_front(evaluator, budget=5, pairing="cosine", num_points=5, key=KEY)
    cosines = np.array(evaluator.rule.args[0].cosine_similarity())
    np.fill_diagonal(cosines, -2)
    closest = tuple("abcd"[i] for i in np.unravel_index(cosines.argmax(), (4, 4)))
    assert closest in solution.stats["tree"]
    for given, tree in (
        ([("a", "d"), ("b", "c")], (("a", "d"), ("b", "c"))),
        ((("c", "a"), "b", "d"), ((("c", "a"), "b"), "d")),
        (["d", 2, 1, 0], (("d", "c"), ("b", "a"))),
    ):
        options: dict[str, Any] = dict(preference=np.ones(4), key=KEY)
        solution = mj.nested_front(evaluator, budget=5, pairing=given, **options)
        assert solution.stats["tree"] == tree
    assert pairs_of_tree(((0, 1), (2, 3)), [(0, 1), 2, 3]) == ([(1, 2)], [0])
    assert read_pairing((("x",), "y"), ["x", "y"]) == (0, 1)


def test_owners_say_whose_tasks_are_whose():
    """Five tasks of four experts: two of the last, and one of everybody."""

    def evaluate(c):
        scores = corners(c)
        return np.concatenate([scores, scores[:, 3:], -(np.asarray(c) ** 2)[:, :1]], axis=1)

    names = ["p", "q", "r", "s", "t", "all"]
    owners = {"p": "c0", "q": "c1", "r": "c2", "s": "c3", "t": "c3"}
    preference = {"p": 1, "q": 1, "r": 1, "s": 1, "t": 1}
    solution = mj.nested_front(
        evaluate, owners=owners, task_names=names, preference=preference, **FOUR
    )
    np.testing.assert_allclose(solution.pick(), [0.2, 0.2, 0.2, 0.4], atol=0.02)
    with pytest.raises(ValueError, match=r"6 tasks for 4 experts.*pass `owners`"):
        mj.nested_front(evaluate, task_names=names, **FOUR)
    with pytest.raises(ValueError, match=r"`owners` names \['u'\], expected tasks"):
        mj.nested_front(evaluate, task_names=names, owners={"u": "c0"}, **FOUR)
    with pytest.raises(ValueError, match=r"`owners` names \['c9'\], expected tasks"):
        mj.nested_front(evaluate, task_names=names, owners={"p": "c9"}, **FOUR)
    with pytest.raises(ValueError, match="pass `task_names`"):
        mj.nested_front(evaluate, owners={"p": "c0"}, **FOUR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="best"), "`method` is 'best'; choose from 'composed', 'paper'"),
        (dict(method="paper"), "pass `preference`, or method='composed'"),
        (
            dict(method="paper", preference=[1, 1, 1, 1], surrogate="outputs"),
            "which fits quadratics, but `surrogate` is 'outputs'",
        ),
        (dict(surrogate="gradient"), "use 'outputs' or 'quadratic'"),
        (dict(surrogate="outputs"), "a plain function"),
        (dict(preference=[1, 1]), r"is \[1, 1\]: pass a number for each of the tasks"),
        (dict(preference=["a", 1, 1, 1]), r"is \['a', 1, 1, 1\]: pass a number for each"),
        (dict(preference={"task_9": 1, 0: 1}), r"names \['task_9', 0\]; the tasks are"),
        (dict(preference={"task_9": 1}), r"names \['task_9'\]; the tasks are"),
        (dict(preference=[1, 1, 1, -1]), "`preference` holds -1.0 at position 3"),
        (dict(preference=[1, 1, 1, np.nan]), "`preference` holds nan at position 3"),
        (dict(preference=[0, 0, 0, 0]), "`preference` is 0 for every objective"),
        (dict(pairing="metric"), "use 'scores', 'cosine' or nested pairs"),
        (dict(pairing="cosine"), "not a `mapjax.Evaluator` of a `mapjax.TaskVectors`"),
        (dict(pairing=[("c0", "c1"), "c2"]), r"\['c3'\] are missing or come twice"),
        (dict(pairing=["c0", "c0", "c1", "c2", "c3"]), r"\['c0'\] are missing or come"),
        (dict(pairing=["c0", "x"]), "names 'x', which is no expert"),
        (dict(pairing=["c0", ()]), "an empty group"),
        (dict(budget=10), "and 5 in each plane of two merges take at least 29 evaluations"),
        (dict(budget=0), "`budget` is 0, but must be an int of at least 1"),
        (dict(verify=-1), "`verify` is -1"),
        (dict(num_coefficients=1), "a tree merges at least two"),
        (dict(key=0), "must be one typed key"),
    ],
)
def test_errors_come_before_any_evaluation(options, message):
    def evaluate(c):
        raise AssertionError("evaluated")

    with pytest.raises(ValueError, match=message):
        mj.nested_front(evaluate, **{**FOUR, **options})


def test_a_function_with_another_number_of_tasks_is_told_so():
    with pytest.raises(ValueError, match="for 4 tasks"):
        mj.nested_front(lambda c: jnp.zeros((len(c), 3)), **FOUR)
