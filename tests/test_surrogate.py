"""`fit_quadratic` against NumPy, SciPy and refits."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from scipy.stats import qmc

from mapjax.surrogate import fit_quadratic

N, T, K = 3, 2, 24
P = (N + 1) * (N + 2) // 2


def design_matrix(c):
    """Quadratic basis in double precision: 1, c_i, c_i c_j with i <= j."""
    i, j = np.triu_indices(c.shape[1])
    c = np.asarray(c, np.float64)
    return np.concatenate([np.ones((len(c), 1)), c, c[:, i] * c[:, j]], axis=1)


def quadratic(seed, num_coefficients=N, num_tasks=T, size=1.0):
    """Random constant, gradient, symmetric Hessian and the function they make."""
    rng = np.random.default_rng(seed)
    e, b = rng.normal(size=num_tasks), rng.normal(size=(num_tasks, num_coefficients))
    a = rng.normal(size=(num_tasks, num_coefficients, num_coefficients))
    e, b, a = size * e, size * b, size * (a + a.transpose(0, 2, 1))
    return e, b, a, lambda c: e + c @ b.T + 0.5 * np.einsum("ki,tij,kj->kt", c, a, c)


def points(count=K, num_coefficients=N, seed=0):
    return qmc.Sobol(num_coefficients, rng=seed).random_base2(8)[:count]


def assert_same(a, b, tolerance):
    """The largest difference is below the tolerance, relative to the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-30)


def noisy(seed=1, spread=0.1):
    """Scores that no quadratic reproduces."""
    c, (*_, f) = points(), quadratic(seed)
    return c, f(c) + spread * np.random.default_rng(seed).normal(size=(K, T))


def check_recovery(num_coefficients, tolerance):
    e, b, a, f = quadratic(num_coefficients, num_coefficients)
    p = (num_coefficients + 1) * (num_coefficients + 2) // 2
    c = points(2 * p, num_coefficients)
    fitted = fit_quadratic(c, f(c))
    assert_same(fitted.constant, e, tolerance)
    assert_same(fitted.linear, b, tolerance)
    assert_same(fitted.hessian, a, tolerance)
    new = points(64, num_coefficients, seed=1)
    assert_same(fitted(new), f(new), tolerance)
    assert (np.asarray(fitted.rank) == p).all()
    assert float(jnp.min(fitted.loo_r2)) > 1 - tolerance


