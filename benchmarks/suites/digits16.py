"""digits16: one perceptron per way to turn or mirror small digits, plain and inverted."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import mapjax as mj
from benchmarks.suites import digits8
from benchmarks.suites._suite import Suite

# The eight symmetries of the square, each with black on white and white on black.
_SYMMETRIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    name: transform for name, transform in digits8.TRANSFORMS.items() if name != "invert"
} | {"other_transpose": lambda x: x.transpose(0, 2, 1)[:, ::-1, ::-1]}
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = _SYMMETRIES | {
    f"inverted_{name}": lambda x, transform=transform: 1 - transform(x)
    for name, transform in _SYMMETRIES.items()
}
_TRAIN, _VALIDATION = 797, 500


def load(
    seed: int = 0,
    *,
    base_steps: int = 300,
    expert_steps: int = 300,
    metric: mj.metrics.Metric = mj.metrics.accuracy,
) -> Suite:
    """Train a base on all sixteen tasks and fine-tune an expert on each.

    Networks, data and training are those of digits8. Takes about ten seconds of CPU.

    Args:
        seed: Draws the first weights and the batches; the data stay the same.
        base_steps: Updates of the base.
        expert_steps: Updates of each expert.
        metric: Any that takes logits, and is to be maximised.
    """
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (pixels[order] / 16).astype(np.float32).reshape(-1, 8, 8)
    targets = labels[order].astype(np.int32)
    inputs = np.stack([t(images).reshape(-1, 64) for t in TRANSFORMS.values()])
    train, validation, test = np.split(
        np.arange(len(order)), [_TRAIN, _TRAIN + _VALIDATION]
    )

    init_key, base_key, expert_key = jax.random.split(jax.random.key(seed), 3)
    x, y = jnp.asarray(inputs[:, train]), jnp.asarray(targets[train])
    everything = x.reshape(-1, 64), jnp.tile(y, len(TRANSFORMS))
    base = digits8._fit(digits8._init(init_key), *everything, base_key, base_steps)
    fit_each = jax.vmap(
        partial(digits8._fit, steps=expert_steps), in_axes=(None, 0, None, None)
    )
    experts = fit_each(base, x, y, expert_key)
    vectors = mj.TaskVectors.from_params(
        base,
        {
            name: jax.tree.map(lambda p, i=i: p[i], experts)
            for i, name in enumerate(TRANSFORMS)
        },
    )

    def on(rows: np.ndarray) -> mj.Evaluator:
        tasks = [
            mj.Task(name, digits8.predict, inputs[i, rows], targets[rows], metric)
            for i, name in enumerate(TRANSFORMS)
        ]
        return mj.Evaluator(vectors, tasks)

    return Suite("digits16", seed, vectors, on(validation), on(test))
