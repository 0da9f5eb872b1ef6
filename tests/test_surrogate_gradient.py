"""Quadratics fitted to scores and derivatives, against NumPy, SciPy and refits."""

from typing import Any

import jax
import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.special import expit

import mapjax as mj
from mapjax.surrogate import _fit_gradient, fit_quadratic

N, T, K = 3, 2, 8


def quadratic(seed, n=N):
    """Random scores and their derivatives."""
    rng = np.random.default_rng(seed)
    e, b, a = rng.normal(size=T), rng.normal(size=(T, n)), rng.normal(size=(T, n, n))
    a = a + a.transpose(0, 2, 1)

    def scores(c):
        return e + c @ b.T + 0.5 * np.einsum("ki,tij,kj->kt", c, a, c)

    return scores, lambda c: b + np.einsum("tij,kj->kti", a, c)


def points(count, n=N, seed=0):
    return np.random.default_rng(seed).random((count, n))


def wavy(c):
    """Scores that no quadratic reproduces, and their derivatives."""
    w = np.array([[3.0, -1.0, 2.0], [1.0, 2.0, -2.0]])
    return np.sin(c @ w.T), np.cos(c @ w.T)[..., None] * w


def basis(c):
    i, j = np.triu_indices(c.shape[1])
    return np.concatenate([np.ones((len(c), 1)), c, c[:, i] * c[:, j]], axis=1)


def stacked(c, importance):
    """Rows of values and, in units of the coefficients' spread, of derivatives."""
    step, spread = 1e-5, c.std(axis=0)
    slopes = [
        (basis(c + step * unit) - basis(c - step * unit)) / (2 * step) * spread[i]
        for i, unit in enumerate(np.eye(c.shape[1]))
    ]
    return np.concatenate([basis(c), *(importance**0.5 * x for x in slopes)])


def targets(c, values, jacobian, importance, task):
    slopes = importance**0.5 * jacobian[:, task] * c.std(axis=0)
    return np.concatenate([values[:, task], slopes.T.ravel()])


