"""Names of other frameworks to JAX trees and back; train states, partitions and LoRA."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import mapjax as mj
from mapjax.io import rename, rename_back

random = np.random.default_rng(0)


def tensors():
    """As PyTorch lays out two dense layers, a convolution and heads of attention."""
    shapes = {
        "h.0.fc.weight": (3, 2),
        "h.0.fc.bias": (3,),
        "h.1.fc.weight": (3, 2),
        "h.1.fc.bias": (3,),
        "conv.weight": (7, 5, 3, 2),
        "attention.q_proj.weight": (8, 6),
        "rotary.inv_freq": (4,),
    }
    return {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}


MAPPING = {
    r"h\.(\d+)\.fc\.weight": (r"layer_\1.kernel", (1, 0)),
    r"h\.(\d+)\.fc\.bias": r"layer_\1.bias",
    r"conv\.weight": ("conv.kernel", (2, 3, 1, 0)),
    r"attention\.(.)_proj\.weight": (r"attention.\1.kernel", (1, 0)),
    r"rotary\..*": None,
}


def test_names_and_layouts_there_and_back():
    old = tensors()
    tree = rename(old, MAPPING)
    assert set(tree) == {"layer_0", "layer_1", "conv", "attention"}
    np.testing.assert_array_equal(tree["layer_1"]["kernel"], old["h.1.fc.weight"].T)
    np.testing.assert_array_equal(tree["layer_0"]["bias"], old["h.0.fc.bias"])
    conv = tree["conv"]["kernel"]
    assert conv.shape == (3, 2, 5, 7)
    assert conv[2, 1, 4, 6] == old["conv.weight"][6, 4, 2, 1]
    # Heads apart, and in half the width, if the model has them so.
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tree)
    like["attention"]["q"]["kernel"] = jax.ShapeDtypeStruct((6, 2, 4), jnp.float32)
    fitted = rename(old, MAPPING, like=like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fitted) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    np.testing.assert_array_equal(
        fitted["attention"]["q"]["kernel"].reshape(6, 8), old["attention.q_proj.weight"].T
    )
    merged = jax.tree.map(lambda x: jnp.asarray(x) * 2, fitted)
    back = rename_back(merged, MAPPING, old)
    assert list(back) == list(old)
    for name, x in old.items():
        assert (back[name].shape, back[name].dtype) == (x.shape, x.dtype)
    query, factor = "attention.q_proj.weight", {"rotary.inv_freq": 1}
    np.testing.assert_array_equal(back[query], old[query] * 2)
    for name, x in old.items():  # what went through bfloat16 was rounded there
        np.testing.assert_allclose(back[name], x * factor.get(name, 2), rtol=2**-8)


def test_names_of_every_framework(tmp_path):
    """The key paths of NNX, equinox and lists are what a user would write."""
    mj.io.save(tmp_path / "old.safetensors", tensors())
    old = mj.io.load(tmp_path / "old.safetensors")
    old = {n: x for n, x in old.items() if n.startswith("h.0")}
    mapping = {
        r"h\.0\.fc\.weight": ("0.kernel", (1, 0)),
        r"h\.0\.fc\.bias": "0.bias",
    }
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = nnx.state(nnx.List([linear]))
    new = rename(old, mapping, like=state)
    assert isinstance(new, nnx.State)
    np.testing.assert_array_equal(new[0]["kernel"][...], old["h.0.fc.weight"].T)
    back = rename_back(new, mapping, old)
    # Whole circle through files: names, layout and numbers.
    mj.io.save(tmp_path / "new.safetensors", back)
    for name, x in mj.io.load(tmp_path / "new.safetensors").items():
        np.testing.assert_array_equal(x, old[name])
    module = [eqx.nn.Linear(2, 3, key=jax.random.key(0))]
    own = {r"h\.(\d+)\.fc\.(.*)": r"\1.\2"}  # equinox lays kernels out as PyTorch does
    found = rename(old, own, like=module)
    np.testing.assert_array_equal(found[0].weight, old["h.0.fc.weight"])


W = {"a.weight": np.ones((2, 3), np.float32), "b.weight": np.ones((2, 3), np.float32)}
ERRORS = {
    r"has no pattern for 'b\.weight'\. Add one, or `\{pattern: None\}`": {"a.*": "a"},
    r"brings both 'a\.weight' and 'b\.weight' to 'w'": {".*": "w"},
    r"has '\(', which is no regular expression": {"(": "w"},
    r"has the key path '\\\\2', which does not fit the pattern": {r"(.)\..*": r"\2"},
    r"orders the axes of 'a\.weight' as \(0, 0\), but its shape is \(2, 3\)": {
        r"(.)\..*": (r"\1", (0, 0))
    },
    r"lack 'c', which `like` has and have 'b', which `like` lacks": (
        {r"(.)\..*": r"\1"},
        {"a": W["a.weight"], "c": W["a.weight"]},
    ),
    r"'a' has shape \(2, 3\), but \(2, 2\) is needed": (
        {r"(.)\..*": r"\1"},
        {"a": np.ones((2, 2)), "b": np.ones((2, 3))},
    ),
    "splitting or joining axes does not lead there. Give the order of the axes": (
        {r"(.)\..*": r"\1"},  # a forgotten transpose
        {"a": np.ones((3, 2)), "b": np.ones((2, 3))},
    ),
    r"'a\.b' cannot be nested .* Correct the key paths in `mapping`": {
        "a.*": "a",
        "b.*": "a.b",
    },
    "and neither can stand for the other": (
        {r"(.)\..*": r"\1"},
        {"a": np.ones((2, 3), int), "b": np.ones((2, 3))},
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_what_is_wrong_is_said(message):
    given = ERRORS[message]
    mapping, like = given if isinstance(given, tuple) else (given, None)
    with pytest.raises(ValueError, match=message):
        rename(W, mapping, like=like)


def test_what_cannot_go_back_is_refused():
    mapping = {r"(.)\..*": r"\1"}
    tree = rename(W, mapping)
    with pytest.raises(ValueError, match="lack 'b', which `tensors` has"):
        rename_back({"a": tree["a"]}, mapping, W)
    with pytest.raises(ValueError, match=r"'a' has shape \(2,\), but \(2, 3\) is needed"):
        rename_back({"a": np.ones(2), "b": tree["b"]}, mapping, W)


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.wide = nnx.LoRALinear(4, 6, lora_rank=2, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.wide(x)))


def test_lora_modules_of_nnx():
    base = Adapted(nnx.Rngs(0))
    x = random.normal(size=(5, 4)).astype(np.float32)
    experts = {}
    for i, name in enumerate(("mnist", "usps")):
        expert = nnx.clone(base)
        lora = expert.wide.lora
        lora.lora_b[...] = jax.random.normal(jax.random.key(i), lora.lora_b.shape)
        experts[name] = expert
    graph, no_adapter, params = nnx.split(base, nnx.LoRAParam, nnx.Param)
    path = "['wide']['kernel'].value"
    adapters = {
        name: {path: (e.wide.lora.lora_a[...], e.wide.lora.lora_b[...])}
        for name, e in experts.items()
    }
    tv = mj.from_lora(params, adapters)
    for i, expert in enumerate(experts.values()):
        merged = nnx.merge(graph, no_adapter, mj.merge(tv, np.eye(2)[i]))
        np.testing.assert_allclose(merged(x), expert(x), rtol=1e-4, atol=1e-5)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


def test_a_train_state_in_and_out():
    """Merging whole states leaves steps alone; merging parameters leaves the rest."""
    params = Dense().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    base = TrainState.create(apply_fn=Dense().apply, params=params, tx=optax.adam(1e-2))
    expert = base.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    tv = mj.TaskVectors.from_params(base.params, {"mnist": expert.params})
    merged = base.replace(params=mj.merge(tv, [1.0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        merged.params,
        expert.params,
    )
    assert merged.step == base.step == 0
    whole = mj.TaskVectors.from_params(base, {"mnist": expert})
    assert any("step" in path or "count" in path for path in whole.left_alone)
    kept = [w for path, w in whole.left_alone.items() if "mu" in path or "nu" in path]
    assert kept == ["optimizer state"] * 4
    # A step that `jit` made an array of is no other tree.
    traced = mj.TaskVectors.from_params(base, {"mnist": expert.replace(step=jnp.array(1))})
    assert mj.merge(traced, [1.0]).step == 0
    again = mj.merge(whole, [-1.0])
    assert isinstance(again, TrainState)
    assert eqx.tree_equal(again.opt_state, base.opt_state)
    assert again.apply_gradients(grads=params).step == 1


@pytest.mark.parametrize("make", ["linen", "nnx", "equinox"])
def test_layers_take_factored_leaves(make):
    predict: Any
    x, *pair = (random.normal(size=s).astype("f") for s in ((4, 3), (3, 1), (1, 2)))
    if make == "linen":
        layer = nn.Dense(2)
        params: Any = layer.init(jax.random.key(0), x)
        predict, path = layer.apply, "['params']['kernel']"
    elif make == "nnx":
        graph, params = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        predict, path = (lambda p, x: nnx.merge(graph, p)(x)), "['kernel'].value"
    else:
        params = eqx.nn.Linear(3, 2, key=jax.random.key(0))
        predict, path = (lambda p, x: jax.vmap(p)(x)), ".weight"
        pair = [pair[1].T, pair[0].T]
    tv = mj.from_lora(params, {"a": {path: tuple(pair)}})
    found, want = (predict(f(tv, [0.5]), x) for f in (mj.merge_factored, mj.merge))
    np.testing.assert_allclose(found, want, atol=1e-5)
