"""Merge rules in use: derivatives, groups, and the drivers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_rules as reference
from test_rules import RULES, draw, leaves, make

import mapjax as mj
from mapjax import rules
from mapjax._group import group


@pytest.mark.parametrize("rule", [r for r in RULES if r not in ("nuslerp", "slerp")])
def test_derivatives_are_finite_and_right(rule):
    made = make(rule)
    n = made.num_coefficients
    weights = jax.tree.map(
        lambda x: np.random.default_rng(5).normal(size=x.shape), made.task_vectors.base
    )

    def number(c):
        return sum(
            jnp.sum(w * x)
            for w, x in zip(jax.tree.leaves(weights), jax.tree.leaves(made(c)), strict=True)
        )

    gradient = jax.jit(jax.vmap(jax.value_and_grad(number)))
    c = np.array([0.5, 0.31, 0.42])[:n]
    step = 1e-2 * np.eye(n)
    rows = np.concatenate([c[None], c + step, c - step, np.eye(n), np.zeros((1, n))])
    values, gradients = gradient(rows.astype(np.float32))
    assert np.isfinite(gradients).all()
    numeric = (values[1 : n + 1] - values[n + 1 : 2 * n + 1]) / 2e-2
    np.testing.assert_allclose(gradients[0], numeric, rtol=2e-2, atol=5e-2)


def test_fisher_weights_beside_those_of_an_expert_without_a_weight():
    tv = mj.TaskVectors(jnp.zeros(3), jnp.arange(9.0).reshape(3, 3), ("a", "b", "c"))
    f = np.array([[1e-3, 2.0, 0.0], [3e-3, 1e-6, 1e-5], [1e38, 1e38, 1e38]])
    rule = rules.fisher_mean(tv, list(f.astype(np.float32)))
    want = reference.fisher_mean(np.arange(9.0).reshape(3, 3), [0.4, 0.6, 0.0], f)
    np.testing.assert_allclose(rule([0.4, 0.6, 0.0]), want, rtol=1e-5)
    assert np.isfinite(jax.jacobian(rule)(jnp.array([0.4, 0.6, 0.0]))).all()


def test_scaled_rules_leave_the_base_towards_the_equal_mixture():
    made = make("fisher_mean")
    scaled, zero = made.scaled(), jnp.zeros(3)
    jax.tree.map(np.testing.assert_array_equal, scaled(zero), made.task_vectors.base)
    slopes, base = leaves(jax.jacobian(scaled)(zero)), leaves(made.task_vectors.base)
    for path, mixture in leaves(made(jnp.ones(3))).items():
        want = np.repeat((mixture - base[path])[..., None], 3, axis=-1)
        np.testing.assert_allclose(slopes[path], want, atol=1e-5)


@pytest.mark.parametrize("rule", ["multi_slerp", "regmean_mean"])
def test_groups_have_weights_of_their_own(rule):
    """Each group is merged as if the whole model had its coefficients."""
    tv = draw(3)
    tv = group(tv, ["layer_0", "layer_1"])
    made, c = RULES[rule](tv), np.random.default_rng(0).uniform(size=(3, 3))
    c[:, 2] = 0
    names = made.coefficient_names
    assert (made.num_coefficients, names[:2]) == (9, ("task0/layer_0", "task0/layer_1"))
    merged = leaves(made(c.ravel()))
    for k, part in enumerate(["layer_0", "layer_1", "layer_[23]"]):
        alone = leaves(made(c[:, k]))
        for path in merged:
            if re.search(part, path):
                np.testing.assert_allclose(merged[path], alone[path], rtol=1e-5, atol=1e-6)
    tail = "['layer_3']['kernel']"
    np.testing.assert_array_equal(merged[tail], leaves(tv.base)[tail])


@pytest.fixture(scope="module")
def two_tasks():
    """Tasks that want different experts, and their scores for linear merges."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(16, 6)).astype(np.float32)
    tv, metric = draw(2), mj.metrics.mean_squared_error

    def predict(params, x):
        return x @ (params["layer_0"]["kernel"] + params["layer_1"]["kernel"])

    tasks = [
        mj.Task(name, predict, x, predict(mj.merge(tv, e), x), metric)
        for name, e in zip(tv.names, np.eye(2), strict=True)
    ]
    return tv, tasks, mj.Evaluator(tv, tasks)


@pytest.mark.parametrize(
    "rule",
    ["layer_swap", "slerp", "multi_slerp", "fisher_mean", "regmean_mean", "wudi_mean"],
)
@pytest.mark.slow
def test_rules_work_in_drivers(rule, two_tasks, key):
    tv, tasks, plain = two_tasks
    made = RULES[rule](tv)
    evaluator = mj.Evaluator(made, tasks)
    assert evaluator.coefficient_names == made.task_vectors.names
    assert evaluator.fingerprint() != mj.Evaluator(made.task_vectors, tasks).fingerprint()
    solution = mj.map_front(
        evaluator,
        budget=9,
        surrogate="quadratic",
        rounds=1,
        num_points=8,
        num_generations=8,
        key=key,
        ridge=1e-3,
    )
    # Samples are the experts first; each is perfect on its own task.
    one, other = solution.samples.scores[:2]
    np.testing.assert_allclose([one[0], other[1]], 0, atol=1e-6)
    np.testing.assert_allclose(solution.samples.coefficients.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(evaluator([[0, 0]]), plain([[0, 0]]), rtol=1e-5)
    assert len(solution.front) > 0
    if rule == "fisher_mean":
        _, jacobian = evaluator.value_and_jacobian([[0.5, 0.5], [1.0, 0.0]])
        assert np.isfinite(jacobian).all()


def test_merge_takes_what_an_evaluator_takes():
    rule, c = make("regmean_mean"), [0.2, 0.5, 0.3]
    jax.tree.map(np.testing.assert_array_equal, mj.merge(rule, c), rule(jnp.array(c)))
    with pytest.raises(ValueError, match="`task_vectors` is a dict; pass"):
        mj.merge.__wrapped__({}, c)  # type: ignore[attr-defined]
