"""Merge `TrainState`s of a flax linen model with BatchNorm: one goes in, one comes out.

Running averages belong to the parameters that they were recorded with, so that those of a
merge are measured anew, on images without labels. As this is part of the merge rule, the
front is one of recalibrated merges.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from digits import views
from flax.training.train_state import TrainState

import mapjax as mj


class Network(nn.Module):
    """Two normalised layers and a head."""

    @nn.compact
    def __call__(self, x, *, train=False):
        """Compute logits."""
        for _ in range(2):
            x = nn.Dense(64)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


class State(TrainState):
    """Has statistics beside the parameters."""

    batch_stats: Any


def forward(params, batch_stats, images):
    """Run in training mode."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, new = Network().apply(variables, images, train=True, mutable=["batch_stats"])
    return logits, new["batch_stats"]


@partial(jax.jit, static_argnums=3)
def fine_tune(state, images, labels, num_steps):
    def loss(params, batch_stats):
        logits, new = forward(params, batch_stats, images)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return errors.mean(), new

    def step(_, state):
        grads, new = jax.grad(loss, has_aux=True)(state.params, state.batch_stats)
        return state.apply_gradients(grads=grads, batch_stats=new)

    return jax.lax.fori_loop(0, num_steps, step, state)


# 1. Training code: the state of a base, and of an expert for either view.
train_images, train_labels, images, labels = views()
together = np.concatenate(list(train_images.values()))
variables = Network().init(jax.random.key(0), together[:1])
base = State.create(apply_fn=Network().apply, tx=optax.adam(3e-3), **variables)
base = fine_tune(base, together, np.tile(train_labels, 2), 15)
experts = {n: fine_tune(base, x, train_labels, 40) for n, x in train_images.items()}

# 2. A merge rule: parameters merged, statistics measured, everything else as in the base.
tv = mj.TaskVectors.from_params(base.params, {n: s.params for n, s in experts.items()})
batches = [together[i::3] for i in range(3)]


def update(params, batch_stats, images):
    return forward(params, batch_stats, images)[1]


def recalibrated(c):
    params = mj.merge(tv, c)
    step = jax.tree_util.Partial(update, params)
    batch_stats = mj.recalibrate_batch_norm(step, base.batch_stats, batches)
    return {"params": params, "batch_stats": batch_stats}


tasks = [mj.Task(n, base.apply_fn, x, labels) for n, x in images.items()]
evaluator = mj.Evaluator(recalibrated, tasks, num_coefficients=2)

# 3. The front, and the state of a merge, to train on, to save or to serve.
solution = mj.map_front(evaluator, budget=6, rounds=1, verify=4, key=jax.random.key(1))
print(solution)
merged = base.replace(**recalibrated(solution.pick(verified=True)))
merged = merged.replace(opt_state=merged.tx.init(merged.params))  # moments of no use here
further = fine_tune(merged, together, np.tile(train_labels, 2), 1)


def scores(state):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    found = [state.apply_fn(variables, x).argmax(1) for x in images.values()]
    return [float(np.mean(x == labels)) for x in found]


stale = merged.replace(batch_stats=base.batch_stats)
for name, state in {"base": base, **experts, "merged": merged, "stale": stale}.items():
    print(f"{name:8}", *np.round(scores(state), 3))

# The claims: the merge beats base and experts, and its own statistics those of the base.
assert np.mean(scores(merged)) > max(np.mean(scores(s)) for s in (base, *experts.values()))
assert np.mean(scores(merged)) > np.mean(scores(stale)) + 0.02
assert further.step == merged.step + 1
