"""Links, standard deviations and refusals of `fit_quadratic`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit
from test_surrogate import (
    K,
    N,
    T,
    assert_same,
    design_matrix,
    in_fitted_units,
    noisy,
    points,
    quadratic,
)

from mapjax.surrogate import fit_quadratic


@pytest.mark.usefixtures("x64")
def test_leave_one_out_is_measured_in_scores_behind_a_link():
    c = points()
    s = expit(quadratic(5)[-1](c) + 0.3 * np.sin(9 * c[:, :1]))
    fitted = fit_quadratic(c, s, link="sigmoid")
    w, y = s * (1 - s), np.log(s / (1 - s))
    for t in range(T):
        left_out = np.zeros(K)
        for k in range(K):
            root = np.sqrt(np.where(np.arange(K) == k, 0, w[:, t]))
            beta = np.linalg.lstsq(root[:, None] * design_matrix(c), root * y[:, t])[0]
            left_out[k] = expit(design_matrix(c[[k]])[0] @ beta)
        error = ((s[:, t] - left_out) ** 2).sum() / ((s[:, t] - s[:, t].mean()) ** 2).sum()
        np.testing.assert_allclose(fitted.loo_r2[t], 1 - error, rtol=1e-8)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("link", ["sigmoid", "softplus"])
def test_agrees_with_a_nonlinear_fit_started_from_the_answer(link):
    forward = {"sigmoid": expit, "softplus": lambda x: np.logaddexp(0, x)}[link]
    c = points()
    s = forward(quadratic(4)[-1](c))
    fitted = fit_quadratic(c, s, link=link)
    x = design_matrix(c)
    for t in range(T):
        start = np.linalg.lstsq(x, np.asarray(fitted_latent(fitted, c))[:, t])[0]
        solution = optimize.least_squares(lambda b: forward(x @ b) - s[:, t], start)  # noqa: B023
        np.testing.assert_allclose(solution.x, start, atol=1e-6)
        np.testing.assert_allclose(fitted.constant[t], solution.x[0], atol=1e-6)
        np.testing.assert_allclose(fitted.linear[t], solution.x[1 : N + 1], atol=1e-6)


def fitted_latent(fitted, c):
    bend = 0.5 * np.einsum("ki,tij,kj->kt", c, fitted.hessian, c)
    return fitted.constant + c @ np.asarray(fitted.linear).T + bend


def test_barely_improved_by_a_nonlinear_fit_to_binomial_counts():
    count, rng = 500, np.random.default_rng(0)
    c = points(64)
    truth = expit(quadratic(4)[-1](c))
    s = rng.binomial(count, truth) / count
    fitted = fit_quadratic(c, s, link="sigmoid", num_examples=count)
    x = design_matrix(c)
    for t in range(T):
        start = np.linalg.lstsq(x, fitted_latent(fitted, c)[:, t])[0]
        sigma = np.sqrt(np.maximum(truth[:, t] * (1 - truth[:, t]), 1e-3) / count)

        def misfit(b, t=t, sigma=sigma):
            return (expit(x @ b) - s[:, t]) / sigma

        solution = optimize.least_squares(misfit, start)
        assert 2 * solution.cost > 0.95 * (misfit(start) ** 2).sum()
        assert np.abs(expit(x @ solution.x) - np.asarray(fitted(c))[:, t]).max() < 0.02


def test_bounds_move_and_stretch_the_links():
    c = points()
    latent = quadratic(4)[-1](c)
    unit = fit_quadratic(c, expit(latent), link="sigmoid")
    moved = fit_quadratic(c, 5 * expit(latent) - 2, link="sigmoid", bounds=(-2.0, 3.0))
    assert_same(moved(c), 5 * unit(c) - 2, 1e-5)
    s = np.stack([np.logaddexp(0, latent[:, 0]) + 7, 2 * expit(latent[:, 1])], axis=1)
    mixed = fit_quadratic(
        c, s, link=["softplus", "sigmoid"], bounds=([7.0, 0.0], [None, 2.0])
    )
    assert_same(mixed(c), s, 1e-5)
    assert float(jnp.min(mixed(5 * c)[:, 0])) >= 7
    assert float(jnp.max(mixed(5 * c)[:, 1])) <= 2


def test_counts_keep_scores_off_the_bounds():
    c = points()
    s = np.clip(quadratic(4)[-1](c), 0, 1)
    assert (s == 1).any()
    for link in ("sigmoid", "softplus"):
        assert np.isfinite(np.asarray(fit_quadratic(c, s, link=link)(c))).all()
    few, many = (
        fit_quadratic(c, np.ones((K, T)), link="sigmoid", num_examples=n) for n in (10, 100)
    )
    np.testing.assert_allclose(few(c), 0.95, rtol=1e-5)
    np.testing.assert_allclose(many(c), 0.995, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_std_is_the_textbook_one(penalty):
    c, s = noisy(spread=0.5)
    new = points(seed=3)[:5]
    fitted = fit_quadratic(c, s, ridge=penalty)
    x = in_fitted_units(c)
    rows = np.concatenate([np.ones((K, 1)), x], axis=1)
    penalised = rows.T @ rows + K * penalty * np.diag(np.r_[0, np.ones(x.shape[1])])
    freedom = np.trace(np.linalg.solve(penalised, rows.T @ rows))
    residual = s - np.asarray(fitted(c))
    noise = (residual**2).sum(0) / (K - freedom)
    z, zn = (c - c.mean(0)) / c.std(0), (new - c.mean(0)) / c.std(0)
    base, at = design_matrix(z)[:, 1:], design_matrix(zn)[:, 1:]
    phi = (at - base.mean(0)) / base.std(0)
    phi[:, N:] /= np.sqrt(50)
    phi = np.concatenate([np.ones((5, 1)), phi], axis=1)
    leverage = np.einsum("ki,ij,kj->k", phi, np.linalg.inv(penalised), phi)
    expected = np.sqrt(noise * (1 + leverage[:, None]))
    np.testing.assert_allclose(fitted.std(new), expected, rtol=1e-8)


def test_std_covers_binomial_counts():
    count, scaled = 500, []
    c, new = points(64), points(64, seed=5)
    for seed in range(8):
        rng, truth = np.random.default_rng(seed), quadratic(seed)[-1]
        s = rng.binomial(count, expit(truth(c))) / count
        fitted = fit_quadratic(c, s, link="sigmoid", num_examples=count)
        seen = rng.binomial(count, expit(truth(new))) / count
        scaled.append((seen - np.asarray(fitted(new))) / np.asarray(fitted.std(new)))
    assert 0.9 < np.std(scaled) < 1.1


def test_gradients_stay_finite_where_a_link_saturates():
    c = points()
    s = expit(quadratic(4)[-1](c))
    fitted = fit_quadratic(c, s, link=["sigmoid", "softplus"])
    for far in (-1e4, 1e4):
        at = jnp.full(N, far)
        assert np.isfinite(np.asarray(jax.jacobian(fitted)(at))).all()
        assert np.isfinite(np.asarray(fitted.std(at))).all()


BAD = {
    "unknown link": (
        dict(link="logit"),
        r"is 'logit'; choose from 'identity', 'sigmoid'",
    ),
    "too few links": (dict(link=["identity"]), "names 1 links for 2 tasks"),
    "above the range": (
        dict(link=["identity", "sigmoid"], scores={(4, 1): 1.5}),
        r"`scores\[:, 1\]` holds 1.5, outside the range \[0, 1\].*`link_bounds` of a driver",
    ),
    "below the range": (
        dict(link="softplus", scores={(4, 0): -0.5}),
        r"`scores\[:, 0\]` holds -0.5, outside the range \[0, inf\]",
    ),
    "reversed bounds": (
        dict(link="sigmoid", bounds=(1.0, 0.0)),
        r"task 0 are \[1, 0\], expected lower < upper",
    ),
    "missing bound": (
        dict(link="sigmoid", bounds=(0.0, np.inf)),
        "'sigmoid' needs both ends finite",
    ),
    "missing lower bound": (
        dict(link="softplus", bounds=(None, 1.0)),
        "'softplus' needs the lower end finite",
    ),
    "bounds of another length": (
        dict(link="sigmoid", bounds=([0.0] * 3, 1.0)),
        r"`bounds` holds an entry of shape \(3,\)",
    ),
    "three bounds": (dict(bounds=(0.0, 1.0, 2.0)), r"expected `\(lower, upper\)`"),
    "counts": (dict(num_examples=0), "`num_examples` is 0, expected positive"),
    "negative ridge": (dict(ridge=-1.0), "`ridge` is -1.0, expected a finite number"),
    "negative weights": (dict(weights=np.full(K, -1.0)), "`weights` holds negative"),
    "zero weights": (dict(weights=np.zeros(K)), "`weights` are zero for every finite"),
    "weights of another length": (dict(weights=np.ones(3)), r"`weights` has shape \(3,\)"),
    "NaN coefficient": (dict(coefficients={(2, 1): np.nan}), r"`coefficients\[2\]` is"),
    "no finite score": (
        dict(scores={(..., 1): np.nan}),
        r"`scores\[:, 1\]` has no finite score",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_and_where(case):
    options, message = BAD[case]
    options = dict(options)
    c, s = points(), np.full((K, T), 0.5)
    for at, value in options.pop("coefficients", {}).items():
        c[at] = value
    for at, value in options.pop("scores", {}).items():
        s[at] = value
    with pytest.raises(ValueError, match=message):
        fit_quadratic(c, s, **options)


@pytest.mark.parametrize(
    ("c", "s", "message"),
    [
        (np.ones((4, 2)), np.ones((5, 2)), "has 4 rows and `scores` has 5"),
        (np.ones(4), np.ones((4, 2)), r"`coefficients` has shape \(4,\)"),
        (np.ones((4, 2)), np.ones(4), r"`scores` has shape \(4,\)"),
        (np.ones((0, 2)), np.ones((0, 2)), r"`coefficients` has shape \(0, 2\)"),
    ],
)
def test_bad_shapes_say_so(c, s, message):
    with pytest.raises(ValueError, match=message):
        fit_quadratic(c, s)


def test_unknown_ridge_is_refused():
    with pytest.raises(ValueError, match="Unknown `ridge` 'cv'"):
        fit_quadratic(points(), np.ones((K, T)), ridge="cv")


def test_predicting_at_another_number_of_coefficients_is_refused():
    fitted = fit_quadratic(*noisy())
    for method in (fitted, fitted.std):
        with pytest.raises(ValueError, match=r"fitted to 3 coefficients. Pass an array"):
            method(jnp.zeros((5, N + 1)))


def test_softplus_takes_a_task_whose_scores_are_all_at_the_bound():
    c = points()
    s = np.stack([np.zeros(K), (c**2).sum(axis=1)], axis=1)
    fitted = fit_quadratic(c, s, link="softplus")
    assert np.isfinite(fitted(c)).all()
    np.testing.assert_allclose(fitted(c)[:, 0], 0, atol=1e-3)
