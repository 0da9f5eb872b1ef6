"""What every driver goes through."""

import re
import subprocess
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax._run import Run

KEY = jax.random.key(0)


class Wrong:
    """A surrogate whose predictions are three deviations off."""

    def __init__(self, run):
        self.run = run

    def __call__(self, c):
        return np.full((len(c), 2), 4.0)

    def std(self, c):
        return np.full((len(c), 2), self.run.inflation)


def test_deviations_are_scaled_towards_the_errors_of_proposals():
    run = Run(lambda c: np.ones((len(c), 2)), num_coefficients=2, budget=9, key=KEY)
    run.fitted = Wrong(run)
    points = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    run.evaluate_proposals(points)
    assert run.inflation == pytest.approx(np.sqrt((9 + 1) / 2))
    # What was added for the first ones is not taken for an error that is gone.
    run.evaluate_proposals(points)
    assert run.inflation == pytest.approx(np.sqrt((9 + 5) / 2))


def test_infinite_scores_are_failures_in_what_is_verified_and_learned():
    def evaluate(c):
        scores = np.stack([1 - c.sum(axis=1), c.sum(axis=1)], axis=1)
        return np.where(np.asarray(c)[:, :1] == 1.0, np.inf, scores)

    with pytest.warns(UserWarning, match="NaN or infinite"):
        solution = mj.map_front(
            evaluate, num_coefficients=2, budget=12, verify=3, num_generations=20, key=KEY
        )
    assert solution.verified is not None
    assert np.isfinite(solution.verified.scores).all()
    run = Run(lambda c: np.full((len(c), 2), np.inf), num_coefficients=2, budget=9, key=KEY)
    run.fitted = Wrong(run)
    run.evaluate_proposals(np.array([[0.1, 0.2]], np.float32))
    assert run.inflation == 1.0


