"""Rules of which only proportions matter: a front of mixtures, from few evaluations.

The experts are those of 06_merge_rules.py: digits upright, flipped, mirrored or turned.
ReACT solves for the last layer of a merge by preference, and RegMean for every layer. Both
read inputs without labels. A driver then searches mixtures, coefficients that sum to one.
"""

import jax
import numpy as np
from digits import four_views, predict

import mapjax as mj

base, experts, seen, images, labels = four_views()
tv = mj.TaskVectors.from_params(base, experts)
tasks = [mj.Task(name, predict, x, labels) for name, x in images.items()]
grams = {
    name: mj.transforms.gram_matrices(predict, experts[name], x) for name, x in seen.items()
}
rules = {
    "task vectors": tv,
    "RegMean": mj.rules.regmean_mean(tv, grams),
    "ReACT": mj.rules.react(tv, predict, seen),
}

# The same few evaluations for each: experts or mixtures around the middle, and the front.
preferences = np.random.default_rng(0).dirichlet(np.ones(4), 50)
reached = {}
for name, rule in rules.items():
    evaluator = mj.Evaluator(rule, tasks)
    solution = mj.map_front(evaluator, budget=12, key=jax.random.key(0))
    picks = np.stack([solution.pick(p) for p in preferences])
    reached[name] = float(np.mean(np.sum(preferences * evaluator(picks), axis=1)))
    total = np.asarray(solution.samples.coefficients).sum(axis=1)
    print(f"{name:12} picks reach {reached[name]:.3f}; sums from {total.min():.2f}", end="")
    print(f" to {total.max():.2f}")

# The claim: mixtures of either rule are better for whoever picks.
assert min(reached["RegMean"], reached["ReACT"]) > reached["task vectors"] + 0.02
