"""The record of evaluations: checked, saved as they arrive, never made twice."""

import json
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
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
    assert recorder(C[:0]).shape == (0, 2)


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


RNG = np.random.default_rng(1)
X = RNG.normal(size=(20, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 20)
BASE, *EXPERTS = ({"w": RNG.normal(size=(5, 3)).astype(np.float32)} for _ in range(3))


def predict(params, x):
    return {"logits": x @ params["w"], "low": (x @ params["w"]).astype(jnp.bfloat16)}


METRIC = mj.metrics.Metric(
    lambda o, t: mj.metrics.cross_entropy(o["logits"], t), "minimize"
)


def make_evaluator(experts=None, x=X, y=Y, direction=None, names=("a", "b")):
    tv = mj.TaskVectors.from_params(BASE, dict(zip(names, experts or EXPERTS, strict=True)))
    # Not in the order of the alphabet, which is that of dictionaries in JAX.
    tasks = [
        mj.Task("z", predict, x, y, METRIC, direction=direction),
        mj.Task("few", lambda p, x: x @ p["w"], x[:7], y[:7]),
    ]
    return mj.Evaluator(tv, tasks)


def make_recorder(evaluator, path, **options):
    asked = dict(num_coefficients=None) if isinstance(evaluator, mj.Evaluator) else {}
    return Recorder(make_problem(evaluator, **asked), path, **options)


def assert_same_outputs(some, others):
    for one, other in zip(some, others, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_outputs_are_kept_and_a_run_goes_on_with_them(tmp_path):
    path = tmp_path / "samples.jsonl"
    evaluator = make_evaluator()
    recorder = make_recorder(evaluator, path, keep_outputs=True)
    assert [x.shape for x in jax.tree.leaves(recorder.outputs())] == [
        (0, 20, 3),
        (0, 20, 3),
        (0, 7, 3),
    ]
    scores = recorder(C[:4])
    np.testing.assert_allclose(scores, evaluator(C[:4]), rtol=1e-6)
    z, few = recorder.outputs()  # in the order of the tasks
    want = evaluator.outputs(C[:4])
    np.testing.assert_allclose(z["logits"], want["z"]["logits"], rtol=1e-6)
    assert z["low"].dtype == np.float32
    np.testing.assert_array_equal(z["low"], want["z"]["low"].astype(np.float32))
    np.testing.assert_allclose(few, want["few"], rtol=1e-6)
    assert len(list((tmp_path / "samples.jsonl.outputs").iterdir())) == 4

    again = make_recorder(make_evaluator(), path, keep_outputs=True)
    np.testing.assert_array_equal(again(C[:4]), scores)
    assert again.num_new == 0
    assert_same_outputs(again.outputs(), recorder.outputs())
    again(C)
    assert again.num_new == 2
    whole = make_recorder(evaluator, None, keep_outputs=True)
    np.testing.assert_array_equal(whole(C), again(C))
    assert_same_outputs(whole.outputs(), again.outputs())


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "none"])
def test_outputs_that_are_lost_are_evaluated_anew(tmp_path, damage):
    path = tmp_path / "samples.jsonl"
    evaluator = make_evaluator()
    recorder = make_recorder(evaluator, path, keep_outputs=True)
    scores = recorder(C[:3])
    for file in sorted((tmp_path / "samples.jsonl.outputs").iterdir())[:2]:
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        elif damage != "none":
            file.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    lost = pytest.warns(UserWarning, match="2 of 3 merges in `save_to`")
    with nullcontext() if damage == "none" else lost:
        again = make_recorder(evaluator, path, keep_outputs=True)
    np.testing.assert_array_equal(again(C[:3]), scores)
    assert again.num_new == (0 if damage == "none" else 2)
    assert_same_outputs(again.outputs(), recorder.outputs())
    third = make_recorder(evaluator, path, keep_outputs=True)
    third(C[:3])
    assert third.num_new == 0


