"""Tune one merge by gradients: AdaMerging without labels, Frank-Wolfe with them, and groups.

Where one merge is wanted and no front, a tuner finds it. The experts read digits upright,
flipped, mirrored or turned. One half of the images is tuned on, and the other is measured.
"""

import jax
import numpy as np
from digits import four_views, predict

import mapjax as mj

base, experts, _, images, labels = four_views(num_steps=200, num_hidden=2)
tv = mj.TaskVectors.from_params(base, experts)


def half(rule, start):
    """Score every other image."""
    tasks = [
        mj.Task(name, predict, x[start::2], labels[start::2]) for name, x in images.items()
    ]
    return mj.Evaluator(rule, tasks)


# One coefficient for each expert, by how confident predictions are: labels are not read.
key = jax.random.key(0)
confident = mj.adamerging(half(tv, 0), key=key)

# One for each expert and layer. Frank-Wolfe steps towards one expert at a time, in every
# layer by itself, so that those of a layer sum to one.
layers = mj.group(tv, "depth")
loss = mj.metrics.cross_entropy
by_layer = mj.frank_wolfe(half(layers, 0), loss=loss, key=key)
for name, c in zip(layers.coefficient_names, by_layer.pick(), strict=True):
    print(f"{name:18} {c:.2f}")

rows = np.stack([*np.eye(4), np.full(4, 0.25), confident.pick()]).astype(np.float32)
*alone, uniform, adamerging = np.mean(half(tv, 1)(rows), axis=1)
frank_wolfe = np.mean(half(layers, 1)(by_layer.pick()[None]))
print(f"the best expert {max(alone):.3f}, uniform {uniform:.3f}, ", end="")
print(f"AdaMerging {adamerging:.3f}, Frank-Wolfe by layer {frank_wolfe:.3f}")

# The claims, on images that no tuner has seen: no expert is as good as either merge, and
# AdaMerging is better than the uniform one.
assert min(adamerging, frank_wolfe) > max(alone) + 0.05
assert adamerging > uniform + 0.003
np.testing.assert_allclose(by_layer.pick().reshape(4, 3).sum(axis=0), 1, atol=1e-5)
