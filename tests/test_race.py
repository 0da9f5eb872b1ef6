"""Races against full evaluations of the same candidates."""

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import mapjax as mj
from mapjax.evaluation import Evaluator, race

RNG = np.random.default_rng(0)
N, K, E = 4, 60, 256


def predict(params, x):
    return x @ params["w"]


def make_evaluator(seed=0, metric=mj.metrics.accuracy, examples=E, tasks=2, classes=3):
    """Linear classifiers, each expert right about its own task's labels at times."""
    rng = np.random.default_rng(seed)
    draw = [{"w": rng.normal(size=(6, classes)).astype(np.float32)} for _ in range(N + 1)]
    tv = mj.TaskVectors.from_params(draw[0], draw[1:])
    made = []
    for t in range(tasks):
        x = rng.normal(size=(examples, 6)).astype(np.float32)
        noisy = x @ draw[t + 1]["w"] + rng.normal(size=(examples, classes))
        made.append(mj.Task(f"t{t}", predict, x, noisy.argmax(axis=1), metric))
    return Evaluator(tv, made)


def candidates(seed=0, count=K):
    return np.random.default_rng(seed).random((count, N)).astype(np.float32)


def preferences(count=10, tasks=2):
    return np.random.default_rng(1).dirichlet(np.ones(tasks), count)


def signs(evaluator):
    return np.array([1 if d == "maximize" else -1 for d in evaluator.directions])


def lost(evaluator, c, w, found):
    """Say for which preferences the best of the full evaluation was dropped."""
    worth = (np.asarray(evaluator(c)) * signs(evaluator)) @ w.T
    reached = np.where(found.kept[:, None], worth, -np.inf).max(axis=0)
    return reached < worth.max(axis=0) - 1e-6


@pytest.mark.slow
def test_the_best_is_kept_as_often_as_stated():
    """At 80 % confidence a fifth of the preferences may lose theirs; Bonferroni is strict."""
    losses, shares = [], []
    for seed in range(5):
        evaluator, w = make_evaluator(seed), preferences(20)
        c = candidates(seed)
        found = race(evaluator, c, w, confidence=0.8, key=jax.random.key(seed), first=64)
        losses.append(lost(evaluator, c, w, found))
        shares.append(found.share)
    assert np.mean(losses) <= 0.2
    assert np.mean(shares) < 0.8


@pytest.mark.parametrize("metric", [mj.metrics.cross_entropy, mj.metrics.f1])
@pytest.mark.slow
def test_what_is_kept_has_its_full_score(metric):
    evaluator, c, w = make_evaluator(metric=metric), candidates(), preferences()
    found = race(evaluator, c, w, key=jax.random.key(0), first=64)
    full = np.asarray(evaluator(c))
    np.testing.assert_allclose(found.scores[found.kept], full[found.kept], rtol=1e-5)
    assert (found.num_seen[found.kept] == 2 * E).all()
    assert (found.num_seen[~found.kept] < 2 * E).all()
    assert 0 < found.kept.sum() < K
    assert not lost(evaluator, c, w, found).any()
    worth = (full * signs(evaluator)) @ w.T
    np.testing.assert_array_equal(found.best, worth.argmax(axis=0))
    assert found.share == found.num_seen.sum() / (2 * E * K)


@pytest.mark.slow
def test_a_metric_of_all_examples_is_that_of_sklearn():
    evaluator = make_evaluator(metric=mj.metrics.auc, classes=2)
    found = race(evaluator, candidates(), preferences(), key=jax.random.key(0), first=64)
    best = np.unique(found.best)
    tv = evaluator.rule.args[0]
    for k in best:
        logits = evaluator.tasks[0].inputs @ mj.merge(tv, candidates()[k])["w"]
        area = roc_auc_score(evaluator.tasks[0].targets, logits[:, 1] - logits[:, 0])
        np.testing.assert_allclose(found.scores[k, 0], area, rtol=1e-5)
    assert found.share < 1


def test_equal_candidates_stay_together_and_save_nothing():
    evaluator = make_evaluator(examples=64)
    found = race(
        evaluator, np.zeros((5, N)), preferences(3), key=jax.random.key(0), first=16
    )
    assert found.kept.all()
    assert found.share == 1


