"""vision8: eight kinds of small images, each with its own head, on one merged backbone."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

import mapjax as mj
from benchmarks.suites import _vision_data
from benchmarks.suites._cache import trained
from benchmarks.suites._suite import Suite
from mapjax._types import PRNGKey
from mapjax.adapters.digits3 import Dataset, Split

WIDTH, BLOCKS = 256, 2
MOST = {"train": 1000, "validation": 450, "test": 1000}  # examples of a task
SEEN_BY_BASE = 0.1  # of each training set, so that experts have something to learn
_SUPPORT = 500
_RIDGE = 1.0
_CLASSES = 26  # of the widest head
_VERSION = 1  # of the training


class Backbone(nn.Module):
    """A residual perceptron from 784 pixels to 256 features, of 728,000 parameters."""

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch 784"]) -> Float[Array, "*batch 256"]:
        """Compute the features of images in rows."""
        hidden = nn.Dense(WIDTH)(2 * inputs - 0.5)
        for _ in range(BLOCKS):
            wide = nn.relu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(hidden)))
            hidden = hidden + nn.Dense(WIDTH)(wide)
        return nn.LayerNorm()(hidden)


def features(
    params: PyTree, inputs: Float[Array, "*batch 784"]
) -> Float[Array, "*batch 256"]:
    """Compute what heads see of images in rows."""
    return Backbone().apply(params, inputs)  # pyright: ignore[reportReturnType]


class Head(eqx.Module):
    """The head of one task, which stays with the task whatever backbone is merged."""

    kernel: Float[Array, "features classes"] = eqx.field(converter=jnp.asarray)
    bias: Float[Array, " classes"] = eqx.field(converter=jnp.asarray)

    def __call__(
        self, params: PyTree, inputs: Float[Array, "examples 784"]
    ) -> Float[Array, "examples classes"]:
        """Compute the logits of images with a backbone."""
        return features(params, inputs) @ self.kernel + self.bias


class FittedHead(eqx.Module):
    """The head of a new task, fitted in closed form on the features of a few examples.

    Each backbone gets the head that suits it: ridge regression of the classes on centred
    features, with the penalty 1 where a feature has a variance of about 1.
    """

    inputs: Float[Array, "support 784"]
    classes: Float[Array, "support classes"]  # one-hot

    def __call__(
        self, params: PyTree, inputs: Float[Array, "examples 784"]
    ) -> Float[Array, "examples classes"]:
        """Compute scores of the classes of images with a backbone."""
        x = features(params, self.inputs)
        middle, count = x.mean(axis=0), len(x)
        x = x - middle
        gram = x.T @ x / count + _RIDGE * jnp.eye(WIDTH, dtype=x.dtype)
        kernel = jax.scipy.linalg.solve(gram, x.T @ self.classes / count, assume_a="pos")
        return (features(params, inputs) - middle) @ kernel + self.classes.mean(axis=0)


def load(seed: int = 0, *, base_steps: int = 600, expert_steps: int = 600) -> Suite:
    """Train a backbone on a tenth of all data, and fine-tune an expert on each task's all.

    The tasks are those of `_vision_data.load`. The base learns the tasks together, each
    with its own head; an expert starts from the base and its head, and keeps the head that
    it was trained with, for every merge. Takes about a minute of CPU the first time, and
    downloads 23 MB. The metric is the accuracy on at most 450 examples of a task to choose
    coefficients on (185 vowels), and 1,000 to test. Held out are signs of punctuation, and
    animals turned by a quarter, both with heads fitted on 500 labelled examples.

    Args:
        seed: Draws the first weights and the batches; the data stay the same.
        base_steps: Updates of the base.
        expert_steps: Updates of each expert.

    Raises:
        ImportError: If a package that holds data is missing. It names the extra.
        RuntimeError: If an archive can neither be found nor downloaded, or is another.
    """
    datasets = {name: _shuffled(dataset) for name, dataset in _vision_data.load().items()}
    steps = {"base_steps": base_steps, "expert_steps": expert_steps}
    splits = {name: dataset.train for name, dataset in datasets.items()}
    models = trained(
        "vision8",
        lambda: train(splits, key=jax.random.key(seed), **steps),
        *(_VERSION, seed, steps, splits),
    )
    vectors = mj.TaskVectors.from_params(
        models["base"], {name: models["experts"][name] for name in datasets}
    )

    def on(kind: str) -> mj.Evaluator:
        tasks = [
            mj.Task(name, Head(**models["heads"][name]), *_first(dataset, kind))
            for name, dataset in datasets.items()
        ]
        return mj.Evaluator(vectors, tasks)

    new = {
        "figlet_symbols": _shuffled(_vision_data.load_symbols()),
        "animals_turned": Dataset(*map(_turned, datasets["animals"])),
    }
    held_out = [
        mj.Task(name, _fitted(dataset.train), *_first(dataset, "test"))
        for name, dataset in new.items()
    ]
    return Suite(
        "vision8",
        seed,
        vectors,
        *map(on, ("train", "validation", "test")),
        held_out=mj.Evaluator(vectors, held_out),
        features=features,
    )


def _shuffled(dataset: Dataset) -> Dataset:
    """Put the examples of every split into an order that is always the same."""
    rng = np.random.default_rng(0)
    orders = (rng.permutation(len(split.targets)) for split in dataset)
    return Dataset(
        *(Split(*(x[o] for x in split)) for split, o in zip(dataset, orders, strict=True))
    )


def _first(dataset: Dataset, kind: str) -> Split:
    return Split(*(x[: MOST[kind]] for x in getattr(dataset, kind)))


def _turned(split: Split) -> Split:
    images = np.rot90(split.inputs.reshape(-1, 28, 28), axes=(1, 2))
    return Split(images.reshape(split.inputs.shape), split.targets)


def _fitted(split: Split) -> FittedHead:
    inputs, targets = (jnp.asarray(x[:_SUPPORT]) for x in split)
    return FittedHead(inputs, jax.nn.one_hot(targets, int(split.targets.max()) + 1))


class _Pool(NamedTuple):
    """The training examples of all tasks in one array, and where each task's are."""

    inputs: Float[Array, "examples 784"]
    targets: Int[Array, " examples"]
    starts: Int[Array, " tasks"]
    sizes: Int[Array, " tasks"]


