"""From a checkpoint with PyTorch's names and layouts to a JAX tree, and back.

A folder as Hugging Face keeps them holds kernels `[out, in]` under names that no JAX model
has. A map of patterns makes the tree that the training code wants; the same map, read
backwards, gives the merged checkpoint the names and layouts that it came with.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
from digits import init, predict, train, views

import mapjax as mj

# 1. The checkpoint: a base that was trained elsewhere, as files of others look.
train_images, train_labels, images, labels = views()
together = np.concatenate(list(train_images.values()))
network = train(init(jax.random.key(0)), together, np.tile(train_labels, 2), 20)
folder = Path(tempfile.mkdtemp())
tensors = {"embeddings.position_ids": np.arange(64)}
for i, layer in enumerate(network):
    tensors[f"encoder.layer.{i}.dense.weight"] = np.asarray(layer["w"]).T
    tensors[f"encoder.layer.{i}.dense.bias"] = np.asarray(layer["b"])
mj.io.save(folder / "base" / "model.safetensors", tensors)

# 2. Into the training code: patterns of names, key paths, and the order of axes.
mapping = {
    r"encoder\.layer\.(\d+)\.dense\.weight": (r"\1.w", (1, 0)),
    r"encoder\.layer\.(\d+)\.dense\.bias": r"\1.b",
    r".*position_ids": None,
}
tensors = mj.io.load(folder / "base")
like = jax.eval_shape(init, jax.random.key(0))
base = mj.io.rename(tensors, mapping, like=like)
experts = {name: train(base, x, train_labels, 60) for name, x in train_images.items()}

# 3. Merge there, and write what came in: names, layouts, dtypes, files.
tv = mj.TaskVectors.from_params(base, experts)
merged = mj.merge(tv, [0.3, 0.3])
renamed = mj.io.rename_back(merged, mapping, tensors)
mj.io.save(folder / "merged", renamed, like=folder / "base")

# The claims: the same names and shapes, and the numbers of the merge.
again = mj.io.load(folder / "merged")
for name, x in again.items():
    print(f"{name:32} {x.dtype} {x.shape}")
assert {n: x.shape for n, x in again.items()} == {n: x.shape for n, x in tensors.items()}
back = mj.io.rename(again, mapping, like=like)
assert all(map(np.array_equal, jax.tree.leaves(back), jax.tree.leaves(merged)))


def score(params):
    found = [predict(params, x).argmax(1) == labels for x in images.values()]
    return np.mean(found)


scores = {name: score(p) for name, p in {"base": base, **experts, "merged": back}.items()}
print({name: round(float(value), 3) for name, value in scores.items()})
assert max(scores, key=lambda name: scores[name]) == "merged"
