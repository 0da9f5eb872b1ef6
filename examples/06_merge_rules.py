"""Merge the same experts under eight rules, and draw the front of each on one picture.

A rule edits the task vectors; the merge stays linear in the coefficients, so that one
driver finds the front of every rule. The experts read digits upright, flipped, mirrored or
turned, from a base that hardly reads any: their vectors are in each other's way.
"""

import sys

import jax
import numpy as np
from digits import four_views, predict

import mapjax as mj
from mapjax import transforms

base, experts, seen, images, labels = four_views()
tv = mj.TaskVectors.from_params(base, experts)

# RegMean asks for the inputs of every layer, without labels; the others for nothing.
grams = {
    name: transforms.gram_matrices(predict, experts[name], x) for name, x in seen.items()
}
rules = {
    "task arithmetic": tv,
    "ties": transforms.ties(tv, density=0.5),
    "dare": transforms.dare(tv, density=0.5, key=jax.random.key(1)),
    "consensus": transforms.consensus(tv),
    "magmax": transforms.magmax(tv),
    "tsv": transforms.tsv(tv),
    "iso_c": transforms.iso_c(tv),
    "regmean": transforms.regmean(tv, grams),
}

# Ones are what each paper proposes. The same budget traces a front around them.
tasks = [mj.Task(name, predict, x, labels) for name, x in images.items()]
solutions, volumes = {}, {}
plain = mj.Evaluator(tv, tasks)
for name, vectors in rules.items():
    evaluator = plain.replace(vectors)  # which compiles nothing anew
    solution = mj.map_front(evaluator, budget=30, bounds=(0, 1.5), key=jax.random.key(2))
    scores = np.asarray(solution.samples.scores)
    published = float(np.mean(evaluator(np.ones((1, 4), np.float32))))
    volumes[name] = float(mj.pareto.hypervolume(-scores, np.full(4, -0.25)))
    solutions[name] = solution
    print(f"{name:16} published merge {published:.3f}, best merge of the front ", end="")
    print(f"{scores.mean(axis=1).max():.3f}, hypervolume {volumes[name]:.4f}")

if len(sys.argv) > 1:  # where to save the picture
    figure = mj.plot.fronts(solutions, ("upright", "turned")).get_figure(root=True)
    assert figure is not None
    figure.savefig(sys.argv[1])

# The claims: a better rule lifts the whole front, and a front beats the published point.
assert volumes["regmean"] > 1.1 * volumes["task arithmetic"]
assert max(volumes, key=lambda name: volumes[name]) == "regmean"
