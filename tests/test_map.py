"""MAP end to end, on problems whose fronts are known."""

import json
import logging
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax import RESULTS

KEY = jax.random.key(0)
ASKED: dict[str, Any] = dict(
    num_coefficients=2, budget=12, key=KEY, num_generations=150, num_points=40
)


def two_corners(c):
    """Score merges so that the front is the segment from (0, 0) to (1, 1)."""
    c = np.asarray(c)
    return np.stack([1 - (c**2).sum(axis=1), 1 - ((1 - c) ** 2).sum(axis=1)], axis=1)


def test_finds_a_front_that_is_known():
    solution = mj.map_front(two_corners, verify=5, **ASKED)
    assert solution.result == RESULTS.successful
    np.testing.assert_allclose(solution.stats["r2"], 1, atol=1e-4)
    # Pareto-optimal merges have equal coefficients.
    c = np.asarray(solution.front.coefficients)
    assert np.abs(c[:, 0] - c[:, 1]).max() < 0.15
    assert c.min() < 0.03
    assert c.max() > 0.97
    np.testing.assert_allclose(solution.front.scores, two_corners(c), atol=2e-3)
    # Brute force: no point of a fine grid dominates a point of the front by more than that.
    axis = np.linspace(0, 1, 101)
    grid = two_corners(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    better = (grid[:, None] > np.asarray(solution.front.scores) + 5e-3).all(axis=2)
    assert not better.any()


def test_the_samples_are_all_there_and_the_references_first():
    solution = mj.map_front(two_corners, verify=5, **ASKED)
    c = np.asarray(solution.samples.coefficients)
    np.testing.assert_array_equal(c[:3], [[0, 0], [1, 0], [0, 1]])
    np.testing.assert_array_equal(c[3], [0.5, 0.5])
    assert solution.references() == {"base": 0, "c0": 1, "c1": 2, "uniform": 3}
    assert solution.stats["num_evaluations"] == len(solution.samples) == 12 + 5
    assert solution.num_verified == 5
    np.testing.assert_allclose(
        solution.samples.scores, two_corners(c), rtol=1e-5, atol=1e-6
    )
    assert solution.verified is not None
    kept = np.asarray(mj.pareto.non_dominated(-solution.samples.scores))
    np.testing.assert_array_equal(solution.verified.scores, solution.samples.scores[kept])
    assert mj.map_front(two_corners, **ASKED).verified is None


def test_the_same_key_gives_the_same_solution_and_another_key_another():
    first = mj.map_front(two_corners, verify=2, **ASKED)
    again = mj.map_front(two_corners, verify=2, **ASKED)
    np.testing.assert_array_equal(first.front.coefficients, again.front.coefficients)
    np.testing.assert_array_equal(first.samples.coefficients, again.samples.coefficients)
    other = mj.map_front(two_corners, **{**ASKED, "key": jax.random.key(1)})
    assert not np.array_equal(first.samples.coefficients[:12], other.samples.coefficients)


def test_minimised_tasks_are_minimised_and_keep_their_sign():
    def losses(c):
        return 1 - two_corners(c)

    solution = mj.map_front(losses, directions="minimize", **ASKED)
    maximised = mj.map_front(two_corners, **ASKED)
    np.testing.assert_allclose(
        np.sort(solution.front.scores[:, 0])[[0, -1]],
        np.sort(1 - maximised.front.scores[:, 0])[[0, -1]],
        atol=0.05,
    )
    mixed = mj.map_front(
        lambda c: two_corners(c) * np.array([1, -1]),
        directions=["maximize", "minimize"],
        **ASKED,
    )
    c = np.asarray(mixed.front.coefficients)
    assert np.abs(c[:, 0] - c[:, 1]).max() < 0.15


def test_picks_follow_the_preference():
    solution = mj.map_front(two_corners, verify=5, task_names=["a", "b"], **ASKED)
    for weight in (0.2, 0.5, 0.9):
        # max w (1 - 2 x^2) + (1 - w) (1 - 2 (1 - x)^2) is at x = 1 - w.
        picked = solution.pick([weight, 1 - weight])
        np.testing.assert_allclose(picked, 1 - weight, atol=0.04)
        np.testing.assert_array_equal(picked, solution.pick({"a": weight, "b": 1 - weight}))
    needs = np.asarray(solution.pick(at_least={"a": 0.9}))
    assert two_corners(needs[None])[0, 0] >= 0.9 - 5e-3
    assert two_corners(needs[None])[0, 1] >= two_corners(np.full((1, 2), 0.2))[0, 1]
    np.testing.assert_allclose(solution.pick(), 0.5, atol=0.04)
    np.testing.assert_allclose(solution.pick(method="knee"), 0.5, atol=0.1)
    picked = np.asarray(solution.pick([1, 1], verified=True))
    assert picked.tolist() in np.asarray(solution.samples.coefficients).tolist()
    with pytest.raises(ValueError, match=r"names \['z'\]; the tasks are"):
        solution.pick({"z": 1.0})
    with pytest.raises(ValueError, match="A knee needs no preference"):
        solution.pick([1, 1], method="knee")
    with pytest.raises(ValueError, match="`method` is 'best'"):
        solution.pick(method="best")
    with pytest.raises(ValueError, match="pass `verify=`"):
        mj.map_front(two_corners, **ASKED).pick(verified=True)


def three_linear_tasks():
    """An evaluator of three linear classifiers, each perfect on its own task."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    base, *experts = ({"w": rng.normal(size=(6, 3)).astype(np.float32)} for _ in range(4))
    tv = mj.TaskVectors.from_params(base, dict(zip("abc", experts, strict=True)))
    metrics = [mj.metrics.accuracy, mj.metrics.cross_entropy, mj.metrics.accuracy]
    tasks = [
        mj.Task(name, lambda p, x: x @ p["w"], x, (x @ e["w"]).argmax(1), m)
        for name, e, m in zip("abc", experts, metrics, strict=True)
    ]
    return mj.Evaluator(tv, tasks)


LIGHT: dict[str, Any] = dict(key=KEY, num_generations=40, num_points=40)


def test_samples_on_a_line_do_not_determine_a_quadratic():
    def only_on_an_edge(c):
        x, y = np.asarray(c).T
        return np.where(y[:, None] == 0, np.stack([x, 1 - x**2], axis=1), np.nan)

    options: dict[str, Any] = dict(design="simplex_lattice", budget=30, rounds=1)
    with pytest.warns(UserWarning, match="do not determine the quadratic"):
        solution = mj.map_front(only_on_an_edge, num_coefficients=2, **options, **LIGHT)
    assert solution.result == mj.RESULTS.rank_deficient


@pytest.mark.slow
def test_an_evaluator_brings_its_names_directions_and_links():
    solution = mj.map_front(
        three_linear_tasks(), budget=20, verify=4, surrogate="quadratic", rounds=1, **LIGHT
    )
    assert solution.task_names == solution.coefficient_names == ("a", "b", "c")
    assert solution.directions == ("maximize", "minimize", "maximize")
    assert solution.surrogate is not None
    assert solution.surrogate.links == ("sigmoid", "softplus", "sigmoid")
    assert (solution.front.scores[:, [0, 2]] <= 1).all()
    np.testing.assert_allclose(np.diagonal(solution.samples.scores[1:4])[[0, 2]], 1)
    assert set(solution.references()) == {"base", "a", "b", "c", "uniform"}


@pytest.mark.slow
def test_linear_outputs_are_predicted_from_the_base_and_the_experts():
    evaluator = three_linear_tasks()
    exact = mj.surrogate.Outputs(degree=1, ridge=1e-5)
    solution = mj.map_front(evaluator, budget=4, surrogate=exact, **LIGHT)
    assert solution.stats["num_evaluations"] == 4
    assert solution.stats["surrogate"] == "OutputSurrogate"
    truth = np.asarray(evaluator(solution.front.coefficients))
    np.testing.assert_allclose(solution.front.scores, truth, atol=0.011)
    assert solution.front.std is not None
    assert solution.front.probability is not None
    assert (solution.front.std > 0).all()
    assert ((solution.front.probability >= 0) & (solution.front.probability <= 1)).all()


@pytest.mark.slow
def test_rounds_spend_the_budget_on_the_predicted_front(tmp_path):
    evaluator, path = three_linear_tasks(), tmp_path / "samples.jsonl"
    solution = mj.map_front(evaluator, budget=12, save_to=path, **LIGHT)
    assert [r["num_evaluations"] for r in solution.stats["rounds"]] == [4, 8]
    assert solution.stats["num_evaluations"] == len(solution.samples) == 12
    keys = [jax.random.key(i) for i in (1, 2, 3)]
    others = [mj.map_front(evaluator, budget=12, **{**LIGHT, "key": k}) for k in keys]
    scores = np.stack([s.samples.scores for s in (solution, *others)]) * [1, -0.2, 1]
    values = scores @ np.random.default_rng(0).dirichlet(np.ones(3), 50).T
    assert np.mean(values.max(axis=1) - values[:, :4].max(axis=1)) > 0.005
    again = mj.map_front(evaluator, budget=12, save_to=path, **LIGHT)
    assert again.stats["num_reused"] == 12
    np.testing.assert_array_equal(again.front.scores, solution.front.scores)


@pytest.mark.slow
def test_another_key_goes_on_from_samples_that_were_paid_for(tmp_path):
    options: dict[str, Any] = {**ASKED, "save_to": tmp_path / "samples.jsonl"}
    first = mj.map_front(two_corners, **{**options, "budget": 8})
    more = mj.map_front(two_corners, **{**options, "key": jax.random.key(7)})
    assert 8 == len(first.samples) == more.stats["num_reused"]
    assert 8 < more.stats["num_evaluations"] <= 12


@pytest.mark.slow
def test_a_tolerance_stops_before_the_budget_is_spent():
    solution = mj.map_front(three_linear_tasks(), budget=12, tolerance=10.0, **LIGHT)
    assert solution.stats["num_evaluations"] == 4
    assert solution.stats["rounds"][-1]["expected_gain"] < 10.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surrogate": "outputs"}, "which a plain function of the coefficients does not"),
        ({"surrogate": "spline"}, "`surrogate` is 'spline'"),
        ({"rounds": 0}, "`rounds` is 0, but must be an int of at least 1"),
    ],
)
def test_a_surrogate_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mj.map_front(two_corners, **ASKED, **options)


@pytest.mark.slow
def test_decisions_cannot_be_predicted_and_the_default_says_so():
    tv = three_linear_tasks().rule.args[0]
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)

    def decide(params, x):
        return (x @ params["w"]).argmax(1)

    metric = mj.metrics.Metric(lambda y, t: jnp.mean((y == t) * 1.0))
    tasks = [
        mj.Task(n, decide, x, np.arange(50) % (2 + i), metric) for i, n in enumerate("ab")
    ]
    evaluator = mj.Evaluator(tv, tasks)
    with pytest.raises(ValueError, match="return logits instead of decisions"):
        mj.map_front(evaluator, budget=20, surrogate="outputs", **LIGHT)
    with pytest.warns(UserWarning, match="predicted by a quadratic and not from outputs"):
        solution = mj.map_front(evaluator, budget=20, rounds=1, **LIGHT)
    assert solution.stats["surrogate"] == "Quadratic"


def test_samples_are_saved_and_a_run_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "samples.jsonl"
    seen = []

    def failing(c):
        seen.extend(np.asarray(c).tolist())
        if len(seen) > 5:
            raise RuntimeError("preempted")
        return two_corners(c)

    with pytest.raises(RuntimeError, match="preempted") as caught:
        mj.map_front(failing, save_to=path, **ASKED)
    saved = len(path.read_text().splitlines()) - 1
    assert 1 <= saved <= 5
    assert len(vars(caught.value)["samples"]) == saved

    counted = []

    def counting(c):
        counted.extend(np.asarray(c).tolist())
        return two_corners(c)

    resumed = mj.map_front(counting, save_to=path, verify=3, **ASKED)
    whole = mj.map_front(two_corners, verify=3, **ASKED)
    assert len(counted) == 12 + 3 - saved
    assert resumed.stats["num_reused"] == saved
    np.testing.assert_array_equal(resumed.front.scores, whole.front.scores)
    np.testing.assert_array_equal(resumed.samples.scores, whole.samples.scores)
    mj.map_front(counting, save_to=path, verify=3, **ASKED)
    assert len(counted) == 12 + 3 - saved
    assert len(json.loads(path.read_text().splitlines()[-1])["coefficients"]) == 2


def test_scores_that_are_not_finite_are_reported_and_lose_nothing():
    def sometimes(c):
        scores = two_corners(c)
        scores[np.asarray(c).sum(axis=1) > 0.99, 0] = np.nan
        return scores

    with pytest.warns(UserWarning, match="NaN or infinite"):
        solution = mj.map_front(sometimes, rounds=1, **{**ASKED, "budget": 16})
    assert solution.result == RESULTS.nonfinite_scores
    assert solution.stats["num_failed"] > 0
    assert len(solution.samples) == 16
    assert np.isfinite(solution.front.scores).all()
    np.testing.assert_allclose(
        solution.front.scores, two_corners(solution.front.coefficients), atol=5e-3
    )


def test_no_finite_score_is_an_error_or_a_result():
    def broken(c):
        return two_corners(c) * np.array([np.nan, 1.0])

    with pytest.raises(ValueError, match="no finite score at all") as caught:
        mj.map_front(broken, rounds=1, **ASKED)
    assert len(vars(caught.value)["samples"]) == 12
    with pytest.warns(UserWarning, match="no finite score at all"):
        solution = mj.map_front(broken, throw=False, rounds=1, **ASKED)
    assert solution.result == RESULTS.no_finite_scores
    assert len(solution.front) == 0
    assert len(solution.samples) == 12


def test_a_constant_metric_is_reported():
    def constant(c):
        return np.stack([two_corners(c)[:, 0], np.full(len(c), 0.5)], axis=1)

    with pytest.warns(UserWarning, match="same for every sample"):
        solution = mj.map_front(constant, **ASKED)
    assert solution.result == RESULTS.constant_metric
    np.testing.assert_allclose(solution.front.coefficients[0], 0, atol=0.02)


@pytest.mark.slow
def test_few_samples_give_a_rough_front_and_a_warning():
    with pytest.warns(UserWarning, match="fewer usable samples.* 3 more evaluations would"):
        solution = mj.map_front(two_corners, **{**ASKED, "budget": 3})
    assert solution.result == RESULTS.few_samples
    assert np.isfinite(solution.front.scores).all()


def test_bounds_hold():
    lower, upper = np.array([-0.5, 0.0]), np.array([0.25, 0.5])
    solution = mj.map_front(two_corners, bounds=(lower, upper), **ASKED)
    c = np.asarray(solution.front.coefficients)
    assert (c >= lower - 1e-6).all()
    assert (c <= upper + 1e-6).all()


def test_a_second_run_compiles_nothing_new():
    mj.map_front(two_corners, **ASKED)
    messages = []
    with jax.log_compiles(), warnings.catch_warnings():
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())
        logger = logging.getLogger("jax")
        logger.addHandler(handler)
        try:
            mj.map_front(
                two_corners, **{**ASKED, "key": jax.random.key(7), "bounds": (0.0, 0.9)}
            )
        finally:
            logger.removeHandler(handler)
    big = [m for m in messages if "Finished XLA compilation" in m and "evolve" in m]
    assert big == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 2}, "`budget` is 2, but the base and 2 experts alone take 3"),
        ({"bounds": (1.0, 0.0)}, "every lower bound must be below its upper"),
        ({"bounds": (0.0, np.inf)}, "both finite"),
        ({"bounds": (np.zeros(3), np.ones(3))}, "two arrays of 2"),
        ({"directions": "up"}, "`directions` is 'up'; choose from 'maximize', 'minimize'"),
        ({"directions": ["maximize", "down"]}, "`directions` is 'down'"),
        (
            {"directions": ["minimize"]},
            "`directions` has 1 entry, 'minimize', .* pass directions='minimize' for all",
        ),
        ({"link": []}, "`link` has no entries, .* pass link='identity' for all"),
        ({"task_names": ["a"]}, "`task_names` has 1 entry, 'a', .* one for each"),
        ({"link": "probit"}, "`link` is 'probit'; choose from 'identity', 'sigmoid'"),
        ({"design": "circle"}, "circle"),
        (
            {"key": 0},
            r"`key` is 0, but must be one typed key: pass `key=jax.random.key\(0\)`",
        ),
        ({"key": jax.random.PRNGKey(0)}, "must be one typed key"),
        ({"num_coefficients": None}, "`num_coefficients` is None, but must be said"),
        ({"verify": -1}, "`verify` is -1"),
        ({"num_points": 1}, "`num_points` is 1"),
        ({"num_generations": 0}, "`num_generations` is 0"),
        (
            {"task_names": ["a", "b", "c"], "directions": ["maximize"] * 2},
            "2 entries for 3",
        ),
        ({"evaluate": 3}, "`evaluate` is a int"),
    ],
)
def test_bad_arguments_fail_before_any_evaluation(options, message):
    def never(c):
        raise AssertionError("was evaluated")

    arguments = {"evaluate": never, **ASKED, **options}
    with pytest.raises(ValueError, match=message):
        mj.map_front(**arguments)


def test_scores_outside_the_range_of_a_link_keep_the_samples():
    with pytest.raises(ValueError, match="sigmoid") as caught:
        mj.map_front(lambda c: 100 * two_corners(c), link="sigmoid", rounds=1, **ASKED)
    assert len(vars(caught.value)["samples"]) == 12
    assert "in `samples` of this exception" in " ".join(caught.value.__notes__)
