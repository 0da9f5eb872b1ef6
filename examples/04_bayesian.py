"""Let the posterior choose each evaluation, and stop when little is left to gain.

The networks are those of 01_two_models.py: digits upright and upside down. A designed
sample of 12 merges is compared with one that is chosen merge by merge.
"""

import jax
import numpy as np
from digits import predict, two_views

import mapjax as mj

# 1. A base, two experts, and an evaluator of their merges.
base, experts, views, labels = two_views()
evaluator = mj.Evaluator(
    mj.TaskVectors.from_params(base, experts),
    [mj.Task(name, predict, images, labels) for name, images in views.items()],
)

# 2. Twelve merges of a design, and at most twelve chosen one by one.
designed = mj.map_front(evaluator, budget=12, rounds=1, key=jax.random.key(1))
chosen = mj.bayesian_front(evaluator, budget=12, tolerance=0.01, key=jax.random.key(1))
for found in chosen.stats["rounds"]:
    gain = 100 * found["expected_improvement"]
    print(f"after {found['num_evaluations']} merges the next should add {gain:.1f} %")

# 3. The hypervolume of what was really measured, from an accuracy of one half.
volumes = {}
for name, solution in {"designed": designed, "chosen": chosen}.items():
    scores = np.asarray(solution.samples.scores)
    volumes[name] = float(mj.pareto.hypervolume(-scores, np.full(2, -0.5)))
    print(f"{name}: {len(scores)} evaluations, hypervolume {volumes[name]:.4f}")

# The claim: no more evaluations, and more of the front really measured.
assert len(chosen.samples) <= 12
assert volumes["chosen"] > volumes["designed"]
