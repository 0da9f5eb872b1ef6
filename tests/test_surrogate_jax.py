"""Surrogates under jit, vmap and grad."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from test_surrogate import K, N, T, assert_same, noisy, points, quadratic

from mapjax.surrogate import LINKS, Quadratic, fit, fit_quadratic


def test_predictions_are_batched_and_differentiable():
    _, b, a, f = quadratic(6)
    fitted = fit_quadratic(points(), f(points()))
    c = jnp.asarray(points(6, seed=1), jnp.float32)
    batched = fitted(c.reshape(2, 3, N))
    assert_same(batched.reshape(6, T), jax.vmap(fitted)(c), 1e-6)
    assert_same(jax.jacobian(fitted)(c[0]), b + np.asarray(a) @ np.asarray(c[0]), 1e-4)
    assert_same(jax.hessian(fitted)(c[0]), a, 1e-4)
    spread = noisy()
    jacobian = jax.jacobian(fit_quadratic(*spread).std)(c[0])
    assert np.isfinite(np.asarray(jacobian)).all()


def test_is_a_pytree_whose_numbers_do_not_retrace():
    traces = 0

    @eqx.filter_jit
    def search(surrogate, c):
        nonlocal traces
        traces += 1
        return surrogate(c).sum()

    c = points()
    for seed in (1, 2):
        s = expit(noisy(seed)[1])
        for ridge in (0.1, 0.2):
            search(fit_quadratic(c, s, ridge=ridge, link="sigmoid"), jnp.zeros(N))
    assert traces == 1


def test_a_sweep_over_numbers_traces_the_fit_once(monkeypatch):
    traces = 0
    forward = LINKS["softplus"].forward

    def counted(x):
        nonlocal traces
        traces += 1
        return forward(x)

    monkeypatch.setitem(LINKS, "softplus", LINKS["softplus"]._replace(forward=counted))
    c, s = points(23), np.exp(noisy()[1][:23])
    fit_quadratic(c, s, link="softplus", ridge=0.5)
    once = traces
    assert once > 0
    for n in (1, 2, 3):
        s[n] = np.nan
        fit_quadratic(
            0.9 * c, s + n, link="softplus", ridge=0.1 * n, bounds=(0.1 * n, None),
            weights=np.full(23, n), num_examples=n,
        )  # fmt: skip
    assert traces == once


def test_fits_are_vmapped():
    c = jnp.asarray(points(), jnp.float32)
    s = jnp.stack([jnp.asarray(noisy(seed)[1], jnp.float32) for seed in (1, 2)])
    ones, zeros = jnp.ones(T), jnp.zeros(T)

    def one(scores):
        return fit(
            c, scores, jnp.ones((K, T)), zeros, ones, zeros, jnp.zeros(1),
            links=("identity",) * T, shared=False, keep_zero=True,
            num_unknowns=(N + 1) * (N + 2) // 2,
        )  # fmt: skip

    both = jax.jit(jax.vmap(one))(s)
    assert isinstance(both, Quadratic)
    for i in range(2):
        each = fit_quadratic(c, s[i])
        assert_same(jax.vmap(lambda q: q(c))(both)[i], each(c), 1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_narrow_types_are_widened(dtype):
    c, s = noisy()
    fitted = fit_quadratic(jnp.asarray(c, jnp.float32), jnp.asarray(s).astype(dtype))
    assert fitted(jnp.zeros(N)).dtype == jnp.float32
