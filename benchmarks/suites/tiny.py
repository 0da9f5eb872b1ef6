"""tiny: three views of digits8 with models that are hardly trained, to see all run."""

from itertools import islice

import mapjax as mj
from benchmarks.suites import digits8
from benchmarks.suites._suite import Suite


def load(seed: int = 0) -> Suite:
    """Train for a second on three views of digits8."""
    return digits8.train_suite(
        "tiny",
        dict(islice(digits8.TRANSFORMS.items(), 3)),
        digits8.HELD_OUT,
        seed,
        base_steps=20,
        expert_steps=60,
        metric=mj.metrics.accuracy,
    )
