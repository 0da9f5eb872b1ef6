"""Rules of which only proportions matter: a front of mixtures, from few evaluations.

The experts are those of 06_merge_rules.py: digits upright, flipped, mirrored or turned.
RegMean solves for every layer by preference, ReACT for the last one, and layer matching for
one layer after the other, on what the merge itself passes on. All read inputs without
labels. Coefficients are preferences, so that a rule answers each before anything is
evaluated; a driver searches them, and tells what each trade costs.
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
    "layers": mj.rules.match_layers(tv, predict, seen),
}

# The same few evaluations for each: experts or mixtures around the middle, and the front.
preferences = np.random.default_rng(0).dirichlet(np.ones(4), 50)
reached = {}
for name, rule in rules.items():
    evaluator = mj.Evaluator(rule, tasks)
    solution = mj.map_front(evaluator, budget=12, key=jax.random.key(0))
    picks = np.stack([solution.pick(p) for p in preferences])
    reached[name] = float(np.mean(np.sum(preferences * evaluator(picks), axis=1)))
    own = float(np.mean(np.sum(preferences * evaluator(preferences), axis=1)))
    if (
        name != "task vectors"
    ):  # a pick leaves the rule's own merge for what is surely better
        assert reached[name] > own - 0.002
    print(f"{name:12} picks reach {reached[name]:.3f}; without evaluations {own:.3f}")

# The claim: mixtures of each of these rules are better for whoever picks.
assert min(reached[name] for name in rules if name != "task vectors") > (
    reached["task vectors"] + 0.02
)
assert max(reached, key=lambda name: reached[name]) == "layers"
