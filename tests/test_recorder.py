"""The record of evaluations: checked, saved as they arrive, never made twice."""

import json
from typing import Any

import numpy as np
import pytest

from mapjax.evaluation import Recorder, describe_problem

C = np.random.default_rng(0).random((6, 2)).astype(np.float32)


def scores_of(c):
    c = np.asarray(c)
    return np.stack([c.sum(axis=1), c.prod(axis=1)], axis=1)


def make_problem(evaluate, **options):
    defaults: dict[str, Any] = dict(
        num_coefficients=2, directions=None, task_names=None, link=None, link_bounds=None
    )
    return describe_problem(evaluate, **{**defaults, **options})


class Counting:
    """Count candidates; fail once a number of them has been scored."""

    def __init__(self, fail_after=None):
        self.count = 0
        self.fail_after = fail_after

    def __call__(self, c):
        if self.fail_after is not None and self.count >= self.fail_after:
            raise RuntimeError("out of memory")
        self.count += len(c)
        return scores_of(c)


def test_every_row_is_scored_once_and_in_order():
    counting = Counting()
    recorder = Recorder(make_problem(counting))
    twice = np.concatenate([C, C[:2]])
    np.testing.assert_allclose(recorder(twice), scores_of(twice), rtol=1e-6)
    assert counting.count == 6
    np.testing.assert_array_equal(recorder.samples.coefficients, C)
    np.testing.assert_allclose(recorder.samples.scores, scores_of(C), rtol=1e-6)


def test_an_interrupted_run_goes_on_without_evaluating_twice(tmp_path):
    path = tmp_path / "runs" / "samples.jsonl"
    with pytest.raises(RuntimeError) as caught:
        Recorder(make_problem(Counting(fail_after=1)), path)(C)
    assert str(path) in " ".join(caught.value.__notes__)
    saved = len(path.read_text().splitlines()) - 1
    assert saved == 1
    again = Counting()
    recorder = Recorder(make_problem(again), path)
    whole = recorder(C)
    assert again.count == 6 - saved
    np.testing.assert_array_equal(whole, Recorder(make_problem(Counting()))(C))
    third = Counting()
    np.testing.assert_array_equal(Recorder(make_problem(third), path)(C), whole)
    assert third.count == 0


def test_a_line_cut_short_is_dropped(tmp_path):
    path = tmp_path / "samples.jsonl"
    Recorder(make_problem(Counting()), path)(C)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    counting = Counting()
    Recorder(make_problem(counting), path)(C)
    assert counting.count == 1
    assert path.read_bytes() == whole


def test_non_finite_scores_are_kept(tmp_path):
    path = tmp_path / "samples.jsonl"

    def evaluate(c):
        return np.where(np.asarray(c)[:, :1] > 0.5, np.nan, scores_of(c))

    first = Recorder(make_problem(evaluate), path)(C)
    second = Recorder(make_problem(evaluate), path)(C)
    np.testing.assert_array_equal(first, second)
    assert np.isnan(first).any()


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "samples.jsonl"
    Recorder(make_problem(Counting(), task_names=["a", "b"]), path)(C)
    with pytest.raises(ValueError, match="samples of another problem"):
        Recorder(make_problem(Counting(), task_names=["a", "c"]), path)
    with pytest.raises(ValueError, match="samples of another problem"):
        Recorder(make_problem(Counting(), task_names=["a", "b"], num_coefficients=3), path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], '{"coefficients": [1]}', *lines[4:], ""]))
    with pytest.raises(ValueError, match=r"Line 4 of .* is damaged"):
        Recorder(make_problem(Counting(), task_names=["a", "b"]), path)
    path.write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(ValueError, match="not a record of samples"):
        Recorder(make_problem(Counting()), path)


@pytest.mark.parametrize("shape", [(6,), (5, 2), (6, 2, 1)])
def test_wrong_shapes_are_refused(shape):
    def evaluate(c):
        return np.zeros(shape if len(c) == 6 else (7, 7, 7))

    with pytest.raises(ValueError, match=r"must return \[candidates, tasks\]"):
        Recorder(make_problem(evaluate))(C)


def test_tasks_must_be_as_many_as_said_and_more_than_one():
    with pytest.raises(ValueError, match=r"shape \(1, 2\) for 3 tasks"):
        Recorder(make_problem(scores_of, task_names=["a", "b", "c"]))(C)
    with pytest.raises(ValueError, match="There is 1 task"):
        Recorder(make_problem(lambda c: scores_of(c)[:, :1]))(C)
