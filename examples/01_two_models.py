"""Merge two models call by call: digits upright and digits upside down.

One small network is trained on both kinds of image a little (the base), then fine-tuned
on each alone (two experts). No single merge is best at both, so we trace the front.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import mapjax as mj


def init(key):
    sizes = [(64, 64), (64, 10)]
    keys = jax.random.split(key, len(sizes))
    return [
        {"w": jax.random.normal(k, s) * (2 / s[0]) ** 0.5, "b": jnp.zeros(s[1])}
        for k, s in zip(keys, sizes, strict=True)
    ]


def predict(params, images):
    hidden = jax.nn.relu(images @ params[0]["w"] + params[0]["b"])
    return hidden @ params[1]["w"] + params[1]["b"]


@jax.jit
def train(params, images, labels, num_steps):
    optimizer = optax.adam(3e-3)

    def loss(params):
        logits = predict(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(_, state):
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, updates), moments

    return jax.lax.fori_loop(0, num_steps, step, (params, optimizer.init(params)))[0]


# 1. Data: 1,797 real images, upright and upside down; half to train, half to merge on.
pixels, labels = map(np.asarray, load_digits(return_X_y=True))
images = (pixels / 16).astype(np.float32)
flipped = images.reshape(-1, 8, 8)[:, ::-1, ::-1].reshape(-1, 64)
order = np.random.default_rng(0).permutation(len(labels))
first, second = order[:900], order[900:]

# 2. A base, and two experts fine-tuned from it.
both = np.concatenate([images[first], flipped[first]]), np.tile(labels[first], 2)
base = train(init(jax.random.key(0)), *both, 20)
experts = {
    "upright": train(base, images[first], labels[first], 60),
    "flipped": train(base, flipped[first], labels[first], 60),
}

# 3. Task vectors: what fine-tuning added.
tv = mj.TaskVectors.from_params(base, experts)
print(f"norms {tv.norms()}, cosine {tv.cosine_similarity()[0, 1]:.2f}")

# 4. Tasks, and an evaluator that scores any batch of merges on them.
evaluator = mj.Evaluator(
    tv,
    [
        mj.Task("upright", predict, images[second], labels[second]),
        mj.Task("flipped", predict, flipped[second], labels[second]),
    ],
)

# 5. The front from 12 evaluations, and five points of it checked by real ones.
solution = mj.map_front(evaluator, budget=12, verify=5, key=jax.random.key(1))
assert solution.verified is not None
for name, row in solution.references().items():
    print(f"{name:8} measured {solution.samples.scores[row]}")
for c, score in zip(solution.verified.coefficients, solution.verified.scores, strict=True):
    print(f"merge {c} measured {score}")

# 6. A merge for a preference, as parameters to use.
preference = {"upright": 0.6, "flipped": 0.4}
merged = mj.merge(tv, solution.pick(preference, verified=True))
scores = [
    float(np.mean(np.argmax(predict(merged, x[second]), axis=1) == labels[second]))
    for x in (images, flipped)
]
print(f"picked merge: {scores}")

# The claim: for this preference a measured point of the front beats the base, both experts
# and their uniform merge, with 17 evaluations in all at most.
weights = np.array(list(preference.values()))
references = np.asarray(solution.samples.scores)[list(solution.references().values())]
assert solution.stats["num_evaluations"] <= 17
assert scores @ weights > (references @ weights).max() + 0.01
