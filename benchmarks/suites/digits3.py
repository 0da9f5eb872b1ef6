"""digits3: the three kinds of digits of the demo, one expert each."""

import jax

import mapjax as mj
from benchmarks.suites._suite import Suite
from mapjax.adapters import digits3


def load(seed: int = 0, *, base_steps: int = 80, expert_steps: int = 600) -> Suite:
    """Train the base and the experts of `mapjax.adapters.digits3`.

    Takes about 15 seconds of CPU. The metric is the accuracy.

    Args:
        seed: Draws the first weights and the batches; the data stay the same.
        base_steps: Updates of the base.
        expert_steps: Updates of each expert.
    """
    datasets = digits3.load()
    trained = digits3.train(
        datasets,
        key=jax.random.key(seed),
        base_steps=base_steps,
        expert_steps=expert_steps,
        progress=False,
    )
    vectors = mj.TaskVectors.from_params(*trained)

    def on(split: str) -> mj.Evaluator:
        tasks = [
            mj.Task(name, digits3.predict, *getattr(dataset, split))
            for name, dataset in datasets.items()
        ]
        return mj.Evaluator(vectors, tasks)

    return Suite("digits3", seed, vectors, on("validation"), on("test"))