def test_tasks_of_different_size_and_failed_merges():
    evaluator = make_evaluator(examples=64)
    few = evaluator.tasks[1]
    few = mj.Task("few", predict, few.inputs[:20], few.targets[:20])
    evaluator = Evaluator(evaluator.rule.args[0], [evaluator.tasks[0], few])
    c = candidates(count=20)
    c[3] = np.nan
    found = race(evaluator, c, preferences(5), key=jax.random.key(0), first=16)
    assert found.num_total == 84
    assert 3 not in found.best
    rest = np.delete(np.arange(20), 3)
    again = race(evaluator, c[rest], preferences(5), key=jax.random.key(0), first=16)
    np.testing.assert_array_equal(rest[again.best], found.best)


def test_a_tolerance_saves_more_and_loses_no_more_than_it():
    evaluator, c, w = make_evaluator(examples=512), candidates(), preferences(20)
    strict, loose = (
        race(evaluator, c, w, key=jax.random.key(0), first=128, tolerance=t)
        for t in (0.0, 0.05)
    )
    assert loose.share < strict.share
    worth = np.asarray(evaluator(c)) @ w.T
    lost_by = worth.max(axis=0) - worth[loose.best, np.arange(len(w))]
    assert lost_by.max() <= 0.05
    assert set(np.flatnonzero(loose.kept)) <= set(np.flatnonzero(strict.kept))


def test_a_preference_for_one_task_ignores_the_others():
    evaluator, c = make_evaluator(), candidates()
    found = race(evaluator, c, [[0.0, 1.0]], key=jax.random.key(2), first=64)
    full = np.asarray(evaluator(c))
    assert found.best[0] == full[:, 1].argmax()
    assert found.kept.sum() < K / 2


def test_every_beginning_holds_the_classes_in_proportion():
    from mapjax.evaluation._race import _order

    task = make_evaluator().tasks[0]
    labels = np.asarray(task.targets)
    order = _order(task, jax.random.key(0))
    np.testing.assert_array_equal(np.sort(order), np.arange(E))
    for size in (32, 100):
        counts = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(counts - size / E * np.bincount(labels)).max() <= 1.5
    assert not np.array_equal(order, _order(task, jax.random.key(1)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evaluator": lambda c: c}, "`evaluator` is a function, but a race needs"),
        ({"coefficients": np.zeros(N)}, r"`coefficients` has shape \(4,\).*candidates, 4"),
        ({"coefficients": np.zeros((0, N))}, "with one row at least"),
        ({"preferences": np.ones((3, 3))}, r"`preferences` has shape \(3, 3\).*, 2\]"),
        ({"preferences": [[1.0, -1.0]]}, "must be finite and non-negative"),
        ({"preferences": [[0.0, 0.0]]}, "a positive weight in each"),
        ({"confidence": 1.0}, "`confidence` is 1.0, but must be between"),
        ({"tolerance": -0.1}, "`tolerance` is -0.1, but must be 0 or more"),
        ({"first": 4}, "`first` is 4, but must be an int of at least 8"),
        ({"key": 0}, "`key` is 0, but must be one typed key"),
    ],
)
def test_bad_input_says_what_to_do(changed, message):
    given = {
        "evaluator": make_evaluator(examples=8),
        "coefficients": candidates(),
        "preferences": preferences(),
        "key": jax.random.key(0),
    } | changed
    with pytest.raises(ValueError, match=message):
        race(**given)


@pytest.mark.parametrize("examples", [1, 2])
def test_a_task_that_is_seen_whole_does_not_hold_up_the_others(examples):
    many = make_evaluator(examples=4 * E)
    few = mj.Task(
        "few", predict, many.tasks[1].inputs[:examples], many.tasks[1].targets[:examples]
    )
    evaluator, w = (
        Evaluator(many.rule, [many.tasks[0], few], num_coefficients=N),
        [[1.0, 0.0]],
    )
    c = candidates()
    found = race(evaluator, c, w, key=jax.random.key(0), first=64)
    assert found.share < 0.7
    assert not lost(evaluator, c, np.array(w), found).any()
