"""Gram matrices of what kernels read, in every framework, against those by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_spectral as reference
from flax import linen, nnx

from mapjax import transforms

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 4)).astype(np.float32)


def relu(x):
    return np.maximum(x, 0)


def assert_grams(grams, want):
    """Compare matrices and axes with those by hand, and expect no others."""
    assert set(grams) == set(want)
    for path, (matrix, axes) in want.items():
        assert grams[path].axes == axes, path
        assert grams[path].matrix.dtype == jnp.float32
        np.testing.assert_allclose(grams[path].matrix, matrix, rtol=1e-4, atol=1e-5)


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        again = linen.Dense(5, name="again")
        x = linen.relu(linen.Dense(5, name="first")(x))
        x = linen.relu(again(linen.relu(again(x))))
        return linen.Dense(3, use_bias=False, name="last")(x)


def test_grams_of_a_linen_model_with_a_bias_and_a_reused_kernel():
    model = LinenMLP()
    params = model.init(jax.random.key(0), X)
    params = jax.tree.map(lambda p: p + 0.3, params)  # biases that matter
    grams = transforms.gram_matrices(model.apply, params, X)
    p = jax.tree.map(np.asarray, params["params"])
    a = relu(X @ p["first"]["kernel"] + p["first"]["bias"])
    b = relu(a @ p["again"]["kernel"] + p["again"]["bias"])
    c = relu(b @ p["again"]["kernel"] + p["again"]["bias"])
    want = {
        "['params']['first']['kernel']": (reference.mean_gram(X), (0,)),
        "['params']['again']['kernel']": (reference.mean_gram(a, b), (0,)),
        "['params']['last']['kernel']": (reference.mean_gram(c), (0,)),
    }
    assert_grams(grams, want)
    assert list(grams) == list(want)  # in the order of first use
    batched = transforms.gram_matrices(model.apply, params, X, batch_size=4)
    assert_grams(batched, want)
    assert float(batched["['params']['again']['kernel']"].num_rows) == 22


def test_grams_of_an_nnx_model():
    model = nnx.Sequential(
        nnx.Linear(4, 5, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(5, 3, rngs=nnx.Rngs(1))
    )
    graph, state = nnx.split(model)
    grams = transforms.gram_matrices(lambda s, x: nnx.merge(graph, s)(x), state, X)
    kernel, bias = (
        np.asarray(getattr(model.layers[0], k)[...]) for k in ("kernel", "bias")
    )
    want = {
        "['layers'][0]['kernel'].value": (reference.mean_gram(X), (0,)),
        "['layers'][2]['kernel'].value": (
            reference.mean_gram(relu(X @ kernel + bias)),
            (0,),
        ),
    }
    assert_grams(grams, want)


def test_grams_of_an_equinox_model_whose_kernels_lie_the_other_way():
    model = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))
    grams = transforms.gram_matrices(lambda m, x: jax.vmap(m)(x), model, X)
    first = model.layers[0]
    hidden = relu(X @ np.asarray(first.weight).T + np.asarray(first.bias))
    want = {
        ".layers[0].weight": (reference.mean_gram(X), (1,)),
        ".layers[1].weight": (reference.mean_gram(hidden), (1,)),
    }
    assert_grams(grams, want)


def test_grams_of_attention_convolution_scan_and_bfloat16():
    h = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    params = {
        "query": RNG.normal(size=(4, 2, 3)).astype(np.float32),  # [in, heads, features]
        "out": RNG.normal(size=(2, 3, 5)).astype(np.float32),  # [heads, features, out]
        "step": jnp.asarray(RNG.normal(size=(5, 5)) / 4, jnp.bfloat16),
        "cut": RNG.normal(size=(6, 5)).astype(np.float32),
        "embed": RNG.normal(size=(7, 5)).astype(np.float32),
        "count": np.int32(3),
    }

    @jax.checkpoint
    def block(params, h):
        q = jnp.einsum("bti,ihf->bthf", h, params["query"])
        return jnp.einsum("bthf,hfo->bto", q, params["out"])

    def predict(params, h):
        y = block(params, h)

        def step(y, _):
            return jnp.tanh(y @ params["step"].astype(jnp.float32)), y

        y, steps = jax.lax.scan(step, y, length=3)
        masked = y @ (params["cut"][:5] * 2.0)  # not a parameter any more
        return {"logits": masked @ params["embed"].T, "steps": steps}

    grams = transforms.gram_matrices(predict, params, h)
    q = np.einsum("bti,ihf->bthf", h, params["query"])
    y = np.einsum("bthf,hfo->bto", q, params["out"]).reshape(-1, 5)
    states = [y]
    for _ in range(3):
        states.append(np.tanh(states[-1] @ np.asarray(params["step"], np.float32)))
    want = {
        "['query']": (reference.mean_gram(h.reshape(-1, 4)), (0,)),
        "['out']": (reference.mean_gram(q.reshape(-1, 6)), (0, 1)),
        "['step']": (reference.mean_gram(*states[:3]), (0,)),
        "['embed']": (reference.mean_gram(states[3] @ (params["cut"][:5] * 2)), (1,)),
    }
    assert_grams(grams, want)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_grams_of_convolutions_are_those_of_their_patches(layout):
    images = RNG.normal(size=(2, 5, 6, 3)).astype(np.float32)
    kernel = RNG.normal(size=(2, 3, 3, 4)).astype(np.float32)  # [height, width, in, out]
    axes = (2, 0, 1)
    if layout == "NCHW":
        images, kernel = images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
        axes = (1, 2, 3)
    spec = ("NHWC", "HWIO", "NHWC") if layout == "NHWC" else ("NCHW", "OIHW", "NCHW")

    def predict(kernel, x):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 1), "VALID", dimension_numbers=spec
        )

    gram = transforms.gram_matrices(predict, kernel, images)["(root)"]
    channels_first = images if layout == "NCHW" else images.transpose(0, 3, 1, 2)
    patches = [
        channels_first[n, :, i : i + 2, j : j + 3].reshape(-1)
        for n in range(2)
        for i in range(0, 4, 2)
        for j in range(4)
    ]
    assert gram.axes == axes
    np.testing.assert_allclose(
        gram.matrix, reference.mean_gram(np.stack(patches)), rtol=1e-4, atol=1e-5
    )
    # And so the Gram matrix gives the squared norm of what the convolution adds.
    flat = np.transpose(kernel, [*axes, *({0, 1, 2, 3} - set(axes))]).reshape(18, 4)
    outputs = predict(kernel, images)
    energy = np.sum(np.asarray(outputs, np.float64) ** 2) / len(patches)
    np.testing.assert_allclose(np.trace(flat.T @ gram.matrix @ flat), energy, rtol=1e-4)
