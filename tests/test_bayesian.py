"""Bayesian MAP: its acquisitions against brute force, and the driver end to end."""

import logging
from typing import Any

import jax
import moocore
import numpy as np
import pytest
from scipy.stats import kstest

import mapjax as mj
from mapjax.design import make_design
from mapjax.search import propose_cells, propose_improving
from mapjax.search._angles import directions_of, shares_of

KEY = jax.random.key(0)
ASKED: dict[str, Any] = dict(num_coefficients=2, key=KEY, num_generations=20, num_points=40)


def two_corners(c):
    """Score merges so that the front is the segment from (0, 0) to (1, 1)."""
    c = np.asarray(c)
    return np.stack([1 - (c**2).sum(axis=1), 1 - ((1 - c) ** 2).sum(axis=1)], axis=1)


def eight_bowls(c):
    """Score eight tasks of eight coefficients, each best near its own expert."""
    c, best = np.asarray(c), 0.6 * np.eye(8)
    return 1 - ((c[:, None] - best) ** 2).sum(axis=2)


@pytest.mark.parametrize("num_objectives", [2, 3, 5, 8])
def test_gains_are_those_of_exact_hypervolumes(num_objectives):
    rng = np.random.default_rng(num_objectives)
    reference, ideal = np.full(num_objectives, 1.2), np.full(num_objectives, -0.3)
    known, draws = rng.random((6, num_objectives)), rng.random((8, 20, num_objectives))

    def improvement(given, added):
        def volume(x):
            return moocore.hypervolume(x, ref=reference)

        return volume(np.vstack([given, added])) - volume(given)

    found = propose_improving(
        draws,
        known,
        reference=reference,
        ideal=ideal,
        count=4,
        allowed=np.ones(20, bool),
        key=KEY,
        num_rays=4096,
    )
    box = np.prod(reference - ideal)
    expected = moocore.hypervolume(known, ref=reference) / box
    np.testing.assert_allclose(found.hypervolume, expected, rtol=0.06)
    # Greedy, with each scenario's own earlier choices among what it knows.
    chosen, gains = np.asarray(found.chosen), np.asarray(found.gain)
    for step in range(4):
        exact = [
            np.mean(
                [improvement(np.vstack([known, d[chosen[:step]]]), d[[i]]) for d in draws]
            )
            for i in range(20)
        ]
        np.testing.assert_allclose(gains[step], exact[chosen[step]] / box, rtol=0.15)
        assert exact[chosen[step]] > 0.9 * max(exact)


def test_known_points_may_be_drawn_too_and_nan_counts_for_nothing():
    rng = np.random.default_rng(0)
    draws, known = rng.random((5, 7, 3)), rng.random((5, 4, 3))
    draws[:, 2], known[:, 1] = np.nan, np.inf
    options: dict[str, Any] = dict(
        reference=np.ones(3), ideal=np.zeros(3), count=7, key=KEY, num_rays=4096
    )
    found = propose_improving(draws, known, allowed=np.ones(7, bool), **options)
    exact = np.mean(
        [
            moocore.hypervolume(np.vstack([k[[0, 2, 3]], d[[0, 1, 3, 4, 5, 6]]]), ref=1)
            for d, k in zip(draws, known, strict=True)
        ]
    )
    total = float(found.hypervolume + found.gain.sum())
    np.testing.assert_allclose(total, exact, rtol=0.03)
    gain = dict(zip(found.chosen.tolist(), found.gain.tolist(), strict=True))
    assert sorted(gain) == list(range(7))
    assert gain[2] == 0
    # What is not allowed comes last, and adds nothing for the others to share.
    allowed = np.arange(7) != int(found.chosen[0])
    without = propose_improving(draws, known, allowed=allowed, **options)
    assert int(without.chosen[-1]) == int(found.chosen[0])
    assert float(without.gain[-1]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": np.zeros((3, 2))}, r"`draws` has shape \(3, 2\)"),
        ({"known": np.zeros((4, 3))}, r"`known` has shape \(4, 3\).* with 2 objectives"),
        ({"reference": np.ones(3)}, "`reference` is .* 2 finite numbers"),
        ({"ideal": np.array([0, np.nan])}, "`ideal` is .* 2 finite numbers"),
        ({"ideal": np.ones(2)}, "must be below `reference`"),
        ({"count": 6}, "`count` is 6, but there are 5 candidates"),
        ({"count": 0}, "`count` is 0"),
        ({"num_rays": 0}, "`num_rays` is 0"),
        ({"allowed": np.ones(4, bool)}, r"`allowed` has shape \(4,\)"),
        ({"key": 0}, "`key` is 0"),
    ],
)
def test_wrong_arrays_are_named(changes, message):
    arguments: dict[str, Any] = dict(
        draws=np.zeros((3, 5, 2)),
        known=np.zeros((4, 2)),
        reference=np.ones(2),
        ideal=np.zeros(2),
        count=2,
        allowed=np.ones(5, bool),
        key=KEY,
    )
    arguments |= changes
    with pytest.raises(ValueError, match=message):
        propose_improving(arguments.pop("draws"), arguments.pop("known"), **arguments)