@pytest.mark.parametrize("num_coefficients", [1, 2, 5, 8])
def test_recovers_a_quadratic(num_coefficients):
    check_recovery(num_coefficients, 1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_coefficients", [2, 8])
def test_recovers_a_quadratic_in_double_precision(num_coefficients):
    check_recovery(num_coefficients, 1e-9)


@given(arrays(np.float32, (T, 10), elements=st.floats(-100, 100, width=32)))
def test_recovers_any_quadratic(beta):
    c = points()
    scores = design_matrix(c) @ beta.T
    new = points(seed=2)
    size = max(np.abs(scores).max(), 1e-6)
    predicted = np.asarray(fit_quadratic(c, scores)(new))
    assert np.abs(predicted - design_matrix(new) @ beta.T).max() < 1e-4 * size


def test_is_the_least_squares_fit_of_numpy():
    c, s = noisy()
    w = np.random.default_rng(2).uniform(0.1, 2, (K, T))
    for weights in (None, w[:, 0], w):
        root = np.sqrt(np.ones((K, T)) if weights is None else weights.reshape(K, -1))
        root = np.broadcast_to(root, (K, T))
        beta = np.stack(
            [
                np.linalg.lstsq(root[:, [t]] * design_matrix(c), root[:, t] * s[:, t])[0]
                for t in range(T)
            ],
            axis=1,
        )
        fitted = fit_quadratic(c, s, weights=weights)
        assert_same(fitted.constant, beta[0], 1e-4)
        assert_same(fitted.linear, beta[1 : N + 1].T, 1e-4)
        residual = s - design_matrix(c) @ beta
        mean = np.average(s, axis=0, weights=root**2 * np.ones_like(s))
        explained = 1 - (root**2 * residual**2).sum(0) / (root**2 * (s - mean) ** 2).sum(0)
        assert_same(fitted.r2, explained, 1e-4)


def test_condition_number_and_rank_are_those_of_numpy():
    c, s = noisy()
    fitted = fit_quadratic(c, s)
    z = (c - c.mean(0)) / c.std(0)
    x = design_matrix(z)[:, 1:]
    x = (x - x.mean(0)) / x.std(0)
    assert_same(fitted.condition_number[0], np.linalg.cond(x), 1e-4)
    # Two levels: the square of a coefficient is the coefficient.
    grid = np.stack(np.meshgrid(*[[0.0, 1.0]] * N), axis=-1).reshape(-1, N)
    grid = np.concatenate([grid, grid, grid])
    fitted = fit_quadratic(grid, np.sin(grid @ np.ones((N, T))))
    assert fitted.rank.tolist() == [np.linalg.matrix_rank(design_matrix(grid))] * T
    assert np.isinf(np.asarray(fitted.condition_number)).all()
    assert float(jnp.min(fitted.ridge)) > 0


@pytest.mark.parametrize("closeness", [1e-1, 1e-2])
def test_nearly_collinear_samples(closeness):
    def sample(seed):
        c = points(40, N, seed)
        return np.concatenate([c, c[:, :1] + closeness * points(40, 1, seed + 9)], axis=1)

    c, new = (sample(seed).astype(np.float32) for seed in (0, 1))
    s = np.sin(2 * c @ np.random.default_rng(0).normal(size=(N + 1, T)))
    beta = np.linalg.lstsq(design_matrix(c - c.mean(0)), s)[0]
    expected = design_matrix(new - c.mean(0)) @ beta
    assert_same(fit_quadratic(c, s)(new), expected, 1e-2)


@pytest.mark.parametrize("width", [1e-2, 1e-5])
def test_samples_in_a_tiny_box(width):
    c, new = ((0.5 + width * points(seed=s)).astype(np.float32) for s in (0, 1))
    centre = c.mean(0, dtype=np.float64)
    f = quadratic(3)[-1]
    s = f((c - centre) / width)
    assert_same(fit_quadratic(c, s)(new), f((new - centre) / width), 1e-4)


def test_a_coefficient_that_never_varies_is_left_out():
    c, s = noisy()
    c[:, 1] = 0.3
    fitted = fit_quadratic(c, s, ridge=0.0)
    keep = [0, 2]
    beta = np.linalg.lstsq(design_matrix(c[:, keep]), s)[0]
    assert_same(fitted(c), design_matrix(c[:, keep]) @ beta, 1e-4)
    assert float(jnp.abs(fitted.hessian[:, 1]).max()) == 0
    assert float(jnp.abs(fitted.linear[:, 1]).max()) == 0


def in_fitted_units(c):
    """Standardised, stiffened features in NumPy: what the penalty is measured in."""
    z = (c - c.mean(0)) / c.std(0)
    x = design_matrix(z)[:, 1:]
    x = (x - x.mean(0)) / x.std(0)
    x[:, c.shape[1] :] /= np.sqrt(50)
    return x


def ridge_fit(x, y, penalty, count):
    """Augmented least squares with a free intercept; mean over `count` samples."""
    rows = np.concatenate([np.ones((len(x), 1)), x], axis=1) / np.sqrt(count)
    shrink = np.sqrt(penalty) * np.eye(x.shape[1] + 1)[1:]
    right = np.concatenate([y / np.sqrt(count), np.zeros(x.shape[1])])
    return np.linalg.lstsq(np.concatenate([rows, shrink]), right)[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("penalty", [0.0, 1e-4, 0.3])
def test_ridge_and_leave_one_out_are_those_of_refits(penalty):
    c, s = noisy(spread=0.5)
    fitted = fit_quadratic(c, s, ridge=penalty)
    x = in_fitted_units(c)
    for t in range(T):
        beta = ridge_fit(x, s[:, t], penalty, K)
        np.testing.assert_allclose(fitted(c)[:, t], beta[0] + x @ beta[1:], rtol=1e-9)
        left_out = np.zeros(K)
        for k in range(K):
            rest = np.arange(K) != k
            beta = ridge_fit(x[rest], s[rest, t], penalty, K)
            left_out[k] = beta[0] + x[k] @ beta[1:]
        error = ((s[:, t] - left_out) ** 2).sum() / ((s[:, t] - s[:, t].mean()) ** 2).sum()
        np.testing.assert_allclose(fitted.loo_r2[t], 1 - error, rtol=1e-9)


def test_auto_takes_the_penalty_with_the_least_leave_one_out_error():
    c, s = noisy(spread=2.0)
    chosen = fit_quadratic(c, s, ridge="auto")
    every = [fit_quadratic(c, s, ridge=r) for r in (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)]
    best = np.stack([f.loo_r2 for f in every]).max(axis=0)
    np.testing.assert_allclose(chosen.loo_r2, best, rtol=1e-4)
    assert (best > np.asarray(every[-1].loo_r2)).all()
    # A quadratic without noise needs no penalty.
    assert fit_quadratic(c, quadratic(1)[-1](c), ridge="auto").ridge.tolist() == [0, 0]


@pytest.mark.parametrize("link", ["identity", "sigmoid"])
def test_missing_scores_count_for_nothing(link):
    c = points()
    s = expit(quadratic(4)[-1](c)) + 0.01 * np.sin(40 * c[:, :1])
    s = np.clip(s, 0.01, 0.99)
    holes = s.copy()
    holes[[3, 7], 0], holes[[5, 9], 1] = np.nan, np.inf
    fitted = fit_quadratic(c, holes, link=link)
    for t, gone in enumerate([[3, 7], [5, 9]]):
        alone = fit_quadratic(np.delete(c, gone, 0), np.delete(s, gone, 0), link=link)
        assert_same(fitted(c)[:, t], alone(c)[:, t], 1e-4)
        assert_same(fitted.loo_r2[t], alone.loo_r2[t], 1e-4)
        weights = np.where(np.isin(np.arange(K), gone), 0.0, 1.0)
        off = fit_quadratic(c, s, link=link, weights=weights)
        assert_same(off(c)[:, t], alone(c)[:, t], 1e-4)


def test_a_constant_metric_is_predicted_and_explained():
    c, s = noisy()
    s[:, 1] = 0.7
    fitted = fit_quadratic(c, s)
    np.testing.assert_allclose(fitted(3 * c)[:, 1], 0.7, rtol=1e-6)
    assert float(fitted.r2[1]) == float(fitted.loo_r2[1]) == 1


def test_as_many_samples_as_unknowns_leave_nothing_to_judge_by():
    c, s = noisy()
    fitted = fit_quadratic(c[:P], s[:P])
    assert_same(fitted(c[:P]), s[:P], 1e-3)
    assert np.isnan(np.asarray(fitted.loo_r2)).all()
    assert np.isnan(np.asarray(fitted.std(c))).all()


def test_base_and_experts_alone_are_interpolated_linearly():
    n = 8
    c = np.concatenate([np.zeros((1, n)), np.eye(n)])
    s = np.full((n + 1, 3), 0.3)
    s[1, 0], s[2, 1] = 0.95, 0.8
    s[:, 2] = np.linspace(5, 1, n + 1)
    with pytest.warns(UserWarning, match=r"45 unknowns, but there are 9 usable .* 36 are"):
        fitted = fit_quadratic(c, s)
    mixes = np.random.default_rng(0).dirichlet(np.ones(n + 1), 200)
    linear, span = mixes @ s, np.ptp(s, axis=0)
    assert (np.abs(np.asarray(fitted(mixes[:, 1:])) - linear) < 0.15 * span).all()
    box = np.asarray(fitted(np.random.default_rng(1).random((500, n))))
    assert (box > s.min(0) - span).all()
    assert (box < s.max(0) + span).all()


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_few_samples_never_give_nonsense(count):
    c, s = noisy()
    padded = np.where(np.arange(K)[:, None] < count, s, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_quadratic(c, padded, ridge="auto")
    box = np.asarray(fitted(np.random.default_rng(1).random((500, N))))
    span = np.ptp(s[:count], axis=0)
    assert (box >= s[:count].min(0) - 2 * span - 1e-5).all()
    assert (box <= s[:count].max(0) + 2 * span + 1e-5).all()
