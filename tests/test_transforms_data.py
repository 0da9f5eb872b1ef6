"""Transforms that take data or optimizer states, and what collects them."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_spectral as reference
from flax import nnx

import mapjax as mj
from mapjax import rules, transforms

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 4)).astype(np.float32)


def mlp(params, x):
    h = jax.nn.relu(x @ params["a"] + params["bias"])
    return h @ params["b"]


def draw(num_tasks=3, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (4, 6), "b": (6, 2), "bias": (6,), "unused": (2, 2, 3, 5)}
    trees = [
        {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}
        for _ in range(num_tasks + 1)
    ]
    inputs = [rng.normal(size=(9, 4)).astype(np.float32) + i for i in range(num_tasks)]
    return mj.TaskVectors.from_params(trees[0], trees[1:]), trees[1:], inputs


def vectors(tv):
    return jax.tree.map(lambda v: np.asarray(v, np.float64), tv.vectors)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_regmean_is_the_published_formula(dtype, tolerance):
    tv, experts, inputs = draw(dtype=dtype)
    grams = [
        transforms.gram_matrices(mlp, e, x) for e, x in zip(experts, inputs, strict=True)
    ]
    edited = transforms.regmean(tv, grams)
    t = vectors(tv)
    for k in ("a", "b"):
        g = [np.asarray(gram[f"['{k}']"].matrix, np.float64) for gram in grams]
        want = reference.regmean(t[k], g)
        assert edited.vectors[k].dtype == dtype
        np.testing.assert_allclose(
            vectors(edited)[k], want, atol=tolerance * np.abs(want).max()
        )
    for k in ("bias", "unused"):
        np.testing.assert_allclose(vectors(edited)[k], t[k] / 3, rtol=1e-2)
    # By name as well; and the merge of identical experts is the expert.
    named = transforms.regmean(tv, dict(zip(tv.names, grams, strict=True)))
    np.testing.assert_array_equal(named.vectors["a"], edited.vectors["a"])
    same = dataclasses.replace(
        tv, vectors=jax.tree.map(lambda v: jnp.repeat(v[:1], 3, 0), tv.vectors)
    )
    got = vectors(transforms.regmean(same, grams))["a"].sum(0)
    np.testing.assert_allclose(got, t["a"][0], atol=10 * tolerance)


def test_regmean_minimises_what_layers_answer_wrong():
    tv, experts, inputs = draw()
    grams = [
        transforms.gram_matrices(mlp, e, x) for e, x in zip(experts, inputs, strict=True)
    ]
    merged = mj.merge(transforms.regmean(tv, grams, off_diagonal=1.0), jnp.ones(3))
    rows = np.concatenate(inputs).astype(np.float64)
    right = np.concatenate(
        [x @ np.asarray(e["a"]) for e, x in zip(experts, inputs, strict=True)]
    )
    want = np.linalg.lstsq(rows, right, rcond=None)[0]
    np.testing.assert_allclose(merged["a"], want, atol=1e-3)


def test_regmean_without_inputs_for_a_unit_averages_it():
    tv, experts, inputs = draw()
    for x in inputs:
        x[:, 1] = 0
    grams = [
        transforms.gram_matrices(mlp, e, x) for e, x in zip(experts, inputs, strict=True)
    ]
    few = [
        transforms.gram_matrices(mlp, e, x[:1])
        for e, x in zip(experts, inputs, strict=True)
    ]
    for given, factor in [(grams, 0.9), (grams, 1.0), (few, 1.0), (grams, 0.0)]:
        got = vectors(transforms.regmean(tv, given, off_diagonal=factor))
        assert np.isfinite(got["a"]).all()
        np.testing.assert_allclose(got["a"][:, 1], vectors(tv)["a"][:, 1] / 3, rtol=1e-4)
    single = mj.TaskVectors.from_params(tv.base, experts[:1])
    got = vectors(transforms.regmean(single, grams[:1]))
    np.testing.assert_allclose(got["a"], vectors(single)["a"], atol=1e-4)


def test_regmean_pp_takes_features_from_the_merged_model():
    tv, _, inputs = draw()
    edited = vectors(transforms.regmean_pp(tv, mlp, inputs))
    t = vectors(tv)
    base = {k: np.asarray(v, np.float64) for k, v in tv.base.items()}
    first = reference.regmean(t["a"], [reference.mean_gram(x) for x in inputs])
    np.testing.assert_allclose(edited["a"], first, atol=1e-4)
    kernel, bias = base["a"] + first.sum(0), base["bias"] + t["bias"].mean(0)
    hidden = [np.maximum(x @ kernel + bias, 0) for x in inputs]
    want = reference.regmean(t["b"], [reference.mean_gram(h) for h in hidden])
    np.testing.assert_allclose(edited["b"], want, atol=1e-3)
    np.testing.assert_allclose(edited["bias"], t["bias"] / 3, rtol=1e-5)


def test_bad_grams_are_explained():
    tv, experts, inputs = draw()
    grams: list[Any] = [
        transforms.gram_matrices(mlp, e, x) for e, x in zip(experts, inputs, strict=True)
    ]
    with pytest.raises(ValueError, match="`grams` has 2 entries, but there are 3 experts"):
        transforms.regmean(tv, grams[:2])
    with pytest.raises(ValueError, match=r"`grams` has entries for \('x',\)"):
        transforms.regmean(tv, {"x": grams[0]})
    lacking = [*grams[:2], {k: v for k, v in grams[2].items() if k != "['b']"}]
    with pytest.raises(ValueError, match=r"'expert_2' has no Gram matrix for \['b'\]"):
        transforms.regmean(tv, lacking)
    extra = [{**grams[0], "['c']": grams[0]["['a']"]}, *grams[1:]]
    with pytest.raises(
        ValueError, match=r"'expert_0' has a Gram matrix for \['c'\], which is"
    ):
        transforms.regmean(tv, extra)
    wrong = [{**grams[0], "['a']": grams[0]["['b']"]}, *grams[1:]]
    with pytest.raises(
        ValueError, match=r"of shape \(6, 6\) for the axes \(0,\) of \['a'\]"
    ):
        transforms.regmean(tv, wrong)
    with pytest.raises(
        ValueError, match=r"`off_diagonal` is 2\.0: pass a number from 0 to 1"
    ):
        transforms.regmean(tv, grams, off_diagonal=2.0)
    with pytest.raises(ValueError, match="`predict` multiplies nothing with a leaf"):
        transforms.gram_matrices(lambda p, x: x, experts[0], inputs[0])
    with pytest.raises(ValueError, match=r"`inputs` has first axes of lengths \[9, 11\]"):
        transforms.gram_matrices(mlp, experts[0], (inputs[0], X))
    with pytest.raises(ValueError, match=r"`inputs` has first axes of lengths \[0\]"):
        transforms.gram_matrices(mlp, experts[0], X[:0])
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        transforms.gram_matrices(mlp, experts[0], X, batch_size=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_grams_that_are_not_finite_are_refused(value):
    tv, experts, inputs = draw()
    grams: list[Any] = [
        transforms.gram_matrices(mlp, e, x) for e, x in zip(experts, inputs, strict=True)
    ]
    gram = grams[1]["['b']"]
    grams[1]["['b']"] = transforms.Gram(
        gram.matrix.at[0, 1].set(value), gram.num_rows, gram.axes
    )
    for regmean in (transforms.regmean, rules.regmean_mean):
        with pytest.raises(
            ValueError, match=r"'expert_1' has NaN or infinite entries for \['b'\]: look"
        ):
            regmean(tv, grams)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-3])
def test_weights_that_are_none_are_refused(value):
    tv, experts, _ = draw()
    squares = [jax.tree.map(jnp.square, e) for e in experts]
    squares[1]["bias"] = squares[1]["bias"].at[2].set(value)
    message = (
        r"` of expert 'expert_1' has negative, NaN or infinite entries for leaf \['bias'"
    )
    for mean in (transforms.fisher_weighted, rules.fisher_mean, transforms.ota):
        with pytest.raises(ValueError, match=message):
            mean(tv, squares)
    # Not looked at while tracing.
    jax.eval_shape(lambda f: transforms.fisher_weighted(tv, f).vectors, squares)


def negative_log_likelihood(params, example):
    x, label = example
    return -jax.nn.log_softmax(mlp(params, x))[label]


@pytest.mark.parametrize("batch_size", [4, 100])
def test_fisher_is_the_mean_square_of_single_gradients(batch_size):
    _, (params, *_), (x, *_) = draw()
    labels = np.arange(9) % 2
    found = transforms.fisher(
        negative_log_likelihood, params, (x, labels), batch_size=batch_size
    )
    gradients = [
        jax.grad(negative_log_likelihood)(params, e) for e in zip(x, labels, strict=True)
    ]
    want = jax.tree.map(lambda *g: np.mean(np.square(g), axis=0), *gradients)
    for k in params:
        np.testing.assert_allclose(found[k], want[k], rtol=1e-4, atol=1e-7)


def test_fisher_of_modules_and_low_precision():
    model = eqx.nn.MLP(4, 2, 3, 1, key=jax.random.key(0))
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, model)
    found = transforms.fisher(lambda m, x: m(x).sum(), model, jnp.asarray(X[:3]))
    weight = found.layers[0].weight
    assert weight.dtype == jnp.float32
    grads = [eqx.filter_grad(lambda m, x: m(x).sum())(model, x) for x in jnp.asarray(X[:3])]
    want = np.mean([np.asarray(g.layers[0].weight, np.float32) ** 2 for g in grads], 0)
    np.testing.assert_allclose(weight, want, rtol=3e-2, atol=1e-4)
    tv = mj.TaskVectors.from_params(model, [model, model])
    both = transforms.fisher_weighted(tv, [found, found])
    assert both.vectors.layers[0].weight.dtype == jnp.bfloat16


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_fisher_weighted_is_the_published_formula(dtype, tolerance):
    tv, experts, _ = draw(dtype=dtype)
    fishers = [
        jax.tree.map(lambda v: jnp.square(v.astype("float32")) * 1e-20, e) for e in experts
    ]
    edited = transforms.fisher_weighted(tv, fishers)
    for k, t in vectors(tv).items():
        f = np.stack([np.asarray(f[k], np.float64) for f in fishers])
        want = reference.fisher_weighted(t, f)
        assert edited.vectors[k].dtype == dtype
        np.testing.assert_allclose(
            vectors(edited)[k], want, atol=tolerance * np.abs(want).max()
        )
    nothing = [jax.tree.map(jnp.zeros_like, e) for e in experts]
    got = vectors(transforms.fisher_weighted(tv, nothing))
    np.testing.assert_allclose(got["a"], vectors(tv)["a"] / 3, rtol=1e-2)
    equal = vectors(transforms.fisher_weighted(tv, [fishers[0]] * 3))
    np.testing.assert_allclose(equal["a"], vectors(tv)["a"] / 3, rtol=1e-2)


@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_ota_is_the_published_formula(density, dtype, tolerance):
    tv, experts, _ = draw(dtype=dtype)
    rng = np.random.default_rng(1)
    moments = [
        jax.tree.map(lambda v: jnp.asarray(rng.random(v.shape) * 1e-16, "float32"), e)
        for e in experts
    ]
    edited = vectors(transforms.ota(tv, moments, density=density))
    t = vectors(tv)
    stacked = [np.stack([np.asarray(m[k], np.float64) for m in moments]) for k in t]
    want = dict(zip(t, reference.ota(list(t.values()), stacked, density), strict=True))
    for k in t:
        np.testing.assert_allclose(
            edited[k], want[k], atol=tolerance * np.abs(want[k]).max()
        )


def test_weighted_means_of_twenty_experts_and_of_one():
    for num_tasks in (20, 1):
        tv, experts, _ = draw(num_tasks)
        squares = [jax.tree.map(jnp.square, e) for e in experts]
        t = vectors(tv)["a"]
        f = np.stack([np.asarray(s["a"], np.float64) for s in squares])
        got = vectors(transforms.fisher_weighted(tv, squares))["a"]
        np.testing.assert_allclose(got, reference.fisher_weighted(t, f), atol=1e-5)


def test_second_moments_are_found_wherever_adam_is():
    tv, experts, _ = draw()
    params = experts[0]
    g = jax.tree.map(lambda p: 2 * p, params)
    for optimizer in (
        optax.chain(optax.clip(1e9), optax.adamw(1e-3)),
        optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    ):
        _, state = optimizer.update(g, optimizer.init(params), params)
        nu = transforms.second_moments(state)
        np.testing.assert_allclose(nu["a"], 0.001 * np.square(g["a"]), rtol=1e-4)
    edited = transforms.ota(tv, [nu] * 3)
    np.testing.assert_allclose(edited.vectors["a"], tv.vectors["a"] / 3, rtol=1e-4)

    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    nu = transforms.second_moments(optimizer.opt_state)
    base = nnx.state(model, nnx.Param)
    tv = mj.TaskVectors.from_params(base, [jax.tree.map(lambda p: p + 1, base)] * 2)
    edited = transforms.ota(tv, [nu, nu])
    np.testing.assert_allclose(jax.tree.leaves(edited.vectors)[0], 0.5, rtol=1e-5)


def test_bad_weights_and_states_are_explained():
    tv, experts, (x, *_) = draw()
    with pytest.raises(
        ValueError, match=r"`fishers` of expert 'expert_1' has no leaf \['a'\]"
    ):
        transforms.fisher_weighted(tv, [experts[0], {"c": 1.0}, experts[2]])
    bad = {**experts[2], "b": jnp.zeros((2, 6))}
    with pytest.raises(
        ValueError, match=r"has shape \(2, 6\) for leaf \['b'\], but the param"
    ):
        transforms.ota(tv, [*experts[:2], bad])
    with pytest.raises(ValueError, match=r"`density` is 0\.0, but must be in \(0, 1\]"):
        transforms.ota(tv, experts, density=0.0)
    with pytest.raises(ValueError, match="`second_moments` has 1 entries"):
        transforms.ota(tv, experts[:1])
    with pytest.raises(ValueError, match="holds no second moments `nu`"):
        transforms.second_moments(optax.sgd(0.1).init(experts[0]))
    with pytest.raises(ValueError, match="holds 2 second moments"):
        transforms.second_moments([optax.adam(1.0).init(e) for e in experts[:2]])
    with pytest.raises(ValueError, match=r"`loss` gives .* but must give a scalar"):
        transforms.fisher(mlp, experts[0], x)
    with pytest.raises(ValueError, match=r"`data` has first axes of lengths \[\]"):
        transforms.fisher(mlp, experts[0], ())
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        transforms.fisher(mlp, experts[0], x, batch_size=0)