def train(
    splits: Mapping[str, Split], *, key: PRNGKey, base_steps: int, expert_steps: int
) -> dict[str, Any]:
    """Train a base, and from it an expert with its head for each task.

    Adam on the cross-entropy, with a rate that falls to zero along a cosine: 1e-3 for the
    base on batches of 64 examples of each task, and 3e-4 for experts on batches of 128.
    """
    init_key, base_key, *expert_keys = jax.random.split(key, 2 + len(splits))
    sizes = np.array([len(split.targets) for split in splits.values()])
    inputs, targets = (
        jnp.concatenate([split[part] for split in splits.values()]) for part in (0, 1)
    )
    pool = _Pool(inputs, targets, jnp.asarray(np.cumsum(sizes) - sizes), jnp.asarray(sizes))
    start = {
        "backbone": Backbone().init(init_key, inputs[:1]),
        # As wide as the widest, so that all are trained at once; cut to size at the end.
        "kernel": jnp.zeros((len(splits), WIDTH, _CLASSES)),
        "bias": jnp.zeros((len(splits), _CLASSES)),
    }
    few = pool._replace(sizes=jnp.ceil(SEEN_BY_BASE * pool.sizes).astype(int))
    base = _fit(start, few, base_key, base_steps, 64, 1e-3)
    experts, heads = {}, {}
    for i, name in enumerate(splits):
        own = slice(i, i + 1)
        alone = pool._replace(starts=pool.starts[own], sizes=pool.sizes[own])
        start = base | {part: base[part][own] for part in ("kernel", "bias")}
        expert = _fit(start, alone, expert_keys[i], expert_steps, 128, 3e-4)
        classes = int(splits[name].targets.max()) + 1
        experts[name] = expert["backbone"]
        heads[name] = {part: expert[part][0, ..., :classes] for part in ("kernel", "bias")}
    return {"base": base["backbone"], "experts": experts, "heads": heads}


@partial(jax.jit, static_argnames=("steps", "batch", "rate"))
def _fit(
    model: PyTree, pool: _Pool, key: PRNGKey, steps: int, batch: int, rate: float
) -> PyTree:
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(model: PyTree, x: Array, y: Array) -> Array:
        hidden = features(model["backbone"], x.reshape(-1, x.shape[-1]))
        hidden = hidden.reshape(*y.shape, WIDTH)
        logits = hidden @ model["kernel"] + model["bias"][:, None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        model, state = carry
        shape, sizes = (len(pool.starts), batch), pool.sizes[:, None]
        draw = jax.random.randint(jax.random.fold_in(key, i), shape, 0, sizes)
        rows = pool.starts[:, None] + draw
        grads = jax.grad(loss)(model, pool.inputs[rows], pool.targets[rows])
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(model, updates), state

    return jax.lax.fori_loop(0, steps, step, (model, optimizer.init(model)))[0]