@pytest.fixture
def always(monkeypatch):
    """Weigh derivatives by one number."""

    def set_to(importance):
        monkeypatch.setattr(
            "mapjax.surrogate._fit_quadratic.IMPORTANCES", np.array([importance])
        )
        return importance

    return set_to


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("where", ["anywhere", "base and experts"])
def test_one_sample_more_than_coefficients_determines_a_quadratic(n, where):
    scores, slopes = quadratic(n, n)
    c = points(n + 1, n) if where == "anywhere" else np.eye(n + 1, n, k=-1)
    jacobian = slopes(c)
    jacobian[-1] = np.nan  # the last value is enough
    fitted = fit_quadratic(c, scores(c), jacobian=jacobian)
    new = points(50, n, seed=1)
    size = np.abs(scores(new)).max()
    np.testing.assert_allclose(fitted(new), scores(new), atol=2e-5 * size)
    assert (np.asarray(fitted.rank) == (n + 1) * (n + 2) // 2).all()


@pytest.mark.parametrize("count", [2, 3])
def test_fewer_samples_determine_less_and_are_warned_of(count):
    scores, slopes = quadratic(0)
    c = points(count)
    told = np.linalg.matrix_rank(stacked(c, 1.0), tol=1e-6)
    with pytest.warns(UserWarning, match=f"10 unknowns.*: {10 - told} are missing"):
        fitted = fit_quadratic(c, scores(c), jacobian=slopes(c))
    assert (np.asarray(fitted.rank) == told).all()


@pytest.mark.parametrize("importance", [0.2, 5.0])
def test_is_the_least_squares_fit_of_numpy(importance, always):
    always(importance)
    c = points(K)
    values, jacobian = wavy(c)
    fitted = fit_quadratic(c, values, jacobian=jacobian)
    matrix, new = stacked(c, importance), points(20, seed=2)
    for task in range(T):
        wanted = targets(c, values, jacobian, importance, task)
        beta = np.linalg.lstsq(matrix, wanted)[0]
        np.testing.assert_allclose(fitted(new)[:, task], basis(new) @ beta, atol=2e-4)
        free = matrix.shape[0] - matrix.shape[1]
        noise = np.sqrt(np.sum((wanted - matrix @ beta) ** 2) / free)
        np.testing.assert_allclose(fitted.noise[task], noise, rtol=1e-3)
        inverse = np.linalg.inv(matrix.T @ matrix)
        spread = np.sqrt(1 + np.einsum("ki,ij,kj->k", basis(new), inverse, basis(new)))
        np.testing.assert_allclose(fitted.std(new)[:, task], noise * spread, rtol=5e-3)


def test_left_out_are_whole_samples(always):
    importance = always(0.5)
    c = points(K)
    values, jacobian = wavy(c)
    fitted = fit_quadratic(c, values, jacobian=jacobian)
    rows = np.tile(np.arange(K), N + 1)
    for task in range(T):
        matrix = stacked(c, importance)
        wanted = targets(c, values, jacobian, importance, task)
        alone = [
            basis(c[[k]]) @ np.linalg.lstsq(matrix[rows != k], wanted[rows != k])[0]
            for k in range(K)
        ]
        np.testing.assert_allclose(fitted.left_out[:, task], np.ravel(alone), atol=2e-3)
        error = np.sum((values[:, task] - np.ravel(alone)) ** 2)
        explained = 1 - error / np.sum((values[:, task] - values[:, task].mean()) ** 2)
        np.testing.assert_allclose(fitted.loo_r2[task], explained, atol=5e-3)


def test_values_that_the_others_do_not_determine_are_not_left_out():
    scores, slopes = quadratic(0)
    c = points(N + 1)
    fitted = fit_quadratic(c, scores(c), jacobian=slopes(c))
    assert np.isnan(np.asarray(fitted.left_out)).all()
    c = points(N + 2)
    fitted = fit_quadratic(c, scores(c), jacobian=slopes(c))
    np.testing.assert_allclose(fitted.left_out, scores(c), atol=1e-3)


def test_behind_a_link_it_is_the_fit_of_scipy(always):
    importance = always(1.0)
    scores, slopes = quadratic(3)
    c = points(K)
    unit = expit(scores(c))
    rng = np.random.default_rng(0)
    # Small errors of values and derivatives: linked least squares then are those of SciPy,
    # in scores, with each row weighed by the variance of its score.
    values = unit + 1e-4 * rng.normal(size=unit.shape)
    slope = unit * (1 - unit)
    jacobian = slope[..., None] * (slopes(c) + 1e-3 * rng.normal(size=(K, T, N)))
    fitted = fit_quadratic(c, values, jacobian=jacobian, link="sigmoid", num_examples=10**6)
    matrix, new = stacked(c, importance), points(20, seed=2)
    for task in range(T):
        deviation = np.sqrt(values[:, task] * (1 - values[:, task]))
        linked = jacobian[:, task] / (values * (1 - values))[:, [task]] * c.std(axis=0)
        start = np.linalg.lstsq(
            matrix,
            np.concatenate(
                [np.log(values[:, task] / (1 - values[:, task])), linked.T.ravel()]
            ),
        )[0]

        def away(beta, task=task, deviation=deviation, linked=linked):
            latent = matrix @ beta
            in_scores = (expit(latent[:K]) - values[:, task]) / deviation
            in_slopes = (latent[K:].reshape(N, K) - linked.T) * deviation
            return np.concatenate([in_scores, in_slopes.ravel()])

        beta = least_squares(away, start, xtol=1e-14, ftol=1e-14).x
        np.testing.assert_allclose(
            fitted(new)[:, task], expit(basis(new) @ beta), atol=2e-4
        )


def test_missing_derivatives_and_scores_are_those_of_a_fit_without():
    c = points(K)
    values, jacobian = wavy(c)
    holes = jacobian.copy()
    holes[2:, 0], holes[5, 1, 1] = np.nan, np.inf
    fitted = fit_quadratic(c, values, jacobian=holes, ridge="auto")
    without = jacobian.copy()
    without[2:, 0], without[5, 1] = np.nan, np.nan
    again = fit_quadratic(c, values, jacobian=without, ridge="auto")
    np.testing.assert_allclose(fitted(c), again(c), rtol=1e-5)
    gone, off = values.copy(), np.arange(K) >= 4
    gone[off], without[off] = np.nan, 7.0
    fewer = fit_quadratic(c, gone, jacobian=jacobian, ridge="auto")
    alone = fit_quadratic(c, values, jacobian=without, ridge="auto", weights=1.0 * ~off)
    assert not np.allclose(fewer(c), again(c), atol=1e-2)
    np.testing.assert_allclose(fewer(c)[:, 1], alone(c)[:, 1], atol=1e-3)


def test_derivatives_that_mislead_are_dropped():
    scores, _ = quadratic(1)
    c = points(24)
    nonsense = 30 * np.random.default_rng(5).normal(size=(24, T, N))
    fitted = fit_quadratic(c, scores(c), jacobian=nonsense)
    np.testing.assert_allclose(fitted(c), scores(c), atol=1e-3)


def test_no_derivative_at_all_is_the_plain_fit():
    c = points(24)
    values, jacobian = wavy(c)
    fitted = fit_quadratic(c, values, jacobian=np.full_like(jacobian, np.nan))
    plain = fit_quadratic(c, values)
    for name in ("constant", "linear", "hessian", "r2", "loo_r2", "noise", "left_out"):
        mine, wanted = np.asarray(getattr(fitted, name)), getattr(plain, name)
        np.testing.assert_allclose(mine, wanted, atol=2e-4, err_msg=name)


@pytest.mark.usefixtures("x64")
def test_recovers_in_double_precision():
    scores, slopes = quadratic(2)
    c = points(N + 1)
    fitted = fit_quadratic(c, scores(c), jacobian=slopes(c))
    new = points(20, seed=3)
    np.testing.assert_allclose(fitted(new), scores(new), atol=1e-11)


def test_no_number_retraces():
    c = points(K)
    values, jacobian = wavy(c)
    traced = _fit_gradient.fit_gradient._cached._cache_size
    fit_quadratic(c, values, jacobian=jacobian, ridge=0.1)
    before = traced()
    holes = np.where(np.arange(K)[:, None, None] < 3, jacobian, np.nan)
    fit_quadratic(2 * c, values + 1, jacobian=holes, ridge=0.2)
    assert traced() == before


@pytest.mark.parametrize("shape", [(K, T), (K, N, T), (K + 1, T, N)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"`jacobian` has shape .*expected \(8, 2, 3\)"):
        fit_quadratic(points(K), np.zeros((K, T)), jacobian=np.zeros(shape))


RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 8)).astype(np.float32), RNG.integers(0, 4, 40)


