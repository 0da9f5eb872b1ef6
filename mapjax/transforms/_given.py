"""What callers give for every task, matched with the task vectors by name and key path."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from mapjax import _tree
from mapjax._tensors import kept_tensors
from mapjax.task_vectors import TaskVectors

PerTask = Mapping[str, Any] | Sequence[Any]
"""One thing for each task, by name or in order."""


def each_task(task_vectors: TaskVectors, given: PerTask, argument: str) -> list[Any]:
    """List what is given for each task in the order of the coefficients.

    Raises:
        ValueError: If the names or the number are not those of the experts.
    """
    names = task_vectors.names
    if isinstance(given, Mapping):
        if set(given) != set(names):
            raise ValueError(
                f"`{argument}` has entries for {tuple(given)}, but the experts are {names}: "
                "give one for each of them."
            )
        return [given[name] for name in names]
    if len(given) != len(names):
        raise ValueError(
            f"`{argument}` has {len(given)} entries, but there are {len(names)} experts "
            f"{names}: give one for each of them, in this order."
        )
    return list(given)


def weights_like(
    task_vectors: TaskVectors, given: Sequence[PyTree], argument: str
) -> list[list[Array]]:
    """Find the weights of every tensor in each of the trees, by key path.

    What the trees hold beyond the merged tensors is not looked at.

    Returns:
        The weights of every task, for every tensor in the order of `tensors`.

    Raises:
        ValueError: If a tensor is missing or has another shape. The key path is named.
    """
    kept = kept_tensors(task_vectors)
    trees = []
    for name, tree in zip(task_vectors.names, given, strict=True):
        held = {leaf.path: leaf.value for leaf in _tree.leaves(tree)}
        for path, v in kept.items():
            if path not in held:
                raise ValueError(
                    f"`{argument}` of expert {name!r} has no leaf {path}, which is merged; "
                    f"it has {_tree.some(list(held)) or 'none'}. Give a tree like the "
                    "parameters."
                )
            if np.shape(held[path]) != v.shape[1:]:
                raise ValueError(
                    f"`{argument}` of expert {name!r} has shape {np.shape(held[path])} for "
                    f"leaf {path}, but the parameter has {v.shape[1:]}. Give one weight for "
                    "each entry."
                )
        trees.append(held)
    return [[jnp.asarray(held[path]) for held in trees] for path in kept]
