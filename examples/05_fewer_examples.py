"""Race 400 merges on few examples: the best for every preference at a part of the cost.

Two experts on upright and upside-down digits, as in the first example. Instead of scoring
every candidate on every example, all start on 32 examples a task, and only those that may
still be the best for some preference, by a point, go on to twice as many.
"""

import jax
import numpy as np
from digits import predict, two_views

import mapjax as mj
from mapjax.evaluation import race

base, experts, views, labels = two_views(num_train=500)
evaluator = mj.Evaluator(
    mj.TaskVectors.from_params(base, experts),
    [mj.Task(name, predict, images, labels) for name, images in views.items()],
)

# 1. Many candidates, and what users may prefer: from one task alone to the other alone.
candidates = np.random.default_rng(1).random((400, 2)).astype(np.float32)
share = np.linspace(0, 1, 11)
preferences = np.stack([share, 1 - share], axis=1)

# 2. The race. A merge within one point of the best is good enough.
found = race(evaluator, candidates, preferences, tolerance=0.01, key=jax.random.key(1))
print(f"examples evaluated: {100 * found.share:.0f} % of all, {found.kept.sum()} kept")
for preference, k in zip(preferences, found.best, strict=True):
    print(f"preference {preference} merge {candidates[k]} measured {found.scores[k]}")

# The claim: no choice is more than a point worse than the best of a full evaluation.
full = np.asarray(evaluator(candidates)) @ preferences.T
lost = full.max(axis=0) - full[found.best, np.arange(len(preferences))]
print(f"lost at most {100 * lost.max():.2f} points")
assert lost.max() <= 0.01
assert found.share < 0.85