def make_evaluator(metric=mj.metrics.cross_entropy, traces=None):
    def predict(params, x):
        if traces is not None:
            traces.append(x.shape)
        return x @ params["w"]

    rng = np.random.default_rng(1)
    base, *experts = ({"w": rng.normal(size=(8, 4)).astype(np.float32)} for _ in range(4))
    tv = mj.TaskVectors.from_params(base, experts)
    tasks = [mj.Task(f"t{i}", predict, X[i::2], Y[i::2], metric) for i in range(2)]
    return mj.Evaluator(tv, tasks)


@pytest.mark.slow
def test_a_gradient_costs_about_three_evaluations():
    rng = np.random.default_rng(2)
    inputs, targets = rng.normal(size=(2, 200, 32)).astype(np.float32)

    def predict(params, x):
        for w in params:
            x = jax.nn.relu(x @ w)
        return x

    def draw():
        return [rng.normal(size=(32, 32)).astype(np.float32) for _ in range(2)]

    for n in (1, 5):
        tv = mj.TaskVectors.from_params(draw(), [draw() for _ in range(n)])
        tasks = [
            mj.Task(f"t{i}", predict, inputs, targets, mj.metrics.mean_squared_error)
            for i in range(2)
        ]
        evaluator = mj.Evaluator(tv, tasks)
        plain, both = (
            evaluator.program(kind).run.cost_analysis()["flops"]
            for kind in ("scores", "jacobian")
        )
        assert both < 3.6 * plain


@pytest.mark.slow
def test_a_driver_counts_a_gradient_as_three(key):
    evaluator = make_evaluator()
    options: dict[str, Any] = dict(
        key=key, num_generations=5, num_points=10, progress=False, rounds=1
    )
    solution = mj.map_front(evaluator, budget=20, surrogate="gradient", **options)
    assert len(solution.samples) == 6
    assert solution.stats["num_evaluations"] == 18
    scores, jacobian = evaluator.value_and_jacobian(solution.samples.coefficients)
    np.testing.assert_allclose(solution.samples.scores, scores, rtol=1e-5)
    c = np.random.default_rng(3).random((30, 3)).astype(np.float32)
    fitted = fit_quadratic(
        np.asarray(solution.samples.coefficients),
        np.asarray(scores),
        link="softplus",
        bounds=(0, None),
        num_examples=20,
        ridge="auto",
        jacobian=np.asarray(jacobian),
    )
    assert solution.surrogate is not None
    np.testing.assert_allclose(solution.surrogate(c), fitted(c), rtol=2e-3)


@pytest.mark.slow
def test_derivatives_are_saved_and_taken_from_the_file(key, tmp_path):
    path, traces = tmp_path / "samples.jsonl", []
    options: dict[str, Any] = dict(
        budget=18, key=key, num_generations=5, num_points=10, progress=False, rounds=1
    )
    first = mj.map_front(make_evaluator(), surrogate="gradient", save_to=path, **options)
    evaluator = make_evaluator(traces=traces)
    before = len(traces)
    again = mj.map_front(evaluator, surrogate="gradient", save_to=path, **options)
    assert len(traces) > before  # traced for its shapes, but not evaluated:
    assert again.stats["num_reused"] == len(first.samples)
    np.testing.assert_array_equal(again.front.scores, first.front.scores)


def test_what_gives_no_derivative_is_refused_before_any_evaluation(key):
    asked = []

    def evaluate(c):
        asked.append(c)
        return c[:, :2]

    with pytest.raises(ValueError, match="a plain function of the coefficients gives"):
        mj.map_front(evaluate, num_coefficients=3, budget=30, key=key, surrogate="gradient")
    assert not asked
    step = make_evaluator(mj.metrics.accuracy)
    with pytest.raises(ValueError, match=r"\['t0', 't1'\] are not differentiable"):
        mj.map_front(step, budget=30, key=key, surrogate="gradient")
    with pytest.raises(ValueError, match="3 experts alone take 12 evaluations"):
        mj.map_front(make_evaluator(), budget=11, key=key, surrogate="gradient")
    with pytest.raises(ValueError, match="'quadratic', 'gradient' or"):
        mj.map_front(make_evaluator(), budget=11, key=key, surrogate="gradients")
