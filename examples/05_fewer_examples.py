"""Race 400 merges on few examples: the best for every preference at a part of the cost.

Two experts on upright and upside-down digits, as in the first example. Instead of scoring
every candidate on every example, all start on 32 examples a task, and only those that may
still be the best for some preference, by a point, go on to twice as many.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import mapjax as mj
from mapjax.evaluation import race


def predict(params, images):
    hidden = jax.nn.relu(images @ params[0]["w"] + params[0]["b"])
    return hidden @ params[1]["w"] + params[1]["b"]


def init(key):
    sizes = [(64, 64), (64, 10)]
    keys = jax.random.split(key, len(sizes))
    return [
        {"w": jax.random.normal(k, s) * (2 / s[0]) ** 0.5, "b": jnp.zeros(s[1])}
        for k, s in zip(keys, sizes, strict=True)
    ]


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


pixels, labels = map(np.asarray, load_digits(return_X_y=True))
images = (pixels / 16).astype(np.float32)
flipped = images.reshape(-1, 8, 8)[:, ::-1, ::-1].reshape(-1, 64)
order = np.random.default_rng(0).permutation(len(labels))
first, second = order[:500], order[500:]
both = np.concatenate([images[first], flipped[first]]), np.tile(labels[first], 2)
base = train(init(jax.random.key(0)), *both, 20)
tv = mj.TaskVectors.from_params(
    base,
    {
        "upright": train(base, images[first], labels[first], 60),
        "flipped": train(base, flipped[first], labels[first], 60),
    },
)
evaluator = mj.Evaluator(
    tv,
    [
        mj.Task("upright", predict, images[second], labels[second]),
        mj.Task("flipped", predict, flipped[second], labels[second]),
    ],
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
