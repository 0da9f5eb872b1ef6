"""Merge two models call by call: digits upright and digits upside down.

One small network is trained on both kinds of image a little (the base), then fine-tuned
on each alone (two experts). No single merge is best at both, so we trace the front.
"""

import jax
import numpy as np
from digits import predict, two_views

import mapjax as mj

# 1. A base and two experts fine-tuned from it; images, upright and upside down, to merge on.
base, experts, views, labels = two_views()

# 2. Task vectors: what fine-tuning added.
tv = mj.TaskVectors.from_params(base, experts)
print(f"norms {tv.norms()}, cosine {tv.cosine_similarity()[0, 1]:.2f}")

# 3. Tasks, and an evaluator that scores any batch of merges on them.
evaluator = mj.Evaluator(
    tv, [mj.Task(name, predict, images, labels) for name, images in views.items()]
)

# 4. The front from 12 evaluations, and five points of it checked by real ones.
solution = mj.map_front(evaluator, budget=12, verify=5, key=jax.random.key(1))
assert solution.verified is not None
for name, row in solution.references().items():
    print(f"{name:8} measured {solution.samples.scores[row]}")
for c, score in zip(solution.verified.coefficients, solution.verified.scores, strict=True):
    print(f"merge {c} measured {score}")

# 5. A merge for a preference, as parameters to use.
preference = {"upright": 0.6, "flipped": 0.4}
merged = mj.merge(tv, solution.pick(preference, verified=True))
scores = [
    float(np.mean(np.argmax(predict(merged, images), axis=1) == labels))
    for images in views.values()
]
print(f"picked merge: {scores}")

# The claim: for this preference a measured point of the front beats the base, both experts
# and their uniform merge, with 17 evaluations in all at most.
weights = np.array(list(preference.values()))
references = np.asarray(solution.samples.scores)[list(solution.references().values())]
assert solution.stats["num_evaluations"] <= 17
assert scores @ weights > (references @ weights).max() + 0.01
