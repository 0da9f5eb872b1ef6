"""A suite of three small perceptrons, which takes a moment to make."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import mapjax as mj
from benchmarks.suites import Suite

NAMES = ("a", "b", "c")
N = len(NAMES)
SIZES = (5, 6, 4)
COUNT = 40


def predict(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["last"]["kernel"] + params["last"]["bias"]


def draw(rng, scale):
    inputs, hidden, classes = SIZES
    shapes = {
        "hidden": {"kernel": (inputs, hidden), "bias": (hidden,)},
        "last": {"kernel": (hidden, classes), "bias": (classes,)},
    }
    return jax.tree.map(
        lambda shape: (scale * rng.normal(size=shape)).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


class Stack(eqx.Module):
    """Equinox keeps kernels as `[outputs, inputs]`, and has one example at a time."""

    hidden: eqx.nn.Linear
    last: eqx.nn.Linear

    def __call__(self, x):
        return self.last(jnp.tanh(self.hidden(x)))


def as_equinox(params):
    """Put parameters of `predict` into a model that does the same."""
    parts = {}
    for name, layer in params.items():
        linear = eqx.nn.Linear(*layer["kernel"].shape, key=jax.random.key(0))
        new = layer["kernel"].T, layer["bias"]
        parts[name] = eqx.tree_at(lambda m: (m.weight, m.bias), linear, new)
    return Stack(**parts)


def toy_suite(seed=0, predict=predict, metric=mj.metrics.accuracy):
    """Every expert is right on the examples of its own task."""
    rng = np.random.default_rng(seed)
    base = draw(rng, 0.5)
    experts = [jax.tree.map(np.add, base, draw(rng, 0.7)) for _ in NAMES]
    vectors = mj.TaskVectors.from_params(base, experts, names=NAMES)

    def on(names):
        tasks = []
        for name in names:
            x = rng.normal(size=(COUNT, SIZES[0])).astype(np.float32)
            logits = np.asarray(predict(experts[NAMES.index(name)], x))
            labels = logits.argmax(axis=1) if logits.ndim > 1 else logits > 0
            tasks.append(mj.Task(name, predict, x, labels.astype(np.int32), metric))
        return mj.Evaluator(vectors, tasks)

    splits = (on(NAMES) for _ in range(3))
    return Suite("toy", seed, vectors, *splits, held_out=on(NAMES[:2]))
