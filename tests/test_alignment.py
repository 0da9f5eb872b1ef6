"""Alignment: shared bases told from others, and permutations found again."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from mapjax.alignment import (
    Blocks,
    check_shared_base,
    mlp_spec,
    permute,
    shares_base,
    weight_matching,
)
from mapjax.alignment._shared_base import SharedBase

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4)).astype(np.float32)


class MLP(linen.Module):
    sizes: tuple[int, ...]

    @linen.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = linen.relu(linen.Dense(size)(x))
        return linen.Dense(self.sizes[-1])(x)


def mlp(sizes=(9, 7, 3), seed=0):
    model = MLP(sizes)
    return predictor(model), plain(model.init(jax.random.key(seed), X))


def predictor(model):
    return lambda params, x: np.asarray(model.apply(params, x))


def plain(params) -> Any:
    return params


def shuffled(spec, sizes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.permutation(size) for name, size in sizes.items()}


def assert_undone(spec, params, permutations, key, noise=0.0):
    """Shuffle, add noise, and expect to get every unit back where it was."""
    other = permute(spec, params, permutations)
    if noise:
        rng = np.random.default_rng(1)
        other = jax.tree.map(
            lambda x: x + noise * np.float32(rng.normal(size=x.shape)), other
        )
    found = weight_matching(spec, params, other, key=key)
    assert set(found) == set(permutations)
    for name, order in permutations.items():
        np.testing.assert_array_equal(order[found[name]], np.arange(len(order)))
    back = permute(spec, other, found)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    arrays = (jax.tree.leaves(eqx.filter(x, eqx.is_array_like)) for x in (params, back))
    for x, y in zip(*arrays, strict=True):
        np.testing.assert_allclose(x, y, atol=10 * noise)
    return other


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_hidden_units_of_a_linen_perceptron_are_found_again(noise, key):
    predict, params = mlp()
    spec = mlp_spec(params)
    order = shuffled(spec, {"hidden_0": 9, "hidden_1": 7})
    other = assert_undone(spec, params, order, key, noise)
    if not noise:
        np.testing.assert_allclose(predict(other, X), predict(params, X), atol=1e-6)
        assert not np.allclose(
            other["params"]["Dense_0"]["kernel"], params["params"]["Dense_0"]["kernel"]
        )


def test_hidden_units_of_an_equinox_perceptron_with_many_layers(key):
    model = eqx.nn.MLP(4, 3, 6, 11, key=jax.random.key(3))
    spec = mlp_spec(model, input_axes="trailing")
    assert spec[".layers[2].weight"] == {1: "hidden_1", 0: "hidden_2"}  # 2 before 10
    assert spec[".layers[11].weight"] == {1: "hidden_10"}
    assert ".layers[11].bias" not in spec
    order = shuffled(spec, {f"hidden_{i}": 6 for i in range(11)})
    other = permute(spec, model, order)
    np.testing.assert_allclose(
        jax.vmap(other)(jnp.asarray(X)),
        np.asarray(jax.vmap(model)(jnp.asarray(X))),
        atol=1e-6,
    )
    assert_undone(spec, model, order, key)
    assert other.activation is model.activation


def attention(params, x, heads=3):
    """Attention without a framework; the last kernel reads all heads side by side."""
    size = params["query"].shape[1] // heads

    def split(w):
        return (x @ w).reshape(len(x), heads, size)

    q, k, v = (split(params[n]) for n in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("qhf,khf->hqk", q, k), axis=-1)
    return jnp.einsum("hqk,khf->qhf", weights, v).reshape(len(x), -1) @ params["out"]


def test_attention_heads_move_as_blocks(key):
    params = {n: RNG.normal(size=(4, 6)).astype(np.float32) for n in ("query", "key")}
    params |= {"value": RNG.normal(size=(4, 6)).astype(np.float32)}
    params |= {"out": RNG.normal(size=(6, 4)).astype(np.float32)}
    heads = Blocks("heads", 2)
    spec = {f"['{n}']": {1: heads} for n in ("query", "key", "value")}
    spec["['out']"] = {0: heads}
    other = assert_undone(spec, params, {"heads": np.array([2, 0, 1])}, key)
    np.testing.assert_allclose(attention(other, X), attention(params, X), atol=1e-5)
    np.testing.assert_array_equal(other["query"][:, :2], params["query"][:, 4:])


def test_heads_of_flax_attention_are_an_axis_of_their_own(key):
    model = linen.MultiHeadDotProductAttention(num_heads=4, qkv_features=8)
    predict, params = predictor(model), plain(model.init(jax.random.key(0), X))
    spec = {}
    for n in ("query", "key", "value"):
        spec[f"['params']['{n}']['kernel']"] = {1: "heads"}
        spec[f"['params']['{n}']['bias']"] = {0: "heads"}
    spec["['params']['out']['kernel']"] = {0: "heads"}
    other = assert_undone(spec, params, {"heads": np.array([3, 1, 0, 2])}, key)
    np.testing.assert_allclose(predict(other, X), predict(params, X), atol=1e-6)


def test_matching_is_the_best_of_all_orders_and_repeats_itself():
    """One hidden layer of four units: try all orders."""
    _, a = mlp((4, 3), seed=0)
    _, b = mlp((4, 3), seed=1)
    spec = mlp_spec(a)
    found = weight_matching(spec, a, b, key=jax.random.key(0))

    def distance(order):
        moved = permute(spec, b, {"hidden_0": np.array(order)})
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(moved), strict=True)
        return sum(float(jnp.sum((x - y) ** 2)) for x, y in pairs)

    every = list(itertools.permutations(range(4)))
    best = min(every, key=distance)
    np.testing.assert_array_equal(found["hidden_0"], best)
    assert distance(best) < np.median([distance(order) for order in every])
    again = weight_matching(spec, a, b, key=jax.random.key(0))
    np.testing.assert_array_equal(found["hidden_0"], again["hidden_0"])


def test_a_permutation_on_both_axes_of_a_tensor_never_makes_it_worse():
    """A residual stream: the assignment is a guess, and only gains are kept."""
    rng = np.random.default_rng(4)
    a, b = ({"w": rng.normal(size=(6, 6)), "b": rng.normal(size=6)} for _ in range(2))
    spec = {"['w']": {0: "stream", 1: "stream"}, "['b']": {0: "stream"}}

    def alike(order):
        moved = permute(spec, b, order)
        return sum(float(np.vdot(a[k], moved[k])) for k in a)

    for seed in range(5):
        found = weight_matching(spec, a, b, key=jax.random.key(seed))
        assert alike(found) >= alike({"stream": np.arange(6)}) - 1e-5


def test_complex_weights_can_be_matched(key):
    w = (RNG.normal(size=(4, 5)) + 1j * RNG.normal(size=(4, 5))).astype(np.complex64)
    spec = {"['w']": {1: "units"}}
    assert_undone(spec, {"w": w}, {"units": np.array([3, 0, 4, 1, 2])}, key)


def test_experts_are_told_from_strangers():
    _, base = mlp((40, 30, 3))
    _, stranger = mlp((40, 30, 3), seed=1)
    tuned = jax.tree.map(lambda x: x + 0.02 * np.float32(RNG.normal(size=x.shape)), base)
    found = shares_base(base, {"tuned": tuned, "stranger": stranger})
    assert not found
    assert found.strangers == ("stranger",)
    flat = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(p) if x.ndim > 1])
        for p in (base, tuned, stranger)
    ]
    for i in (0, 1):
        cosine = (
            flat[0] @ flat[i + 1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[i + 1])
        )
        change = np.linalg.norm(flat[i + 1] - flat[0]) / np.linalg.norm(flat[0])
        np.testing.assert_allclose(found.cosines[i], cosine, atol=1e-5)
        np.testing.assert_allclose(found.relative_norms[i], change, rtol=1e-5)
    assert abs(found.cosines[1]) < 0.1
    assert found.relative_norms[1] > 1.2
    assert shares_base(base, [tuned])
    check_shared_base(base, [tuned])
    with pytest.raises(
        ValueError, match=r"Experts \('stranger',\) do not share the base"
    ) as e:
        check_shared_base(base, {"tuned": tuned, "stranger": stranger})
    assert "stranger: cosine " in str(e.value)
    assert "weight_matching" in str(e.value)
    # The same network in another order is a stranger, until it is aligned.
    spec = mlp_spec(base)
    moved = permute(spec, tuned, shuffled(spec, {"hidden_0": 40, "hidden_1": 30}))
    assert not shares_base(base, [moved])
    order = weight_matching(spec, base, moved, key=jax.random.key(0))
    assert shares_base(base, [permute(spec, moved, order)])


def test_nothing_but_vectors_or_zeros_can_be_compared():
    found = shares_base(jnp.array([1.0, 1.0]), [jnp.array([2.0, 2.0]), jnp.zeros(2)])
    np.testing.assert_allclose(found.cosines, [1, 0], atol=1e-6)
    assert shares_base(jnp.zeros(2), [jnp.ones(2)]).cosines == (0.0,)


def test_what_alignment_refuses(key):
    _, params = mlp()
    spec = mlp_spec(params)
    kernel = "['params']['Dense_0']['kernel']"
    with pytest.raises(ValueError, match="is 'rows'; choose from 'leading', 'trailing'"):
        mlp_spec(params, input_axes="rows")
    with pytest.raises(ValueError, match=r"has 4 outputs, but .* Try the other"):
        mlp_spec(params, input_axes="trailing")
    with pytest.raises(
        ValueError, match=r"no plain perceptron: .* tensors \[\"\['c'\]\"\]"
    ):
        mlp_spec({"c": jnp.ones((2, 2, 2))})
    with pytest.raises(ValueError, match="names leaf nowhere, which is no parameter"):
        weight_matching({"nowhere": {0: "p"}}, params, params, key=key)
    with pytest.raises(ValueError, match=r"for axis 2 of leaf .* whose shape is"):
        weight_matching({kernel: {2: "p"}}, params, params, key=key)
    with pytest.raises(ValueError, match="whole number of blocks"):
        weight_matching({kernel: {1: Blocks("p", 2)}}, params, params, key=key)
    with pytest.raises(ValueError, match=r"permutes 9 units by 'p' .* but 4 elsewhere"):
        weight_matching({kernel: {0: "p", 1: "p"}}, params, params, key=key)
    with pytest.raises(ValueError, match="`spec` is empty"):
        weight_matching({}, params, params, key=key)
    with pytest.raises(ValueError, match="`key` is 0, but must be one typed key"):
        weight_matching(spec, params, params, key=0)
    with pytest.raises(ValueError, match="Expert 'b' lacks"):
        weight_matching(spec, params, {"params": {}}, key=key)
    with pytest.raises(ValueError, match=r"`permutations\['hidden_0'\]` is None"):
        permute(spec, params, {})
    with pytest.raises(ValueError, match="must hold each number from 0 to 8 once"):
        permute(spec, params, {"hidden_0": np.zeros(9, int), "hidden_1": np.arange(7)})


class Coder(eqx.Module):
    encoder: eqx.nn.Linear
    decoder: eqx.nn.Linear


def test_layers_come_in_an_order_that_something_says():
    w = {"encoder": np.ones((4, 4)), "decoder": np.ones((4, 4))}
    with pytest.raises(ValueError, match=r"Nothing says in which order .*'decoder'.* come"):
        mlp_spec(w)
    first, last = jax.random.split(jax.random.key(0))
    model = Coder(eqx.nn.Linear(4, 4, key=first), eqx.nn.Linear(4, 4, key=last))
    assert mlp_spec(model, input_axes="trailing") == {
        ".encoder.weight": {0: "hidden_0"},
        ".encoder.bias": {0: "hidden_0"},
        ".decoder.weight": {1: "hidden_0"},
    }
    # As haiku names them.
    spec = mlp_spec({"linear": np.ones((4, 4)), "linear_1": np.ones((4, 4))})
    assert spec == {"['linear']": {1: "hidden_0"}, "['linear_1']": {0: "hidden_0"}}


class Normed(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=True)(linen.Dense(9)(x))
        return linen.Dense(3)(linen.relu(x))


def test_statistics_of_batch_norm_follow_their_units(key):
    model = Normed()
    predict, params = predictor(model), plain(model.init(jax.random.key(0), X))
    for name in ("mean", "var"):
        params["batch_stats"]["BatchNorm_0"][name] = RNG.random(9, dtype=np.float32)
    spec = {
        "['params']['Dense_0']['kernel']": {1: "hidden"},
        "['params']['Dense_0']['bias']": {0: "hidden"},
        "['params']['Dense_1']['kernel']": {0: "hidden"},
    }
    spec |= {f"['params']['BatchNorm_0']['{n}']": {0: "hidden"} for n in ("scale", "bias")}
    spec |= {
        f"['batch_stats']['BatchNorm_0']['{n}']": {0: "hidden"} for n in ("mean", "var")
    }
    other = assert_undone(spec, params, {"hidden": RNG.permutation(9)}, key)
    np.testing.assert_allclose(predict(other, X), predict(params, X), atol=1e-6)
    # They say nothing of which units these are, be they ever so large.
    other["batch_stats"] = jax.tree.map(lambda x: 1e6 * x[::-1], other["batch_stats"])
    found = weight_matching(spec, params, other, key=key)
    back = permute(spec, other, found)
    np.testing.assert_array_equal(
        back["params"]["Dense_0"]["kernel"], params["params"]["Dense_0"]["kernel"]
    )


@pytest.mark.parametrize("unit", [1e20, 1e-25])
def test_strangers_are_told_in_any_unit(unit):
    base, tuned = np.array([[3.0, 4.0]], "f"), np.array([[3.0, 5.0]], "f")
    found = shares_base(unit * base, {"tuned": unit * tuned, "other": -unit * base})
    expected = shares_base(base, {"tuned": tuned, "other": -base})
    assert found.strangers == ("other",)
    np.testing.assert_allclose(found.cosines, expected.cosines, rtol=1e-5)
    np.testing.assert_allclose(found.relative_norms, expected.relative_norms, rtol=1e-5)


def test_what_cannot_be_compared_is_a_stranger():
    assert SharedBase(("odd",), (math.nan,), (math.nan,), 0.5).strangers == ("odd",)


def test_matching_names_the_leaf_that_is_not_finite(key):
    a = {"fc1": np.ones((3, 5)), "fc2": np.ones((5, 2))}
    b = {**a, "fc2": np.full((5, 2), np.nan)}
    for pair, owner in (((a, b), "`b`"), ((b, a), "`a`")):
        with pytest.raises(ValueError, match=rf"Leaf \['fc2'\] of {owner} holds NaN"):
            weight_matching(mlp_spec(a), *pair, key=key)