def test_a_message_names_the_tasks_that_it_is_about():
    def evaluate(c, *columns):
        return np.stack(
            [np.full(len(c), x) if x is not None else c[:, 0] for x in columns], 1
        )

    for columns, words in (
        ((None, np.nan), r"no finite score at all.* This is so for 'b'"),
        ((None, 0.5), r"the same for every sample.* This is so for 'b'"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mj.map_front(
                lambda c, columns=columns: evaluate(np.asarray(c), *columns),
                num_coefficients=2,
                task_names=["a", "b"],
                budget=8,
                num_generations=5,
                throw=False,
                key=KEY,
            )
        assert any(re.search(words, str(w.message)) for w in caught)


def test_one_finite_score_is_not_a_constant_one():
    def evaluate(c):
        scores = np.stack([c[:, 0], c[:, 1]], axis=1)
        return np.where(np.asarray(c).any(axis=1, keepdims=True), np.nan, scores)

    with pytest.warns(UserWarning, match="fewer usable samples"):
        solution = mj.map_front(
            evaluate, num_coefficients=2, budget=8, num_generations=5, key=KEY
        )
    assert solution.result == mj.RESULTS.few_samples


@pytest.mark.slow
def test_the_whole_budget_is_spent_where_the_front_is_all_known():
    def evaluate(c):  # the front is the base
        return np.stack([-c.sum(axis=1), -(c**2).sum(axis=1)], axis=1)

    solution = mj.map_front(
        evaluate, num_coefficients=2, budget=20, num_generations=20, key=KEY
    )
    assert len(np.unique(solution.samples.coefficients, axis=0)) == 20


@pytest.mark.parametrize(
    "options",
    [
        dict(rounds=1),
        dict(),
        pytest.param(dict(bounds="simplex"), marks=pytest.mark.slow),
        pytest.param(dict(design="d_optimal"), marks=pytest.mark.slow),
        pytest.param(dict(driver=mj.bayesian_front), marks=pytest.mark.slow),
    ],
)
def test_a_higher_budget_is_spent_on_merges_that_are_not_in_the_file(tmp_path, options):
    def evaluate(c):
        return np.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)

    driver = options.pop("driver", mj.map_front)
    options |= dict(num_coefficients=2, num_generations=5, progress=False)
    options |= dict(save_to=tmp_path / "samples.jsonl")
    for budget, reused in ((14, 0), (24, 14), (24, 24)):  # the last, once more, is the same
        stats = driver(evaluate, budget=budget, key=KEY, **options).stats
        assert (stats["num_evaluations"], stats["num_reused"]) == (budget, reused)


def test_what_a_type_checker_would_find_is_refused_without_one():
    """In a process of its own, as the tests check types before anything else does."""
    code = """
import jax, numpy as np, mapjax as mj

def never(c):
    raise AssertionError("evaluated")

vectors = mj.TaskVectors.from_params(np.zeros((2, 2)), [np.eye(2), np.ones((2, 2))])
tasks = [mj.Task(n, lambda p, x: x @ p, np.eye(2), np.arange(2)) for n in "ab"]
scorer = mj.Evaluator(vectors, tasks)
given = dict(num_coefficients=2, budget=12, key=jax.random.key(0))
for wrong in (
    lambda: mj.map_front(never, **(given | dict(budget=12.0))),
    lambda: mj.map_front(never, verify=2.5, **given),
    lambda: mj.map_front(never, num_points=1e2, **given),
    lambda: mj.map_front(never, **(given | dict(budget=None))),
    lambda: mj.bayesian_front(never, num_points=None, **given),
    lambda: mj.nested_front(never, verify=None, **given),
    lambda: mj.adamerging(scorer, num_steps=None, key=given["key"]),
    lambda: mj.frank_wolfe(scorer, batch_size=None, key=given["key"]),
    lambda: mj.evaluation.race(scorer, np.eye(2), np.eye(2), key=given["key"], first=8.5),
    lambda: mj.transforms.wudi_descent(vectors, num_steps=2.0),
    lambda: mj.transforms.doge(vectors, num_steps=2.0),
    lambda: mj.design.sobol(2.5, 2, key=given["key"]),
    lambda: mj.design.corners(2.0),
    lambda: mj.design.corners(4, num_experts=2.0),
    lambda: mj.map_front(never, tolerance=-1.0, **given),
    lambda: mj.transforms.ties({"a": 1}),
    lambda: mj.Task("t", None, np.ones(1), np.ones(1)),
    lambda: mj.metrics.Metric("accuracy"),
    lambda: mj.metrics.Metric(never, direction="minimise"),
    lambda: mj.metrics.Metric(never, bounds=None),
    lambda: mj.Task("a", never, iter("ab"), [1]),
):
    try:
        wrong()
    except ValueError as error:
        print(error)
print(mj.Task(3, never, np.ones(1), np.ones(1)).name)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    wanted = [
        "`budget` is 12.0, but must be an int of at least 1.",
        "`verify` is 2.5, but must be an int of at least 0.",
        "`num_points` is 100.0, but must be an int of at least 2.",
        "`budget` is None, but must be an int of at least 1.",
        "`num_points` is None, but must be an int of at least 2.",
        "`verify` is None, but must be an int of at least 0.",
        "`num_steps` is None, but must be an int of at least 1.",
        "`batch_size` is None, but must be an int of at least 1.",
        "`first` is 8.5, but must be an int of at least 8.",
        "`num_steps` is 2.0, but must be an int of at least 0.",
        "`num_steps` is 2.0, but must be an int of at least 0.",
        "`num_points` is 2.5, but must be an int of at least 1.",
        "`num_coefficients` is 2.0, but must be an int of at least 1.",
        "`num_experts` is 2.0, but must be an int of at least 1 that divides the number of",
        "`tolerance` is -1.0, but must be units of the scores from 0 up",
        "`task_vectors` is a dict: make task vectors of your parameters first",
        "`predict` of task 't' is None, but must be a function",
        "`function` is 'accuracy', but must be a function",
        "`direction` is 'minimise'; choose from 'maximize', 'minimize'.",
        "`bounds` is None, but must be the lowest and the highest score",
        "The inputs of task 'a' are no arrays of numbers",
        "3",
    ]
    found = ran.stdout.splitlines()
    assert len(found) == len(wanted)
    for line, words in zip(found, wanted, strict=True):
        assert line.startswith(words)


def test_an_evaluator_that_contradicts_the_arguments_is_told_so():
    tv = mj.TaskVectors.from_params(jnp.zeros(2), [jnp.ones(2), jnp.arange(2.0)])
    tasks = [
        mj.Task(
            n,
            lambda p, x: x * p[0],
            jnp.ones(3),
            jnp.ones(3),
            mj.metrics.mean_squared_error,
        )
        for n in "ab"
    ]
    with pytest.raises(ValueError, match="but the evaluator says"):
        mj.map_front(mj.Evaluator(tv, tasks), budget=12, directions="maximize", key=KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": True}, "`budget` is True, but must be an int"),
        ({"num_coefficients": True}, "`num_coefficients` is True, but must be an int"),
    ],
)
def test_what_is_no_number_is_refused(options, message):
    options = {"budget": 8, "num_coefficients": 2, "key": jax.random.key(0)} | options
    with pytest.raises(ValueError, match=message):
        mj.map_front(lambda c: c, **options)


@pytest.mark.parametrize("option", ["chunk_size", "batch_size", "num_coefficients"])
@pytest.mark.parametrize("value", [True, 0])
def test_an_evaluator_takes_whole_numbers(option, value):
    options: dict[str, Any] = {"num_coefficients": 2, option: value}
    with pytest.raises(ValueError, match=f"`{option}` is {value!r}, but must be an int"):
        mj.Evaluator(lambda c: c, [], **options)


@pytest.mark.parametrize(
    ("predict", "returned"),
    [
        (lambda p, x: (x @ p).reshape(-1), r"\[28\] for 4 examples.*\[4, 7\]"),
        (lambda p, x: jnp.mean(x @ p), r"\[\] for 4 examples.*\[4, \.\.\.\]"),
        (lambda p, x: (x @ p).T, r"\[7, 4\] for 4 examples"),
    ],
)
def test_outputs_have_a_row_per_example(predict, returned):
    task = mj.Task("t", predict, jnp.ones((4, 3)), jnp.ones(4), lambda y, t: jnp.mean(y))
    with pytest.raises(ValueError, match=f"{returned}"):
        mj.Evaluator(lambda c: c * jnp.ones((3, 7)), [task], num_coefficients=1)
