"""A front from the evaluations that everyone already has: the base and the experts.

Four experts read digits that are upright, flipped, mirrored or turned by a quarter. Five
evaluations predict their whole front, with error bars; each round of four more checks and
sharpens it.
"""

import jax
import numpy as np
from digits import four_views, predict

import mapjax as mj

base, experts, _, images, labels = four_views(num_steps=60, num_hidden=2)
evaluator = mj.Evaluator(
    mj.TaskVectors.from_params(base, experts),
    [mj.Task(name, predict, x, labels) for name, x in images.items()],
)

# Five evaluations: the outputs of every image are interpolated between base and experts,
# and the accuracy of a merge is that of its interpolated outputs.
solution = mj.map_front(evaluator, budget=5, key=jax.random.key(1))
preference = {"upright": 0.5, "turned": 0.5}
c = solution.pick(preference)
guess = solution.predicted(c)
assert guess.std is not None
measured = np.asarray(evaluator(c[None]))[0]
for name, row in zip(
    images, np.stack([guess.scores[0], guess.std[0], measured], axis=1), strict=True
):
    print(f"{name:9} predicted {row[0]:.3f} +- {row[1]:.3f}, measured {row[2]:.3f}")
weights = np.array([preference.get(name, 0.0) for name in images])
had = float(np.max(np.asarray(solution.samples.scores) @ weights))
print(f"for {preference}: base and experts {had:.3f}, merge {measured @ weights:.3f}")
assert measured @ weights > had

# More evaluations go where the front is predicted to be, and less is left to gain.
solution = mj.map_front(evaluator, budget=21, key=jax.random.key(1))
for stage in solution.stats["rounds"]:
    print(f"after {stage['num_evaluations']} evaluations: ", end="")
    print(f"{stage['expected_gain']:.4f} to gain over the best sample")
best = float(np.max(np.asarray(solution.samples.scores) @ weights))
print(f"for {preference}: best measured {best:.3f}")
assert best >= measured @ weights - 0.01
