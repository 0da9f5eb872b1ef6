"""digits3: the three kinds of digits of the demo, one expert each."""

from collections.abc import Callable

import jax
import numpy as np

import mapjax as mj
from benchmarks.suites._cache import trained
from benchmarks.suites._suite import Suite
from mapjax.adapters import digits3

_VERSION = 1  # of the training


def load(seed: int = 0, *, base_steps: int = 80, expert_steps: int = 600) -> Suite:
    """Train the base and the experts of `mapjax.adapters.digits3`.

    Takes about 15 seconds of CPU the first time. The metric is the accuracy. Held out are
    `mnist5k` lowered by three pixels and a slanted `optdigits`.

    Args:
        seed: Draws the first weights and the batches; the data stay the same.
        base_steps: Updates of the base.
        expert_steps: Updates of each expert.
    """
    datasets = digits3.load()
    steps = {"base_steps": base_steps, "expert_steps": expert_steps}

    def train() -> dict:
        key = jax.random.key(seed)
        return digits3.train(datasets, key=key, progress=False, **steps)._asdict()

    ingredients = [dataset.train for dataset in datasets.values()]
    models = trained("digits3", train, _VERSION, seed, steps, ingredients)
    experts = {name: models["experts"][name] for name in datasets}
    vectors = mj.TaskVectors.from_params(models["base"], experts)

    def on(split: str) -> mj.Evaluator:
        tasks = [
            mj.Task(name, digits3.predict, *getattr(dataset, split))
            for name, dataset in datasets.items()
        ]
        return mj.Evaluator(vectors, tasks)

    new = {
        "mnist5k_lowered": _changed(datasets["mnist5k"].test, lambda x: np.roll(x, 3, 1)),
        "optdigits_slanted": _changed(datasets["optdigits"].test, _slant),
    }
    held_out = [mj.Task(name, digits3.predict, *split) for name, split in new.items()]
    return Suite(
        "digits3",
        seed,
        vectors,
        *map(on, ("train", "validation", "test")),
        held_out=mj.Evaluator(vectors, held_out),
    )


def _slant(images: np.ndarray) -> np.ndarray:
    rows = [np.roll(images[:, r], (14 - r) // 4, axis=1) for r in range(images.shape[1])]
    return np.stack(rows, axis=1)


def _changed(
    split: digits3.Split, change: Callable[[np.ndarray], np.ndarray]
) -> digits3.Split:
    images = change(split.inputs.reshape(-1, 28, 28))
    return digits3.Split(images.reshape(split.inputs.shape), split.targets)