def test_a_record_without_outputs_gets_them(tmp_path):
    path = tmp_path / "samples.jsonl"
    make_recorder(make_evaluator(), path)(C[:2])
    with pytest.warns(UserWarning, match=r"2 of 2 .* no outputs .*surrogate='quadratic'"):
        recorder = make_recorder(make_evaluator(), path, keep_outputs=True, run="other")
    assert recorder.num_given == 0  # scores alone are no samples for a fit to outputs
    recorder(C[:2])
    assert recorder.num_new == 2
    assert recorder.outputs()[1].shape == (2, 7, 3)


def test_a_record_serves_with_64_bits_too(tmp_path):
    path = tmp_path / "samples.jsonl"
    evaluator = make_evaluator()
    make_recorder(evaluator, path, keep_outputs=True)(C[:3])
    with jax.enable_x64(True):
        again = make_recorder(evaluator, path, keep_outputs=True, run="other")
        assert again.num_given == again.is_given(C.astype(float)[:3]).sum() == 3
        again(C.astype(float)[:3])
        assert again.num_new == 0
        assert again.samples.coefficients.dtype == float
        np.testing.assert_array_equal(again.samples.coefficients, C[:3])


def test_derivatives_are_kept_apart_from_outputs(tmp_path):
    path = tmp_path / "samples.jsonl"
    tv = mj.TaskVectors.from_params(BASE, EXPERTS)
    loss = mj.metrics.cross_entropy
    tasks = [mj.Task(name, lambda p, x: x @ p["w"], X, Y, loss) for name in "ab"]
    evaluator = mj.Evaluator(tv, tasks)
    make_recorder(evaluator, path, keep_outputs=True)(C[:2])
    with pytest.warns(UserWarning, match="2 of 2 merges .* no derivatives"):
        recorder = make_recorder(evaluator, path, keep_jacobian=True)
    recorder(C[:2])
    assert recorder.num_new == 2
    want = evaluator.value_and_jacobian(C[:2])[1]
    np.testing.assert_array_equal(recorder.jacobian(), want)
    for keep in ({"keep_outputs": True}, {"keep_jacobian": True}):
        again = make_recorder(evaluator, path, **keep)
        again(C[:2])
        assert again.num_new == 0


def test_outputs_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "samples.jsonl"
    make_recorder(make_evaluator(), path, keep_outputs=True)(C[:2])
    narrow = mj.Task("few", lambda p, x: x @ p["w"][:, :2], X[:7], Y[:7] % 2)
    evaluator = make_evaluator()
    evaluator = evaluator.replace(tasks=[evaluator.tasks[0], narrow])
    # The same arrays under another function: only the shapes can tell.
    evaluator.fingerprint = make_evaluator().fingerprint
    with pytest.raises(ValueError, match=r"shapes .*\(7, 3\).* tasks give .*\(7, 2\)"):
        make_recorder(evaluator, path, keep_outputs=True)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            dict(experts=EXPERTS[::-1]),
            "base or the task vectors there hold other numbers",
        ),
        (dict(x=X + 1), "the examples there are others"),
        (dict(y=(Y + 1) % 3), "the examples there are others"),
        (dict(x=X[:15], y=Y[:15]), r"`num_examples` are \[20, 7\] there and \[15, 7\]"),
        (dict(direction="maximize"), r"`directions` are \['minimize', 'maximize'\] there"),
        (dict(names=("a", "c")), r"`coefficient_names` are .* and \['a', 'c'\] here"),
    ],
)
def test_samples_of_other_models_or_data_are_refused(tmp_path, other, message):
    path = tmp_path / "samples.jsonl"
    make_recorder(make_evaluator(), path)(C[:1])
    assert make_recorder(make_evaluator(), path)(C[:1]).shape == (1, 2)
    with pytest.raises(ValueError, match=message):
        make_recorder(make_evaluator(**other), path)


