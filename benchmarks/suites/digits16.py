"""digits16: one perceptron per way to turn or mirror small digits, plain and inverted."""

import numpy as np

import mapjax as mj
from benchmarks.suites import digits8
from benchmarks.suites._suite import Suite
from benchmarks.suites.digits8 import Transform, train_suite

# The eight symmetries of the square, each with black on white and white on black.
_SYMMETRIES: dict[str, Transform] = {
    name: transform for name, transform in digits8.TRANSFORMS.items() if name != "invert"
} | {"other_transpose": digits8.HELD_OUT["other_transpose"]}
TRANSFORMS: dict[str, Transform] = _SYMMETRIES | {
    f"inverted_{name}": lambda x, transform=transform: 1 - transform(x)
    for name, transform in _SYMMETRIES.items()
}
HELD_OUT: dict[str, Transform] = {
    "lowered": lambda x: np.roll(x, 1, axis=1),
    "pale": lambda x: 0.5 + 0.5 * x,
}


def load(
    seed: int = 0,
    *,
    base_steps: int = 300,
    expert_steps: int = 300,
    metric: mj.metrics.Metric = mj.metrics.accuracy,
) -> Suite:
    """Train a base on all sixteen tasks and fine-tune an expert on each.

    Networks, data and training are those of digits8. Takes about ten seconds of CPU. Held
    out are the digits lowered by a pixel, and pale ones.

    Args:
        seed: Draws the first weights and the batches; the data stay the same.
        base_steps: Updates of the base.
        expert_steps: Updates of each expert.
        metric: Any that takes logits, and is to be maximised.
    """
    options = {"base_steps": base_steps, "expert_steps": expert_steps, "metric": metric}
    return train_suite("digits16", TRANSFORMS, HELD_OUT, seed, **options)