@pytest.mark.parametrize("num_coefficients", [2, 3, 8, 32])
def test_shares_of_uniform_directions_are_uniform_and_inverted(num_coefficients):
    rng = np.random.default_rng(0)
    points = np.abs(rng.normal(size=(500, num_coefficients)))
    shares = shares_of(points)
    assert shares.shape == (500, num_coefficients - 1)
    for column in shares.T:
        assert float(kstest(column, "uniform")[1]) > 1e-4
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_allclose(directions_of(shares), unit, atol=1e-8)


def test_cells_follow_the_loss_and_leave_room_for_the_unknown():
    c = np.concatenate([np.zeros((1, 8)), np.eye(8)])
    heavy = propose_cells(c, np.r_[0.0, 0, 0, 0, 5, 0, 0, 0, 0], 40, key=KEY)
    # Two parts an angle: the cell of the fourth expert, and no other, has the loss.
    cell = (shares_of(heavy) >= 0.5).astype(int)
    np.testing.assert_array_equal(cell, np.tile([0, 0, 0, 1, 0, 0, 0], (40, 1)))
    radius = np.linalg.norm(heavy, axis=1)
    assert 0.2 <= radius.min() < radius.max() <= 0.8
    # Alike losses: half of the cells in the draw have no point yet.
    even = propose_cells(c, np.full(9, 0.01), 200, key=KEY)
    cells = (shares_of(even) >= 0.5).astype(int)
    own = (shares_of(np.eye(8)) >= 0.5).astype(int)
    visited = (cells[:, None] == own).all(axis=2).any(axis=1)
    assert 0.3 < visited.mean() < 0.7
    # Many coefficients, one, and none known: nothing is enumerated.
    assert propose_cells(np.eye(64), np.zeros(64), 5, key=KEY).shape == (5, 64)
    line = propose_cells(np.array([[0.0], [1.0]]), np.zeros(2), 5, key=KEY)
    assert len(np.unique(line)) == 5
    assert np.isfinite(propose_cells(np.eye(3), np.full(3, np.nan), 5, key=KEY)).all()
    with pytest.raises(ValueError, match=r"`losses` \(4,\)"):
        propose_cells(np.eye(3), np.zeros(4), 5, key=KEY)
    with pytest.raises(ValueError, match="`count` is 0"):
        propose_cells(np.eye(3), np.zeros(3), 0, key=KEY)
    with pytest.raises(ValueError, match="`key` is 3"):
        propose_cells(np.eye(3), np.zeros(3), 1, key=3)


@pytest.mark.slow
def test_evaluates_points_that_are_worth_more_than_a_design():
    budget = 10
    solution = mj.bayesian_front(two_corners, budget=budget, **ASKED)
    assert solution.result == mj.RESULTS.successful
    assert solution.stats["num_evaluations"] == len(solution.samples) == budget
    np.testing.assert_array_equal(
        solution.samples.coefficients[:4], [[0, 0], [1, 0], [0, 1], [0.5, 0.5]]
    )
    design = make_design("multiscale", 2 * budget, 2, key=KEY)
    ours, theirs = (
        moocore.hypervolume(-np.asarray(scores, float), ref=1.2)
        for scores in (solution.samples.scores, two_corners(design))
    )
    assert ours > theirs
    again = mj.bayesian_front(two_corners, budget=budget, **ASKED)
    np.testing.assert_array_equal(solution.samples.coefficients, again.samples.coefficients)
    np.testing.assert_array_equal(solution.front.scores, again.front.scores)