@pytest.mark.parametrize("length", [0, 10, 60])
def test_a_file_without_a_whole_header_gets_one(tmp_path, length):
    path = tmp_path / "samples.jsonl"
    Recorder(make_problem(Counting()), path)(C[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    Recorder(make_problem(Counting()), path)(C[:2])
    assert path.read_bytes() == whole


def test_a_text_without_a_line_end_is_not_cut(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(ValueError, match="not a record of samples"):
        Recorder(make_problem(Counting()), path)
    assert path.read_text() == "my notes"


def test_samples_of_other_runs_are_samples_from_the_start(tmp_path):
    path = tmp_path / "samples.jsonl"
    first = make_recorder(Counting(), path, run="first")
    first(C[:3])
    assert first.num_given == 0
    # The same run goes on: it repeats itself, and takes only what it asks for.
    again = make_recorder(Counting(), path, run="first")
    again(C[:2])
    assert (again.num_given, again.num_new, len(again.samples)) == (0, 0, 2)
    # Another run starts from all that was paid for, and evaluates what is new.
    second = make_recorder(Counting(), path, run="second")
    assert second.num_given == 3
    second(C[[5, 0, 4]])
    assert second.num_new == 2
    np.testing.assert_array_equal(second.samples.coefficients, C[[0, 1, 2, 5, 4]])
    # Interrupted, it repeats itself with the same three.
    resumed = make_recorder(Counting(), path, run="second")
    assert resumed.num_given == 3
    resumed(C[[5, 0, 4]])
    assert resumed.num_new == 0
    np.testing.assert_array_equal(resumed.samples.coefficients, second.samples.coefficients)
    # The first run, begun again later, has the samples of both.
    assert make_recorder(Counting(), path, run="first").num_given == 5


def test_paths_that_cannot_be_written_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="which is a folder: pass a file"):
        Recorder(make_problem(Counting()), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: pass a path in a folder"):
        Recorder(make_problem(Counting()), tmp_path / "file" / "samples.jsonl")


@pytest.mark.parametrize("dtype", [complex, object, str])
def test_scores_must_be_real_numbers(dtype):
    with pytest.raises(ValueError, match="must return real numbers"):
        Recorder(make_problem(lambda c: np.ones((len(c), 2)).astype(dtype)))(C)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_names": "ab"}, "`task_names` is 'ab', one string"),
        ({"task_names": ["a", "a"]}, r"must be unique, but \['a'\]"),
        ({"ridge": -1.0}, "`ridge` is -1.0"),
        ({"ridge": "strong"}, "Unknown `ridge` 'strong'"),
        ({"link": "sigmoid", "link_bounds": (1.0, 0.0)}, "`link_bounds` of task 0 are"),
        ({"link": "sigmoid", "link_bounds": (0.0, np.inf)}, "needs both ends finite"),
        (
            {"link": "softplus", "link_bounds": ([0.0, -np.inf], 1.0)},
            "`link_bounds` of task 1 are .* needs the lower end finite",
        ),
        ({"task_names": ["a", "b"], "link_bounds": ([0.0] * 3, 1.0)}, "3 entries for 2"),
    ],
)
def test_options_of_a_later_fit_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem(Counting(), **options)


def test_tasks_must_be_as_many_as_said_and_more_than_one():
    with pytest.raises(ValueError, match=r"shape \(1, 2\) for 3 tasks"):
        Recorder(make_problem(scores_of, task_names=["a", "b", "c"]))(C)
    with pytest.raises(ValueError, match="There is 1 task"):
        Recorder(make_problem(lambda c: scores_of(c)[:, :1]))(C)


def test_scores_of_code_that_was_changed_are_not_taken(tmp_path):
    path = tmp_path / "samples.jsonl"
    tv = mj.TaskVectors.from_params(BASE, EXPERTS)

    def record(sign, metric=mj.metrics.cross_entropy):
        tasks = [
            mj.Task(name, lambda p, x: sign * x @ p["w"], X, Y, metric) for name in "ab"
        ]
        return Recorder(describe_problem(mj.Evaluator(tv, tasks)), path)

    record(1.0)(C)
    again = record(1.0)
    again(C)
    assert again.num_new == 0
    for changed in (record(-1.0), record(1.0, mj.metrics.Metric(_twice, "minimize"))):
        with pytest.raises(ValueError, match=r"samples.jsonl, where .* was changed since"):
            changed(C)
    assert len(path.read_text().splitlines()) == 1 + len(C)


def _twice(outputs, targets):
    return 2 * mj.metrics.cross_entropy(outputs, targets)
