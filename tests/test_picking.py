"""A preference's own merge, beside the front of a surrogate that may be wrong."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import mapjax as mj
from mapjax import RESULTS, Solution
from mapjax._domain import Domain
from mapjax._picking import _largest_of, to_verify
from mapjax._result import Front, Samples

KEY = jax.random.key(0)
TASKS = ("a", "b", "c")


class Guess(eqx.Module):
    """Scores are the coefficients and a bonus; errors of two merges grow with distance."""

    bonus: jax.Array
    slope: jax.Array

    def __call__(self, c):
        away = jnp.max(c, axis=-1, keepdims=True) - 1 / 3
        return 0.8 * c[..., :3] + self.bonus * away

    def errors(self, c, num_draws, *, key, noise):
        assert not noise  # of single evaluations, which tells nothing of a merge
        error = jax.random.normal(key, (num_draws, 3, 3)) * self.slope
        return jnp.einsum("pc,dct->dpt", c[..., :3], error)


def solve(bonus=0.0, slope: Any = 2.0, **changes) -> Solution:
    c = jax.random.dirichlet(KEY, jnp.ones(3), (40,))
    guess = Guess(jnp.asarray(bonus), jnp.asarray(slope))
    fields: dict[str, Any] = dict(
        front=Front(c, guess(c)),
        samples=Samples(jnp.eye(3), guess(jnp.eye(3))),
        verified=Front(jnp.eye(3), guess(jnp.eye(3))),
        surrogate=guess,
        result=RESULTS.successful,
        stats={},
        num_verified=0,
        task_names=TASKS,
        coefficient_names=TASKS,
        directions=("maximize",) * 3,
        by_preference=True,
    )
    return Solution(**fields | changes)


@pytest.mark.parametrize("count", [2, 3, 7, 15, 40])
def test_the_largest_of_some_normal_numbers_is_the_integral(count):
    def density(x):
        return x * count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1)

    expected, _ = integrate.quad(density, -9, 9)
    assert _largest_of(count) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("preference", [[0.2, 0.3, 0.5], [6, 2, 2], [0.0, 1.0, 1.0]])
@pytest.mark.parametrize("slope", [0.0, 0.02, 0.1, 2.0])
def test_the_front_is_left_unless_it_is_better_by_more_than_luck(preference, slope):
    solution = solve(bonus=0.2, slope=slope)
    w = np.array(preference) / np.sum(preference)
    c = np.asarray(solution.front.coefficients)
    gains = (
        np.asarray(solution.front.scores) - np.asarray(solution.predicted(w).scores[0])
    ) @ w
    # The errors of tasks are independent, of one deviation along each coefficient.
    deviation = slope * np.linalg.norm(c - w, axis=1) * np.linalg.norm(w)
    sure = gains - _largest_of(2) * deviation
    picked = np.asarray(solution.pick(preference))
    # Deviations are those of some hundred draws.
    near = 0.25 * np.abs(_largest_of(2) * deviation).max() + 1e-6
    if np.allclose(picked, w, atol=1e-6):
        assert sure.max() < near
    else:
        assert sure[np.abs(c - picked).sum(axis=1).argmin()] > max(0, sure.max()) - near
    assert (slope == 2.0) == np.allclose(picked, w, atol=1e-6)  # both happen
    best = c[np.argmax(np.asarray(solution.front.scores) @ w)]
    not_so = solve(bonus=0.2, slope=slope, by_preference=False)
    np.testing.assert_array_equal(not_so.pick(preference), best)


def test_names_say_whose_expert_is_whose():
    other = solve(coefficient_names=("c", "a", "b"))
    np.testing.assert_allclose(other.pick({"a": 0.7, "b": 0.3}), [0, 0.7, 0.3])
    more = solve(
        coefficient_names=("z", "b", "a", "c"),
        front=Front(jnp.full((1, 4), 0.25), jnp.full((1, 3), 0.25)),
        surrogate=None,
    )
    np.testing.assert_allclose(more.pick({"a": 0.7, "b": 0.3}), [0, 0.3, 0.7, 0])


def test_groups_are_mixed_alike():
    c = jnp.repeat(jax.random.dirichlet(KEY, jnp.ones(3), (9,)), 2, axis=1)
    grouped = solve(
        front=Front(c, c[:, :3]),
        coefficient_names=tuple(f"{t}/{g}" for t in TASKS for g in "lr"),
        experts=TASKS,
    )
    np.testing.assert_allclose(grouped.pick([1, 1, 2]), [0.25] * 4 + [0.5] * 2)


def test_a_task_to_minimise_is_better_below():
    down = solve(directions=("minimize",) * 3, bonus=-0.2, slope=0.0)
    w = np.array([0.2, 0.3, 0.5])
    picked = np.asarray(down.predicted(down.pick(w)).scores[0]) @ w
    assert picked == pytest.approx(float(np.min(np.asarray(down.front.scores) @ w)))
    unsure = solve(directions=("minimize",) * 3, bonus=-0.2, slope=9.0)
    np.testing.assert_allclose(unsure.pick(w), w, atol=1e-6)


def test_what_is_wished_comes_before_the_own_merge():
    solution = solve()
    np.testing.assert_allclose(
        solution.pick([1, 1, 2], at_least={"c": 0.3}), [1 / 4, 1 / 4, 1 / 2]
    )
    picked = solution.pick([1, 1, 2], at_least={"c": 0.5})
    assert float(solution.predicted(picked).scores[0, 2]) >= 0.5
    assert picked.tolist() in solution.front.coefficients.tolist()
    lone = solution.pick(at_least={"c": 0.3})  # no preference, and so no merge of its own
    assert lone.tolist() in solution.front.coefficients.tolist()


@pytest.mark.parametrize(
    "options", [{"method": "tchebycheff"}, {"method": "knee"}, {"verified": True}]
)
def test_other_picks_are_of_the_front(options):
    solution = solve()
    front = solution.verified if "verified" in options else solution.front
    assert front is not None
    assert solution.pick(**options).tolist() in front.coefficients.tolist()


@pytest.mark.parametrize("surrogate", [None, lambda c: 0.8 * c])
def test_where_nothing_tells_of_luck_the_own_merge_is_taken(surrogate):
    solution = solve(surrogate=surrogate)
    np.testing.assert_allclose(solution.pick([1, 1, 2]), [0.25, 0.25, 0.5])
    wished = solution.pick([1, 1, 2], at_least={"c": 0.3})  # which nothing predicts
    assert wished.tolist() in solution.front.coefficients.tolist()


def test_a_task_without_errors_counts_only_where_it_is_wished_for():
    known = solve(bonus=0.2, slope=0.0)
    unknown = solve(bonus=0.2, slope=jnp.array([0.0, 0.0, jnp.nan]))
    np.testing.assert_array_equal(unknown.pick([0.6, 0.4, 0]), known.pick([0.6, 0.4, 0]))
    np.testing.assert_allclose(unknown.pick([0.6, 0.2, 0.2]), [0.6, 0.2, 0.2])
    assert not np.allclose(known.pick([0.6, 0.2, 0.2]), [0.6, 0.2, 0.2])


@pytest.mark.parametrize(
    ("preference", "words"),
    [([2, -0.5, -0.5], "holds -0.5 at position 1"), ([0, 0, 0], "0 for every objective")],
)
def test_no_preference_is_refused_whatever_is_wished(preference, words):
    for wish in (None, {"a": 0.1}, {"a": 5.0}):
        with pytest.raises(ValueError, match=words):
            solve().pick(preference, at_least=wish)


def test_between_two_experts_luck_goes_both_ways():
    def pick(slope):
        c = jnp.linspace(0, 1, 20)[:, None] * jnp.array([1.0, -1.0]) + jnp.array([0.0, 1.0])
        c = jnp.concatenate([c, jnp.zeros((20, 1))], axis=1)
        guess = Guess(jnp.asarray(0.2), jnp.asarray(slope))
        names = ("a", "b", "c")[:2]
        scores = guess(c)[:, :2]

        class Two(eqx.Module):
            def __call__(self, c):
                return guess(jnp.pad(c, ((0, 0), (0, 1))))[:, :2]

            def errors(self, c, num_draws, **options):
                errors = guess.errors(jnp.pad(c, ((0, 0), (0, 1))), num_draws, **options)
                return errors[..., :2]

        return solve(
            front=Front(c[:, :2], scores),
            surrogate=Two(),
            task_names=names,
            coefficient_names=names,
            directions=("maximize",) * 2,
        ).pick([0.6, 0.4])

    assert not np.allclose(pick(0.0), [0.6, 0.4])
    for slope in (1.0, 100.0):
        np.testing.assert_allclose(pick(slope), [0.6, 0.4], atol=1e-6)


def test_what_would_be_picked_is_what_is_verified():
    solution, domain = solve(), Domain(np.zeros(3), np.ones(3), 3, mixtures=True)
    points = to_verify(solution, 5, domain, KEY)
    np.testing.assert_allclose(points.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(points[0], solution.pick())
    assert len(np.unique(points, axis=0)) == 5
    # What is a sample, or picked twice, makes room for points of the front.
    mean = jnp.full((1, 3), 1 / 3)
    certain = solve(samples=Samples(mean, mean), bonus=0.1, slope=0.0)
    points = to_verify(certain, 20, domain, KEY)
    assert len(np.unique(points, axis=0)) == 20
    assert np.abs(points - 1 / 3).max(axis=1).min() > 1e-3


def test_points_of_the_front_that_are_far_apart_are_verified():
    solution, surrogate = solve(by_preference=False), Guess(jnp.zeros(()), jnp.ones(()))
    rows = np.asarray(solution.front.coefficients)
    chosen = to_verify(solution, 5, Domain(np.zeros(3), np.ones(3), 3), KEY)
    assert all((rows == point).all(axis=1).any() for point in chosen)
    best = solution.front.scores.max(axis=0)
    np.testing.assert_allclose(surrogate(jnp.asarray(chosen)).max(axis=0), best)


def test_where_all_of_the_front_was_sampled_nothing_is_left_to_verify():
    front = solve().front
    known = solve(by_preference=False, samples=Samples(front.coefficients, front.scores))
    chosen = to_verify(known, 3, Domain(np.zeros(3), np.ones(3), 3), KEY)
    assert chosen.shape == (0, 3)


@pytest.mark.slow
def test_drivers_say_where_preferences_have_merges_of_their_own(tmp_path):
    x = np.eye(3, dtype="f")
    tv = mj.TaskVectors.from_params(jnp.zeros(3), list(3 * x), names=TASKS)
    tasks = [
        mj.Task(name, lambda p, x: x @ p, x, target, metric=mj.metrics.mean_squared_error)
        for name, target in zip(TASKS, 2 * x, strict=True)
    ]
    rule = mj.rules.weighted_average(tv)
    options: dict[str, Any] = dict(budget=12, key=KEY, num_points=20)
    evaluator = mj.Evaluator(rule, tasks)
    solution = mj.map_front(evaluator, verify=3, **options)
    assert solution.by_preference
    assert solution.num_verified == 3
    np.testing.assert_array_equal(solution.pick(), solution.samples.coefficients[3])
    solution.save(tmp_path / "solution.npz")
    again = Solution.load(tmp_path / "solution.npz")
    gains = []
    for preference in ([1, 1, 1], [0.6, 0.3, 0.1]):
        picked = solution.pick(preference)
        np.testing.assert_array_equal(again.pick(preference), picked)
        own = np.array(preference) / np.sum(preference)
        gains.append(own @ (evaluator(own[None]) - evaluator(picked[None]))[0])
    # The mean is the best for equal wishes, and not for others: outputs are linear, so
    # that nothing predicted is luck.
    assert gains[0] == pytest.approx(0, abs=1e-3)
    assert gains[1] > 0.01
    # Where proportions are not all that counts, coefficients are no preferences.
    mixed = mj.map_front(mj.Evaluator(tv, tasks), bounds="simplex", **options)
    # Nor where nothing says whose expert is whose.
    nameless = mj.TaskVectors.from_params(jnp.zeros(3), list(3 * x))
    unknown = mj.Evaluator(mj.rules.weighted_average(nameless), tasks)
    assert not mj.map_front(unknown, **options).by_preference
    tree = mj.nested_front(evaluator, key=KEY, num_points=20, budget=8)
    assert not mixed.by_preference
    assert not tree.by_preference


@pytest.mark.parametrize("result", [RESULTS.few_samples, RESULTS.rank_deficient])
def test_a_front_that_samples_do_not_determine_is_not_picked_from(result):
    solution = solve(bonus=5.0, result=result, by_preference=False)
    for t, task in enumerate(TASKS):
        np.testing.assert_array_equal(solution.pick({task: 1.0}), np.eye(3)[t])
    np.testing.assert_array_equal(solution.pick(at_least={"b": 4.0}), np.eye(3)[1])
    sure = solve(bonus=5.0, by_preference=False)
    assert not np.isin(sure.pick({"a": 1.0}), (0.0, 1.0)).all()


def test_eight_experts_and_too_few_evaluations_pick_no_corner_of_the_box():
    def evaluate(c):  # all want to be near their own expert
        return -((np.asarray(c)[:, None] - np.eye(8)) ** 2).sum(2)

    with pytest.warns(UserWarning, match="fewer usable samples"):
        solution = mj.map_front(
            evaluate, num_coefficients=8, budget=24, num_generations=20, key=KEY
        )
    picked = evaluate(solution.pick()[None]).mean()
    assert picked >= solution.samples.scores.mean(axis=1).max() - 1e-6
