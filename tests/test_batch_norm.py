"""BatchNorm statistics measured anew, against NumPy, in flax linen, NNX and equinox."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from flax import nnx

import mapjax as mj

EPSILON = 1e-5
random = np.random.default_rng(0)
X = (random.normal(size=(40, 6)) * [1, 2, 3, 4, 5, 6] + 3).astype(np.float32)
BATCHES = [X[:16], X[16:32], X[32:]]  # the last one is smaller


def truth(layers, batches):
    """Mean and variance of each layer: dense, normalise, relu, dense, normalise."""
    sizes = np.array([len(x) for x in batches], float)
    inputs = [np.asarray(x, np.float64) for x in batches]
    found = []
    for w, b, scale, shift in layers:
        outputs = [x @ np.asarray(w, float) + np.asarray(b, float) for x in inputs]
        means = np.array([y.mean(0) for y in outputs])
        variances = np.array([y.var(0) for y in outputs])
        mean = np.average(means, axis=0, weights=sizes)
        between = np.average((means - mean) ** 2, axis=0, weights=sizes)
        found.append((mean, np.average(variances, axis=0, weights=sizes) + between))
        inputs = [
            np.maximum((y - m) / np.sqrt(v + EPSILON) * scale + shift, 0)
            for y, m, v in zip(outputs, means, variances, strict=True)
        ]
    return found


class Linen(nn.Module):
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x, *, train=False):
        for i in range(2):
            x = nn.Dense(5, name=f"dense{i}")(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=self.momentum, name=f"norm{i}")(x))
        return x


def linen_update(variables, statistics, x, *, train=True):
    variables = {**variables, "batch_stats": statistics}
    _, new = Linen().apply(variables, x, train=train, mutable=["batch_stats"])
    return new["batch_stats"]


@pytest.fixture(scope="module")
def variables():
    return Linen().init(jax.random.key(0), X[:2])


def check_linen(variables, found, batches):
    p = variables["params"]
    each = [(p[f"dense{i}"], p[f"norm{i}"]) for i in range(2)]
    layers = [
        tuple(map(np.asarray, (d["kernel"], d["bias"], n["scale"], n["bias"])))
        for d, n in each
    ]
    wanted = truth(layers, batches)
    for i, (mean, var) in enumerate(wanted):
        new = found[f"norm{i}"]
        np.testing.assert_allclose(new["mean"], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(new["var"], var, rtol=1e-4)


def test_linen(variables):
    update = jtu.Partial(linen_update, variables)
    # Whatever the averages were, they do not show in the result.
    stale = jax.tree.map(lambda x: x + 7, variables["batch_stats"])
    found = mj.recalibrate_batch_norm(update, stale, BATCHES)
    check_linen(variables, found, BATCHES)
    # The first layer's are those of all examples at once.
    dense = variables["params"]["dense0"]
    outputs = X @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(found["norm0"]["mean"], outputs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found["norm0"]["var"], outputs.var(0), rtol=1e-4)
    # The order does not matter, and a generator will do.
    again = mj.recalibrate_batch_norm(update, stale, (x for x in BATCHES[::-1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, again)


def test_a_front_of_recalibrated_merges(variables):
    """The helper stands in a merge rule, jitted and batched."""
    expert = jax.tree.map(
        lambda x: x + 0.5 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), variables
    )
    tv = mj.TaskVectors.from_params(variables, [expert])
    assert all("batch_stats" in path for path in tv.left_alone)

    def rule(c):
        merged = mj.merge(tv, c)
        update = jtu.Partial(linen_update, merged)
        new = mj.recalibrate_batch_norm(update, merged["batch_stats"], BATCHES)
        return {**merged, "batch_stats": new}

    many = jax.jit(jax.vmap(rule))(jnp.array([[0.0], [0.4], [1.0]]))
    for k in range(3):
        one = jax.tree.map(lambda x, k=k: x[k], many)
        check_linen(one, one["batch_stats"], BATCHES)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.List([nnx.Linear(n, 5, rngs=rngs) for n in (6, 5)])
        self.norm = nnx.List([nnx.BatchNorm(5, momentum=m, rngs=rngs) for m in (0.9, 0.5)])
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x):
        for dense, norm in zip(self.dense, self.norm, strict=True):
            x = self.dropout(nnx.relu(norm(dense(x))))
        return x


def test_nnx():
    model = NNX(nnx.Rngs(0))
    graph, statistics, rest = nnx.split(model, nnx.BatchStat, ...)

    def update(statistics, batch):
        model = nnx.merge(graph, statistics, rest)
        model.train()
        model(batch[0])
        return nnx.state(model, nnx.BatchStat)

    batches = [(x, np.zeros(len(x), int)) for x in BATCHES]
    found = mj.recalibrate_batch_norm(update, statistics, batches)
    assert jax.tree.structure(found) == jax.tree.structure(statistics)
    nnx.update(model, found)
    dense: Any = nnx.to_pure_dict(nnx.state(model.dense))
    layers = [(dense[i]["kernel"], dense[i]["bias"], 1, 0) for i in range(2)]
    wanted = truth(layers, BATCHES)
    for norm, (mean, var) in zip(model.norm, wanted, strict=True):
        np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)


class Equinox(eqx.Module):
    dense: list[eqx.nn.Linear]
    norm: list[eqx.nn.BatchNorm]

    def __init__(self, mode, key):
        keys = jax.random.split(key)
        self.dense = [eqx.nn.Linear(n, 5, key=k) for n, k in zip((6, 5), keys, strict=True)]
        self.norm = [eqx.nn.BatchNorm(5, "batch", mode=mode) for _ in range(2)]

    def __call__(self, x, state):
        for dense, norm in zip(self.dense, self.norm, strict=True):
            x, state = norm(dense(x), state)
            x = jax.nn.relu(x)
        return x, state


@eqx.filter_jit
def run(model, state, x):
    batched = jax.vmap(model, (0, None), (0, None), axis_name="batch")
    return batched(x, state)


def equinox_update(model, state, x):
    return run(model, state, x)[1]


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_equinox(mode):
    model, fresh = eqx.nn.make_with_state(Equinox)(mode, jax.random.key(0))
    update = jtu.Partial(equinox_update, model)
    trained = update(update(fresh, X), X + 1)
    found = mj.recalibrate_batch_norm(
        update, trained if mode == "batch" else fresh, BATCHES
    )
    layers = [(d.weight.T, d.bias, 1, 0) for d in model.dense]
    wanted = truth(layers, BATCHES)
    x = np.asarray(X, float)
    for (w, b, _, _), (mean, var) in zip(layers, wanted, strict=True):
        y = x @ np.asarray(w, float) + np.asarray(b, float)
        x = np.maximum((y - mean) / np.sqrt(var + EPSILON), 0)
    # What evaluation mode reads is what counts, whatever the state holds for it.
    out, _ = run(eqx.nn.inference_mode(model), found, X)
    np.testing.assert_allclose(out, x, rtol=1e-3, atol=1e-3)
    # Training goes on from there: one more batch moves the averages by 1 - momentum.
    norm = model.norm[0]
    index = norm.batch_state_index if mode == "batch" else norm.ema_state_index
    mean = update(found, X).get(index)[0]
    batch = truth(layers, [X])[0][0]
    want = 0.99 * wanted[0][0] + 0.01 * batch
    np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-5)
    if mode == "ema":
        with pytest.raises(ValueError, match=r"as `equinox\.nn\.make_with_state` made it"):
            mj.recalibrate_batch_norm(update, trained, BATCHES)


def average(old, x):
    new = {"mean": x.mean(0), "var": x.var(0)}
    return jax.tree.map(lambda a, b: (0.9 * a + 0.1 * b).astype(a.dtype), old, new)


def test_dtypes_stay_and_other_leaves_are_left_alone():
    old = {"mean": jnp.zeros(6, jnp.bfloat16), "var": jnp.ones(6, jnp.bfloat16)}
    tree = {"norm": old, "sigma": jnp.array(3.0)}

    def update(tree, x):
        return {"norm": average(tree["norm"], x), "sigma": tree["sigma"] + 1}

    found = mj.recalibrate_batch_norm(update, tree, BATCHES)
    assert found["sigma"] == 3
    assert found["norm"]["mean"].dtype == jnp.bfloat16
    # They were measured in float32, and rounded once.
    np.testing.assert_allclose(found["norm"]["mean"], X.mean(0), rtol=2**-8)
    np.testing.assert_allclose(found["norm"]["var"], X.var(0), rtol=2**-8)


OLD = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
ERRORS = {
    "has no BatchNorm statistics, but .'w'.: pass": (average, {"w": OLD["var"]}, BATCHES),
    "`batches` is empty": (average, OLD, []),
    "`batches` is one array: pass a list": (average, OLD, X),
    "`batches` is one dict: pass a list": (average, OLD, {"images": X}),
    "A batch has no examples": (average, OLD, [X[:0]]),
    r"differs in \['mean'\], \['var'\], \['batch_stats'\]\['mean'\] and 1 more": (
        lambda old, x: {"batch_stats": average(old, x)},
        OLD,
        BATCHES,
    ),
    r"leaves \['mean'\] as it is: run the model in training mode": (
        lambda old, x: old,
        OLD,
        BATCHES,
    ),
    r"makes no running average of \['mean'\]": (
        lambda old, x: jax.tree.map(
            lambda a, b: b + a / (1 + abs(a)), old, average(old, x)
        ),
        OLD,
        BATCHES,
    ),
    r"\['mean'\] is not finite on these batches": (average, OLD, [X, X * np.nan]),
}


@pytest.mark.parametrize("message", ERRORS)
def test_what_is_wrong_is_said(message):
    with pytest.raises(ValueError, match=message):
        mj.recalibrate_batch_norm(*ERRORS[message])


def test_a_generator_that_was_read_is_told_from_an_empty_list():
    batches = (x for x in BATCHES)
    mj.recalibrate_batch_norm(average, OLD, batches)
    with pytest.raises(ValueError, match=r"is empty.* A generator can be read only once"):
        mj.recalibrate_batch_norm(average, OLD, batches)


def test_evaluation_mode_is_noticed(variables):
    update = jtu.Partial(linen_update, variables, train=False)
    with pytest.raises(ValueError, match="run the model in training mode"):
        mj.recalibrate_batch_norm(update, variables["batch_stats"], BATCHES)


def test_the_model_runs_once_per_batch(variables):
    """Two averages are updated, but nothing of the model is computed twice."""
    from mapjax._batch_norm import _measure, _places
    from mapjax._tree import leaves

    places = _places(leaves(variables["batch_stats"], statistics=True))
    update = jtu.Partial(linen_update, variables)
    text = _measure.lower(update, variables["batch_stats"], places, X, None).as_text()
    assert text.count("dot_general") == 2  # one for each dense layer
    assert "40x6" in text
    assert "2x40x6" not in text


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_averages_in_half_precision_are_refused(dtype):
    def update(old, x):
        new = {"mean": x.mean(0), "var": x.var(0)}
        return jax.tree.map(lambda a, b: (0.99 * a + 0.01 * b).astype(dtype), old, new)

    with pytest.raises(ValueError, match="keep the averages in float32"):
        mj.recalibrate_batch_norm(update, OLD, BATCHES)
