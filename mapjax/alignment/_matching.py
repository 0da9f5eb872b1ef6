"""Weight matching: hidden units in the order in which two networks are most alike."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from mapjax import _tree
from mapjax._keys import generator
from mapjax.alignment._spec import Spec, block, count_units, indices

_LEAST_GAIN = 1e-9


def weight_matching(spec: Spec, a: PyTree, b: PyTree, *, key: Any) -> dict[str, np.ndarray]:
    r"""Find the permutations of hidden units of `b` that bring it nearest to `a`.

    Maximises the inner product of both networks' parameters: one permutation after the
    other, in a random order, by the optimal assignment of units given all others, until
    none gains. The first round goes from the inputs and outputs inwards, by those tensors
    whose other axes are in order already. What comes out is a local optimum.

    Heads of attention are permuted as blocks: name an axis of heads, as in flax's kernels
    `[in, heads, features]`, or give `Blocks` for an axis `[heads * features]`.

    Costs, on the CPU and in float64, some sweeps of one product of both networks' weights
    and one assignment for each permutation.

    Args:
        spec: Which axes follow which permutation; `mlp_spec` writes one for a perceptron.
        a: The parameters that stay.
        b: Those whose units are permuted, of the same tree.
        key: A typed key, for the order.

    Returns:
        For each name, for each place in `a` the unit of `b` that belongs there. Pass it to
        `permute`.

    Raises:
        ValueError: If the specification does not fit the parameters, the trees differ, a
            number is NaN or infinite, or the key is not a typed one.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> from mapjax.alignment import mlp_spec, permute
        >>> a = {"fc1": jnp.array([[1.0, 5.0, 9.0]]), "fc2": jnp.array([[2.0], [4.0], [8.0]])}
        >>> spec = mlp_spec(a)
        >>> b = permute(spec, a, {"hidden_0": np.array([2, 0, 1])})
        >>> weight_matching(spec, a, b, key=jax.random.key(0))
        {'hidden_0': array([1, 2, 0])}

    References:
        Ainsworth et al., *Git Re-Basin: Merging Models modulo Permutation Symmetries*, ICLR
        2023, arXiv 2209.04836, Algorithm 1.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    random = generator(key)
    sizes = count_units(spec, a)
    ones, others = _tree.leaves(a), _tree.leaves(b)
    _tree.check_same_leaves(ones, others, "b")
    # Statistics of BatchNorm follow their units, but say nothing of which these are.
    compared = [
        (one, two)
        for one, two in zip(ones, others, strict=True)
        if one.path in spec and not one.kept
    ]
    for pair in compared:
        for leaf, owner in zip(pair, ("`a`", "`b`"), strict=True):
            _tree.check_finite(leaf, owner)
    pairs = {one.path: (_real(one.value), _real(two.value)) for one, two in compared}
    touched = {name: [p for p in _places(spec, name) if p[0] in pairs] for name in sizes}

    def known(path: str, axis: int, found: dict[str, np.ndarray]) -> bool:
        others = (block(entry).name for k, entry in spec[path].items() if k != axis)
        return all(name in found for name in others)

    def assigned(name: str, found: dict[str, np.ndarray]) -> np.ndarray:
        gains = np.zeros((sizes[name],) * 2)
        for path, axis in touched[name]:
            if known(path, axis, found):
                gains += _products(pairs[path], spec[path], axis, found)
        return linear_sum_assignment(gains, maximize=True)[1]

    def alike(found: dict[str, np.ndarray], paths: Iterable[str]) -> float:
        return sum(
            float(np.vdot(pairs[path][0], _permuted(pairs[path][1], spec[path], found)))
            for path in paths
        )

    # Start where most numbers can be compared, such as at the inputs, and go on from there:
    # tensors whose other axes are still in disorder would only mislead.
    names = [list(sizes)[i] for i in random.permutation(len(sizes))]
    found: dict[str, np.ndarray] = {}
    while len(found) < len(names):
        evidence = {
            name: sum(
                pairs[path][0].size for path, k in touched[name] if known(path, k, found)
            )
            / sizes[name]
            for name in names
            if name not in found
        }
        name = max(evidence, key=evidence.__getitem__)
        found[name] = assigned(name, found)
    unmoved = {name: np.arange(size) for name, size in sizes.items()}
    found = max(unmoved, found, key=lambda order: alike(order, pairs))
    gained = True
    while gained:
        gained = False
        for name in (names[i] for i in random.permutation(len(names))):
            trial = {**found, name: assigned(name, found)}
            # Where a tensor has one permutation on two axes, the assignment only guesses.
            paths = sorted({path for path, _ in touched[name]})
            before, after = alike(found, paths), alike(trial, paths)
            if after > before + _LEAST_GAIN * abs(before):
                found, gained = trial, True
    return {name: found[name] for name in sizes}


def _places(spec: Spec, name: str) -> list[tuple[str, int]]:
    return [
        (path, axis)
        for path, axes in spec.items()
        for axis, entry in axes.items()
        if block(entry).name == name
    ]


def _products(
    pair: tuple[np.ndarray, np.ndarray], axes: Any, axis: int, found: dict[str, np.ndarray]
) -> np.ndarray:
    """Multiply every unit of `a` on an axis with every unit of `b`, other axes permuted."""
    a, b = pair
    b = _permuted(b, {k: v for k, v in axes.items() if k != axis}, found)
    size = block(axes[axis]).size

    def units(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x, axis, 0).reshape(x.shape[axis] // size, -1)

    return units(a) @ units(b).T


def _permuted(x: np.ndarray, axes: Any, found: dict[str, np.ndarray]) -> np.ndarray:
    for axis, index in indices(axes, found).items():
        x = x.take(index, axis=axis)
    return x


def _real(x: Any) -> np.ndarray:
    """See complex numbers as two real ones along a new last axis."""
    x = np.asarray(x)
    if np.iscomplexobj(x):
        return np.stack([x.real, x.imag], axis=-1).astype(float)
    return x.astype(float)
