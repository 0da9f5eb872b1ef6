"""What a solution says of itself: picks, tables, normalised scores, hypervolume."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import moocore
import numpy as np
import pytest

from mapjax import RESULTS, Front, Samples
from mapjax._solution import Solution

C = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.5], [0.8, 0.2], [0.3, 0.7], [0.9, 0.9]])
# Accuracy of the first task, loss of the second.
SCORES = np.array(
    [[0.5, 2.0], [0.9, 4.0], [0.6, 0.5], [0.7, 1.0], [0.8, 0.9], [0.7, 0.6], [0.1, 9.0]]
)
FRONT = np.array([[0.9, 2.0], [0.85, 1.2], [0.8, 0.9], [0.7, 0.6], [0.62, 0.5]])


class Surrogate(eqx.Module):
    """Predict the scores of a line, and a deviation that grows with the coefficients."""

    def __call__(self, coefficients):
        return coefficients @ jnp.array([[0.4, 0.1], [0.2, 0.3]])

    def std(self, coefficients):
        return jnp.abs(coefficients) / 10


def make_solution(**changes) -> Solution:
    x = np.linspace(1, 0, len(FRONT))
    fields: dict[str, Any] = dict(
        front=Front(jnp.stack([x, 1 - x], axis=1), jnp.asarray(FRONT, jnp.float32)),
        samples=Samples(jnp.asarray(C, jnp.float32), jnp.asarray(SCORES, jnp.float32)),
        # Expert b is one of the best, and a reference as well.
        verified=Front(
            jnp.asarray(C[[2, 4, 5]], jnp.float32),
            jnp.asarray(SCORES[[2, 4, 5]], jnp.float32),
        ),
        surrogate=Surrogate(),
        result=RESULTS.successful,
        stats={},
        num_verified=3,
        task_names=("a", "b"),
        coefficient_names=("a", "b"),
        directions=("maximize", "minimize"),
    )
    return Solution(**fields | changes)


def picked(solution, *args, **kwargs):
    """Scores of the picked point of the predicted front."""
    c = np.asarray(solution.pick(*args, **kwargs))
    return FRONT[np.argmin(np.abs(np.asarray(solution.front.coefficients) - c).sum(axis=1))]


def test_a_preference_chooses_among_the_points_that_reach_what_is_wished():
    solution = make_solution()
    for least in (0.65, 0.75, 0.82):
        for weight in (0.1, 0.5, 0.95):
            reach = FRONT[FRONT[:, 0] >= least]
            want = reach[np.argmax(weight * reach[:, 0] - (1 - weight) * reach[:, 1])]
            got = picked(solution, [weight, 1 - weight], at_least={"a": least})
            np.testing.assert_array_equal(got, want)
            loss = [weight, 1 - weight] * (reach * [-1, 1] - (reach * [-1, 1]).min(axis=0))
            want = reach[np.argmin(loss.max(axis=1) + 1e-3 * loss.sum(axis=1))]
            got = picked(
                solution, [weight, 1 - weight], at_least={"a": least}, method="tchebycheff"
            )
            np.testing.assert_array_equal(got, want)
    # For a loss, "at least" is "at most".
    got = picked(solution, {"a": 1.0}, at_least={"b": 0.7})
    np.testing.assert_array_equal(got, [0.7, 0.6])


def test_wishes_alone_leave_the_rest_to_the_other_tasks():
    solution = make_solution()
    np.testing.assert_array_equal(picked(solution, at_least={"a": 0.75}), [0.8, 0.9])
    np.testing.assert_array_equal(picked(solution, at_least={"b": 1.0}), [0.8, 0.9])
    knee = picked(solution, at_least={"a": 0.75}, method="knee")
    np.testing.assert_array_equal(knee, [0.85, 1.2])
    # Nothing reaches this: what misses least is taken, whatever else is preferred.
    for preference in (None, {"b": 1.0}):
        got = picked(solution, preference, at_least={"a": 0.99})
        np.testing.assert_array_equal(got, [0.9, 2.0])


def test_a_score_that_is_just_what_is_wished_reaches_it():
    assert float(np.float32(0.7)) < 0.7
    np.testing.assert_array_equal(
        picked(make_solution(), {"b": 1.0}, at_least={"a": 0.7}), [0.7, 0.6]
    )


def test_normalized_scores_are_shares_of_the_experts():
    solution = make_solution()
    normalized = np.asarray(solution.normalized(SCORES))
    np.testing.assert_allclose(
        normalized, np.stack([SCORES[:, 0] / 0.9, 0.5 / SCORES[:, 1]], axis=1), rtol=1e-6
    )
    assert normalized[1, 0] == normalized[2, 1] == 1
    np.testing.assert_allclose(solution.normalized(SCORES[3]), normalized[3], rtol=1e-6)


@pytest.mark.parametrize(
    ("tasks", "experts", "want"),
    [
        (("b", "a"), ("a", "b"), [SCORES[2, 0], SCORES[1, 1]]),  # by name
        (("t0", "t1"), ("c0", "c1"), [SCORES[1, 0], SCORES[2, 1]]),  # by order
        (("a", "t1"), ("c0", "a"), [SCORES[2, 0], np.nan]),  # one has a name
    ],
)
def test_experts_belong_to_tasks_by_name_or_else_by_order(tasks, experts, want):
    solution = make_solution(
        task_names=tasks, coefficient_names=experts, directions=("maximize",) * 2
    )
    np.testing.assert_allclose(solution.normalized([1.0, 1.0]), 1 / np.array(want))


def test_tasks_without_an_expert_are_not_normalized():
    more = Samples(jnp.zeros((1, 2)), jnp.ones((1, 3)))
    solution = make_solution(
        task_names=("t", "u", "v"), directions=("maximize",) * 3, samples=more
    )
    assert np.isnan(solution.normalized(np.ones((2, 3)))).all()
    # An expert that was not sampled, and one whose score is 0.
    unsampled = Samples(jnp.asarray(C[:2]), jnp.asarray(SCORES[:2]))
    assert np.isnan(make_solution(samples=unsampled).normalized([1.0, 1.0])[1])
    zero = Samples(jnp.asarray(C), jnp.asarray(SCORES * [0, 1]))
    assert np.isnan(make_solution(samples=zero).normalized([1.0, 1.0])[0])


@pytest.mark.parametrize("verified", [True, False])
def test_hypervolume_is_moocores(verified):
    solution = make_solution()
    front = solution.verified if verified else solution.front
    assert front is not None
    scores = np.asarray(front.scores)
    for reference in (None, [0.55, 3.0]):
        # By default the worst of base and experts: 0.5 of the base, 4.0 of expert a.
        corner = np.array(reference or [0.5, 4.0])
        want = moocore.hypervolume(scores * [-1, 1], ref=corner * [-1, 1])
        got = solution.hypervolume(reference, verified=verified)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert want > 0


def test_a_hypervolume_without_all_experts_is_above_the_worst_sample():
    kept = jnp.asarray(C[[1, 3, 4, 6]])  # one expert, the uniform merge and two more
    scores = jnp.asarray(SCORES[[1, 3, 4, 6]])
    solution = make_solution(samples=Samples(kept, scores))
    want = moocore.hypervolume(np.asarray(solution.front.scores) * [-1, 1], ref=[-0.1, 9.0])
    np.testing.assert_allclose(solution.hypervolume(verified=False), want, rtol=1e-5)


def test_predictions_of_own_merges_have_error_bars():
    solution = make_solution()
    front = solution.predicted(C)
    np.testing.assert_allclose(front.scores, C @ [[0.4, 0.1], [0.2, 0.3]], rtol=1e-6)
    assert front.std is not None
    np.testing.assert_allclose(front.std, C / 10, rtol=1e-6)
    one = solution.predicted([0.5, 0.5])
    np.testing.assert_array_equal(one.scores, front.scores[3:4])
    bare = make_solution(surrogate=lambda c: c).predicted(C)
    assert bare.std is None


def test_the_table_lists_references_and_then_verified_points():
    solution = make_solution()
    points = solution.table()
    names = ["base", "expert a", "expert b", "uniform merge", "verified 1", "verified 2"]
    assert [point.name for point in points] == names
    rows = [0, 1, 2, 3, 4, 5]  # best on the first task first
    front = solution.predicted(C[rows])
    for column, want in {
        "coefficients": C[rows],
        "measured": SCORES[rows],
        "predicted": front.scores,
        "std": front.std,
        "normalized": solution.normalized(SCORES[rows]),
    }.items():
        got = [getattr(point, column) for point in points]
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert solution.num_evaluations == 7
    assert solution.references() == {"base": 0, "a": 1, "b": 2, "uniform": 3}


def test_a_table_can_lack_a_surrogate_verified_points_and_references():
    points = make_solution(surrogate=None, verified=None).table()
    assert len(points) == 4
    assert np.isnan(points[0].predicted).all()
    assert np.isnan(points[0].std).all()
    others = Samples(jnp.asarray(C[4:]), jnp.asarray(SCORES[4:]))
    assert make_solution(samples=others, verified=None).table() == []


def test_a_printed_solution_is_a_readable_table():
    lines = str(make_solution()).splitlines()
    assert lines[0] == (
        "Front of 5 predicted points (3 verified) over 2 tasks, from 7 evaluations; "
        "measured (predicted):"
    )
    assert lines[1].split() == ["coefficients", "a", "b"]
    assert lines[2].split("  ")[0] == "base"
    assert lines[3].split() == ["expert", "a", "1.00", "0.00", "0.9", "(0.4)", "4", "(0.1)"]
    assert lines[-1].startswith("verified 2")
    assert max(map(len, lines[1:])) < 80
    failed = make_solution(verified=None, result=RESULTS.few_samples)
    assert "(none verified)" in str(failed)
    assert str(failed).splitlines()[-1] == RESULTS[RESULTS.few_samples]
    n = 12
    many = Samples(jnp.zeros((1, n)), jnp.ones((1, 2)))
    names = tuple(f"e{i}" for i in range(n))
    wide = make_solution(
        samples=many, coefficient_names=names, verified=None, surrogate=None
    )
    assert "0.00 ... " in str(wide)


EMPTY = Front(jnp.zeros((0, 2)), jnp.zeros((0, 2)))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.pick([1, 1], method="knee"), "A knee needs no preference"),
        (lambda s: s.pick(method="best"), "`method` is 'best'; choose"),
        (lambda s: s.pick(at_least={"z": 1.0}), r"`at_least` names \['z'\]"),
        (lambda s: s.pick({"z": 1.0}), r"`preference` names \['z'\]"),
        (lambda s: s.pick("red"), r"is 'red': pass a number for each of .*\('a', 'b'\)"),
        (lambda s: s.pick([1, 2, 3]), r"`preference` is \[1, 2, 3\]: pass .*\('a', 'b'\)"),
        (
            lambda s: s.hypervolume([1.0, 2.0, 3.0]),
            r"`reference` is \[1.0, 2.0, 3.0\]: pass .*'a', 'b'",
        ),
        (lambda s: s.normalized([1.0]), r"`scores` has shape \(1,\), but must end in one"),
        (lambda s: make_solution(front=EMPTY).pick(), "The front is empty"),
        (
            lambda s: make_solution(front=EMPTY).hypervolume(verified=False),
            "The front is empty",
        ),
        (
            lambda s: make_solution(verified=None).pick(verified=True),
            "Nothing was verified",
        ),
        (lambda s: make_solution(verified=None).hypervolume(), "Nothing was verified"),
        (
            lambda s: make_solution(surrogate=None).predicted(C),
            "There is no surrogate: none was kept.*from a tuner",
        ),
        (
            lambda s: make_solution(
                surrogate=None, result=RESULTS.no_finite_scores
            ).predicted(C),
            "There is no surrogate. A task has no finite score at all",
        ),
        (
            lambda s: make_solution(
                samples=Samples(jnp.asarray(C), jnp.full_like(SCORES, jnp.nan))
            ).hypervolume(),
            "Some task has no finite score .* pass `reference`",
        ),
    ],
)
def test_wrong_questions_are_answered_with_what_to_do(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(make_solution())


def test_experts_may_be_called_like_the_references():
    solution = make_solution(coefficient_names=("base", "uniform"))
    found = solution.references()
    assert found == {"base": 0, "expert base": 1, "expert uniform": 2, "uniform": 3}
    labels = [point.name for point in solution.table()[:4]]
    assert labels == ["base", "expert base", "expert uniform", "uniform merge"]


def test_the_hypervolume_of_many_tasks_is_estimated(key):
    names = tuple("abcdefg")
    scores = np.random.default_rng(0).random((6, 7)).astype(np.float32)
    front = Front(jnp.zeros((6, 7)), jnp.asarray(scores))
    solution = make_solution(
        front=front, task_names=names, coefficient_names=names, directions=("maximize",) * 7
    )
    with pytest.raises(ValueError, match=r"There are 7 tasks, and above 6 .* pass `key="):
        solution.hypervolume([0.0] * 7, verified=False)
    got = solution.hypervolume([0.0] * 7, verified=False, key=key)
    want = moocore.hypervolume(scores, ref=[0.0] * 7, maximise=True)
    np.testing.assert_allclose(got, want, rtol=0.05)


def test_without_some_expert_the_worst_of_all_samples_is_the_reference():
    kept = [0, 1, 3, 4, 5, 6]  # the base counts as no expert
    samples = Samples(
        jnp.asarray(C[kept], jnp.float32), jnp.asarray(SCORES[kept], jnp.float32)
    )
    solution = make_solution(samples=samples)
    worst = [SCORES[kept, 0].min(), SCORES[kept, 1].max()]
    np.testing.assert_allclose(solution.hypervolume(), solution.hypervolume(worst))


def look_at(count):
    points = np.random.default_rng(count).random((count, 2)).astype(np.float32)
    front = Front(jax.device_put(points), jax.device_put(points))
    solution = make_solution(front=front, verified=front)
    for method in ("weighted_sum", "knee", "tchebycheff"):
        solution.pick(method=method)
    solution.pick(at_least={"a": 2.0})
    assert len(solution.predicted(points)) == count
    solution.hypervolume([0.5, 0.5])
    str(solution)


def test_fronts_of_all_sizes_share_their_programs(caplog):
    look_at(3)
    with jax.log_compiles():
        look_at(5)
    assert not [r for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