@pytest.mark.parametrize("acquisition", ["hypervolume", "cells"])
@pytest.mark.slow
def test_eight_tasks_of_eight_coefficients(acquisition):
    with pytest.warns(UserWarning, match="There were fewer usable samples"):
        solution = mj.bayesian_front(
            eight_bowls,
            budget=13,
            num_coefficients=8,
            acquisition=acquisition,
            batch_size=2,
            key=KEY,
            num_generations=20,
            num_points=40,
        )
    c = np.asarray(solution.samples.coefficients)
    assert c.shape == (13, 8)
    assert len(np.unique(c, axis=0)) == 13
    assert c.min() >= 0
    assert c.max() <= 1
    np.testing.assert_allclose(solution.samples.scores, eight_bowls(c), rtol=1e-5)
    assert [r["num_evaluations"] for r in solution.stats["rounds"]] == [10, 12]


@pytest.mark.slow
def test_an_evaluator_brings_its_outputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6)).astype(np.float32)
    base, *experts = ({"w": rng.normal(size=(6, 3)).astype(np.float32)} for _ in range(3))
    tv = mj.TaskVectors.from_params(base, dict(zip("ab", experts, strict=True)))
    tasks = [
        mj.Task(name, lambda p, x: x @ p["w"], x, (x @ expert["w"]).argmax(axis=1))
        for name, expert in zip("ab", experts, strict=True)
    ]
    solution = mj.bayesian_front(
        mj.Evaluator(tv, tasks),
        budget=7,
        batch_size=2,
        verify=2,
        key=KEY,
        num_generations=20,
        num_points=40,
    )
    assert isinstance(solution.surrogate, mj.surrogate.OutputSurrogate)
    assert solution.task_names == ("a", "b")
    assert [r["num_evaluations"] for r in solution.stats["rounds"]] == [3, 5]
    assert solution.verified is not None
    assert 7 <= len(solution.samples) <= 9


@pytest.mark.slow
def test_tolerance_stops_when_little_is_left_to_gain():
    solution = mj.bayesian_front(two_corners, budget=10, tolerance=0.05, **ASKED)
    *before, last = (r["expected_improvement"] for r in solution.stats["rounds"])
    assert len(solution.samples) < 10
    assert last < 0.05 <= min(before)
    # The front is that of all samples: the last batch was fitted.
    np.testing.assert_allclose(
        solution.front.scores, two_corners(solution.front.coefficients), atol=2e-2
    )


@pytest.mark.parametrize(
    "acquisition", [pytest.param("hypervolume", marks=pytest.mark.slow), "cells"]
)
def test_a_run_goes_on_where_it_stopped(tmp_path, acquisition):
    asked = {**ASKED, "budget": 10, "acquisition": acquisition}
    path, seen = tmp_path / "samples.jsonl", []

    def failing(c):
        seen.extend(np.asarray(c).tolist())
        if len(seen) > 7:
            raise RuntimeError("preempted")
        return two_corners(c)

    with pytest.raises(RuntimeError, match="preempted") as caught:
        mj.bayesian_front(failing, save_to=path, **asked)
    saved = len(path.read_text().splitlines()) - 1
    assert 4 <= saved <= 7
    assert len(vars(caught.value)["samples"]) == saved
    resumed = mj.bayesian_front(two_corners, save_to=path, **asked)
    whole = mj.bayesian_front(two_corners, **asked)
    assert resumed.stats["num_reused"] == saved
    np.testing.assert_array_equal(resumed.samples.coefficients, whole.samples.coefficients)
    np.testing.assert_array_equal(resumed.samples.scores, whole.samples.scores)
    np.testing.assert_array_equal(resumed.front.scores, whole.front.scores)


@pytest.mark.slow
def test_samples_of_another_run_count_towards_the_budget(tmp_path):
    path = tmp_path / "samples.jsonl"
    first = mj.bayesian_front(two_corners, budget=6, save_to=path, **ASKED)
    more = mj.bayesian_front(
        two_corners, budget=10, save_to=path, **{**ASKED, "key": jax.random.key(7)}
    )
    assert 6 < len(more.samples) <= 10
    given = {*map(tuple, np.asarray(first.samples.coefficients).tolist())}
    assert given <= {*map(tuple, np.asarray(more.samples.coefficients).tolist())}
    assert more.stats["num_reused"] == 6


