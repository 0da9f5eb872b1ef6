"""Merge equinox modules, `eqx.partition` in and `eqx.combine` out; the experts are averages.

What is merged of a training run need not be its last step: here it is the moving average
of its parameters that optax keeps, which is as much a pytree as they are.
"""

import equinox as eqx
import jax
import numpy as np
import optax
from digits import views

import mapjax as mj

average = optax.ema(0.9)  # of what it is given: here parameters


@eqx.filter_jit
def fine_tune(params, static, images, labels, num_steps):
    """Give the parameters after training, and their moving average."""
    optimizer = optax.adam(1e-2)

    def loss(params):
        logits = jax.vmap(eqx.combine(params, static))(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(_, state):
        params, moments, _, averages = state
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        params = optax.apply_updates(params, updates)
        return params, moments, *average.update(params, averages)

    state = params, optimizer.init(params), params, average.init(params)
    params, _, averaged, _ = jax.lax.fori_loop(0, num_steps, step, state)
    return params, averaged


# 1. Training code: a module parted into what is trained and what is not.
train_images, train_labels, images, labels = views()
together = np.concatenate(list(train_images.values()))
model = eqx.nn.MLP(64, 10, width_size=64, depth=2, key=jax.random.key(0))
params, static = eqx.partition(model, eqx.is_inexact_array)
base, _ = fine_tune(params, static, together, np.tile(train_labels, 2), 10)
experts = {n: fine_tune(base, static, x, train_labels, 60) for n, x in train_images.items()}

# 2. Task vectors of the averages; of whole modules they would be the same.
tv = mj.TaskVectors.from_params(base, {name: ema for name, (_, ema) in experts.items()})
modules = {name: eqx.combine(ema, static) for name, (_, ema) in experts.items()}
whole = mj.TaskVectors.from_params(eqx.combine(base, static), modules)
assert np.array_equal(whole.norms(), tv.norms())
print("left alone:", whole.left_alone)


def predict(params, images):
    return jax.vmap(eqx.combine(params, static))(images)


# 3. Merges of every strength, in one call, and a module of the best.
tasks = [mj.Task(name, predict, x, labels) for name, x in images.items()]
candidates = np.linspace([0, 0], [1, 1], 21, dtype=np.float32)
scores = np.asarray(mj.Evaluator(tv, tasks)(candidates)).mean(axis=1)
best = candidates[scores.argmax()]
merged = eqx.combine(mj.merge(tv, best), static)


def accuracy(model):
    found = [jax.vmap(model)(x).argmax(1) for x in images.values()]
    return np.mean([x == labels for x in found])


found = {"base": eqx.combine(base, static), **modules, "merged": merged}
found = {name: float(accuracy(model)) for name, model in found.items()}
print(f"coefficients {best}:", {name: round(x, 3) for name, x in found.items()})

# The claim: the merge beats everything that went into it.
assert isinstance(merged, eqx.nn.MLP)
assert found["merged"] > max(found[name] for name in ("base", *experts)) + 0.01
