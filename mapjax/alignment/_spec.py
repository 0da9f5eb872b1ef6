"""Which axes of which tensors are permuted together, and permuting them."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from mapjax import _tree
from mapjax._checks import check_choice


class Blocks(NamedTuple):
    """An axis on which blocks of neighbours move as one, such as attention heads.

    Attributes:
        name: The permutation of the blocks.
        size: How many entries a block has.
    """

    name: str
    size: int


Spec = Mapping[str, Mapping[int, str | Blocks]]
"""For each tensor, by key path, which of its axes follow which permutation.

Axes of one name are permuted alike: the outputs of a layer, its bias, the inputs of the next
layer. Axes that are not named stay.
"""

Permutations = Mapping[str, np.ndarray]
"""By name, for each new place the old one that moves there."""


def mlp_spec(
    params: PyTree, *, input_axes: str = "leading"
) -> dict[str, dict[int, str | Blocks]]:
    """Say what is permuted together in a plain multi-layer perceptron.

    Matrices are its kernels, in the order of the numbers in their key paths, and vectors
    its biases, one for each kernel or none at all. Without numbers, the fields of a dataclass
    stand in their order; the keys of a dictionary have none. The hidden units behind kernel
    `k` are called `hidden_k`.

    Args:
        params: The parameters.
        input_axes: "leading" for kernels `[in, out]` as in flax, "trailing" for
            `[out, in]` as in equinox.

    Returns:
        The axes of all tensors that touch hidden units.

    Raises:
        ValueError: If this is no such network: there are other tensors, layers do not
            fit together, or nothing says in which order they come.

    Example:
        >>> import jax.numpy as jnp
        >>> mlp_spec({"fc1": jnp.ones((3, 5)), "fc2": jnp.ones((5, 2))})
        {"['fc1']": {1: 'hidden_0'}, "['fc2']": {0: 'hidden_0'}}
    """
    check_choice("input_axes", input_axes, ("leading", "trailing"))
    shapes = {p.path: np.shape(p.value) for p in _tree.leaves(params) if not p.kept}
    kernels = [path for path in shapes if len(shapes[path]) == 2]
    biases = [path for path in shapes if len(shapes[path]) == 1]
    others = [path for path in shapes if len(shapes[path]) not in (1, 2)]
    if others or not kernels or len(biases) not in (0, len(kernels)):
        raise ValueError(
            f"This is no plain perceptron: it has {len(kernels)} matrices, {len(biases)} "
            f"vectors and other tensors {others}. Write the specification by hand; see "
            "`mapjax.alignment.Spec`."
        )
    kernels, biases = (_in_order(paths, params) for paths in (kernels, biases))
    source, target = (0, 1) if input_axes == "leading" else (1, 0)
    spec: dict[str, dict[int, str | Blocks]] = {}
    for k, (one, two) in enumerate(itertools.pairwise(kernels)):
        units = shapes[one][target]
        ends = [(one, target), (two, source), *((b, 0) for b in biases[k : k + 1])]
        for path, axis in ends:
            if shapes[path][axis] != units:
                raise ValueError(
                    f"Leaf {one} of shape {shapes[one]} has {units} outputs, but {path} has "
                    f"shape {shapes[path]}. Try the other `input_axes`, or write the "
                    "specification by hand; see `mapjax.alignment.Spec`."
                )
            spec.setdefault(path, {})[axis] = f"hidden_{k}"
    return spec


def permute(spec: Spec, params: PyTree, permutations: Permutations) -> PyTree:
    """Permute parameters: the same function, with its hidden units in another order.

    Args:
        spec: Which axes follow which permutation.
        params: The parameters.
        permutations: By name, for each new place the old one that moves there.

    Returns:
        Parameters of the same tree.

    Raises:
        ValueError: If the specification does not fit the parameters, or a permutation is
            missing or of another length.
    """
    sizes = count_units(spec, params)
    for name, size in sizes.items():
        given = permutations.get(name)
        if given is None or not np.array_equal(np.sort(given), np.arange(size)):
            raise ValueError(
                f"`permutations[{name!r}]` is {given}, but must hold each number from 0 to "
                f"{size - 1} once."
            )
    values = []
    for leaf in _tree.leaves(params):
        value = leaf.value
        for axis, index in indices(spec.get(leaf.path, {}), permutations).items():
            value = jnp.take(jnp.asarray(value), index, axis=axis)
        values.append(value)
    return _tree.rebuild(params, values)


def indices(axes: Mapping[int, Any], permutations: Permutations) -> dict[int, np.ndarray]:
    """Spell out for each axis of a tensor which entry moves where."""
    found = {}
    for axis, entry in axes.items():
        name, size = block(entry)
        starts = np.asarray(permutations[name])[:, None] * size
        found[axis] = (starts + np.arange(size)).ravel()
    return found


def block(entry: str | Blocks) -> Blocks:
    """See an axis of single units as blocks of one."""
    return entry if isinstance(entry, Blocks) else Blocks(entry, 1)


def count_units(spec: Spec, params: PyTree) -> dict[str, int]:
    """Say how many units each permutation has.

    Raises:
        ValueError: If the specification does not fit the parameters.
    """
    leaves = _tree.leaves(params, statistics=True)  # they follow their units
    shapes = {p.path: np.shape(p.value) for p in leaves if not p.kept}
    sizes: dict[str, int] = {}
    for path, axes in spec.items():
        if path not in shapes:
            raise ValueError(
                f"`spec` names leaf {path}, which is no parameter; these are "
                f"{list(shapes)}."
            )
        for axis, entry in axes.items():
            name, size = block(entry)
            length = shapes[path][axis] if axis in range(len(shapes[path])) else None
            if length is None or size < 1 or length % size:
                raise ValueError(
                    f"`spec` has {entry!r} for axis {axis} of leaf {path}, whose shape is "
                    f"{shapes[path]}: name one of its axes, of a whole number of blocks."
                )
            if sizes.setdefault(name, length // size) != length // size:
                raise ValueError(
                    f"`spec` permutes {length // size} units by {name!r} on axis {axis} of "
                    f"leaf {path}, but {sizes[name]} elsewhere."
                )
    if not sizes:
        raise ValueError("`spec` is empty: name at least one axis to permute.")
    return sizes


def _in_order(paths: list[str], params: PyTree) -> list[str]:
    """Sort layers by their numbers, or leave the fields of a dataclass as they stand."""
    # Of some frameworks, the first layer of a name has no number.
    names = {re.sub(r"\d+", "#", re.sub(r"_\d+", "", path)): path for path in paths}
    if len(names) < 2:
        return sorted(paths, key=_natural)
    if dataclasses.is_dataclass(params) and not any("['" in path for path in paths):
        return paths
    # Keys come sorted: a decoder would stand before its encoder.
    raise ValueError(
        f"Nothing says in which order the layers of {' and '.join(names.values())} come. "
        "Name layers with numbers, or write the specification by hand; see "
        "`mapjax.alignment.Spec`."
    )


def _natural(path: str) -> list[Any]:
    """Sort numbers in key paths by value: layer 2 comes before layer 10."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]
