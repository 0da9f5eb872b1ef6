"""Merge LoRA experts of a flax NNX model: filters, `nnx.split`, `nnx.merge`.

A base reads digits, some of them upside down; two experts, for upright and for flipped
ones, are adapters of rank 8 on the frozen base. The factors are never multiplied out before
they are merged.
"""

import numpy as np
import optax
from digits import views
from flax import nnx

import mapjax as mj


class Network(nnx.Module):
    """A perceptron with an adapter in each layer."""

    def __init__(self, rngs):
        self.hidden = nnx.LoRALinear(64, 64, lora_rank=8, rngs=rngs)
        self.head = nnx.LoRALinear(64, 10, lora_rank=8, rngs=rngs)

    def __call__(self, x):
        """Compute logits."""
        return self.head(nnx.relu(self.hidden(x)))


@nnx.jit(static_argnums=4)
def step(model, optimizer, images, labels, trained):
    def loss(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, trained))(model))


def fine_tune(model, images, labels, num_steps, trained):
    """Train a copy of a model, but only its variables of one kind."""
    model = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=trained)
    for _ in range(num_steps):
        step(model, optimizer, images, labels, trained)
    return model


def factors(model):
    """List a model's adapters, by the key path of the kernel that each is for."""
    layers = {"hidden": model.hidden, "head": model.head}
    return {
        f"['{name}']['kernel'].value": (layer.lora.lora_a[...], layer.lora.lora_b[...])
        for name, layer in layers.items()
    }


# 1. Training code: a base, and adapters of it for either view.
train_images, train_labels, images, labels = views()
together = np.concatenate(list(train_images.values()))
weights = nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam))
base = fine_tune(Network(nnx.Rngs(0)), together, np.tile(train_labels, 2), 25, weights)
experts = {
    name: fine_tune(base, x, train_labels, 25, nnx.LoRAParam)
    for name, x in train_images.items()
}

# 2. Task vectors: the parameters of the base, and the experts' factors.
graph, no_adapter, params = nnx.split(base, nnx.LoRAParam, nnx.Param)
tv = mj.from_lora(params, {name: factors(expert) for name, expert in experts.items()})


def predict(params, images):
    return nnx.merge(graph, no_adapter, params)(images)


# 3. Merges of every strength, in one call, and a module of the best.
tasks = [mj.Task(name, predict, x, labels) for name, x in images.items()]
candidates = np.linspace([0, 0], [1, 1], 21, dtype=np.float32)
scores = np.asarray(mj.Evaluator(tv, tasks)(candidates)).mean(axis=1)
best = candidates[scores.argmax()]
model = nnx.merge(graph, no_adapter, mj.merge(tv, best))


def accuracy(model):
    return np.mean([model(x).argmax(1) == labels for x in images.values()])


found = {
    name: accuracy(m) for name, m in {"base": base, **experts, "merged": model}.items()
}
print(f"coefficients {best}:", {name: round(float(x), 3) for name, x in found.items()})

# The claims: coefficients of 1 and 0 are the expert itself, and the merge beats everything
# that went into it.
x = images["upright"]
alone = predict(mj.merge(tv, [1.0, 0.0]), x)
np.testing.assert_allclose(alone, experts["upright"](x), rtol=1e-3, atol=1e-3)
assert found["merged"] > max(found[name] for name in ("base", *experts)) + 0.01