@pytest.mark.slow
def test_a_gradient_counts_as_three_of_the_budget():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    base, *experts = ({"w": rng.normal(size=(4, 3)).astype(np.float32)} for _ in range(3))
    tv = mj.TaskVectors.from_params(base, dict(zip("ab", experts, strict=True)))
    tasks = [
        mj.Task(
            name,
            lambda p, x: x @ p["w"],
            x,
            (x @ expert["w"]).argmax(axis=1),
            mj.metrics.cross_entropy,
        )
        for name, expert in zip("ab", experts, strict=True)
    ]
    solution = mj.bayesian_front(
        mj.Evaluator(tv, tasks),
        budget=17,
        surrogate="gradient",
        key=KEY,
        num_generations=20,
        num_points=40,
    )
    assert len(solution.samples) == 5
    assert solution.stats["num_evaluations"] == 15


@pytest.mark.parametrize("acquisition", ["hypervolume", "cells"])
@pytest.mark.slow
def test_minimised_tasks_with_failures_and_a_constant_one(acquisition):
    def losses(c):
        scores = np.concatenate([1 - two_corners(c), np.full((len(c), 1), 7.0)], axis=1)
        scores[np.asarray(c).sum(axis=1) > 1.5, 0] = np.nan
        return scores

    with pytest.warns(UserWarning, match="same for every sample"):
        solution = mj.bayesian_front(
            losses, budget=10, directions="minimize", acquisition=acquisition, **ASKED
        )
    assert len(solution.samples) == 10
    assert np.isfinite(solution.front.scores).all()
    assert all(r["expected_improvement"] >= 0 for r in solution.stats["rounds"])


def test_a_second_run_compiles_no_acquisition_again():
    mj.bayesian_front(two_corners, budget=10, **ASKED)
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            mj.bayesian_front(
                two_corners,
                budget=10,
                **{**ASKED, "key": jax.random.key(7), "bounds": (0.0, 0.9)},
            )
    finally:
        logger.removeHandler(handler)
    compiled = [m for m in messages if "Finished XLA compilation" in m]
    assert not [m for m in compiled if "propose" in m or "draw" in m or "evolve" in m]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 2}, "`budget` is 2, but the base and 2 experts alone take 3"),
        (
            {"acquisition": "best"},
            "is 'best'; choose from 'hypervolume', 'cells'",
        ),
        ({"batch_size": 0}, "`batch_size` is 0, but must be an int of at least 1"),
        ({"tolerance": -0.1}, "`tolerance` is -0.1, but must be a share"),
        ({"tolerance": np.nan}, "`tolerance` is nan"),
        ({"verify": -1}, "`verify` is -1"),
        ({"design": "circle"}, "circle"),
        ({"key": 0}, "must be one typed key"),
        ({"bounds": (1.0, 0.0)}, "every lower bound must be below"),
        ({"surrogate": "outputs"}, "`surrogate` predicts outputs"),
        ({"num_coefficients": None}, "`num_coefficients` is None"),
    ],
)
def test_bad_arguments_fail_before_any_evaluation(options, message):
    def never(c):
        raise AssertionError("was evaluated")

    with pytest.raises(ValueError, match=message):
        mj.bayesian_front(never, **{**ASKED, "budget": 10, **options})


def test_samples_survive_an_error_of_the_fit():
    with pytest.raises(ValueError, match="sigmoid") as caught:
        mj.bayesian_front(
            lambda c: 100 * two_corners(c), budget=10, link="sigmoid", **ASKED
        )
    assert len(vars(caught.value)["samples"]) == 4


@pytest.mark.slow
def test_when_to_stop_does_not_depend_on_the_unit_of_scores():
    asked = {**ASKED, "budget": 10, "tolerance": 0.05}
    whole, small = (
        mj.bayesian_front(lambda c, u=u: u * two_corners(c), **asked) for u in (1, 1e-7)
    )
    assert len(small.samples) == len(whole.samples)
