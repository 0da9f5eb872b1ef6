"""Rules that average tensors: everywhere alike, or layer by layer."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._layers import layer_numbers
from mapjax._tensors import tensors
from mapjax.rules._rule import MergeRule, dense, weighted_sum
from mapjax.task_vectors import TaskVectors


def weighted_average(task_vectors: TaskVectors) -> MergeRule:
    r"""Average the experts: $\theta_0 + \sum_i c_i v_i / \sum_i c_i$.

    With the experts' own metrics as coefficients this is metric-weighted averaging, with
    ones it is the plain average of the weights. Costs what `merge` costs.

    Args:
        task_vectors: The base and the vectors.

    Returns:
        The rule; see `MergeRule` for what coefficients mean.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), [jnp.ones(2), 4 * jnp.ones(2)])
        >>> weighted_average(tv)([2.0, 1.0])
        Array([2., 2.], dtype=float32)

    References:
        Wortsman et al., *Model Soups*, ICML 2022, arXiv 2203.05482.
    """
    task_vectors = dense(task_vectors)
    shapes = (None,) * len(tensors(task_vectors))
    return MergeRule(task_vectors, None, _average, shapes)


def layer_swap(
    task_vectors: TaskVectors,
    layers: Sequence[str] | Callable[[str], float | None] | None = None,
) -> MergeRule:
    r"""Take some layers from one expert and some from another (layer swapping).

    The layers stand in a row. Coefficients say which share of the row each expert gives:
    the first expert the layers at the front, the last those at the end. A layer on a
    boundary is averaged in proportion, the paper's transition layer, so that the merge is
    continuous in the coefficients. The paper puts the outermost layers, at the bottom and
    at the top, first in the row: the expert of a language gives those, the expert of a
    skill the others.

    Args:
        task_vectors: The base and the vectors.
        layers: The row: regular expressions that are searched for in key paths such as
            `['block_0']['w']`, say `["'block_0'", "'block_3'", "'block_1'", "'block_2'"]`,
            each a layer and the first that is found counts; or a function from a key path
            to a number, where tensors of one number are a layer and the lowest stands
            first. None orders layers by the number in their key paths. Tensors that belong
            to no layer (None from a function) are averaged.

    Returns:
        The rule; see `MergeRule` for what coefficients mean.

    Raises:
        ValueError: If no tensor belongs to a layer, or a pattern is found in no key path.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> base = {"layer_0": jnp.zeros(1), "layer_1": jnp.zeros(1)}
        >>> expert = {"layer_0": jnp.ones(1), "layer_1": jnp.ones(1)}
        >>> tv = mj.TaskVectors.from_params(base, [expert, base])
        >>> layer_swap(tv)([1.0, 1.0])
        {'layer_0': Array([1.], dtype=float32), 'layer_1': Array([0.], dtype=float32)}
        >>> layer_swap(tv, ["'layer_1'", "'layer_0'"])([1.0, 1.0])["layer_1"]
        Array([1.], dtype=float32)

    References:
        Bandarkar et al., *Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large
        Language Models*, ICLR 2025, arXiv 2410.01335.
    """
    task_vectors = dense(task_vectors)
    paths = list(tensors(task_vectors))
    found = _positions(paths, layers)
    row = sorted({place for place in found.values() if place is not None})
    if not row:
        raise ValueError(
            f"`layers` finds no layer among the tensors {paths}: pass patterns that are in "
            "their key paths, or a function from a key path to a number."
        )
    places = [None if found[path] is None else row.index(found[path]) for path in paths]
    stretches = [None if i is None else jnp.array([i, i + 1]) / len(row) for i in places]
    return MergeRule(task_vectors, stretches, _swap, (None,) * len(paths))


def _positions(paths: list[str], layers: Any) -> dict[str, Any]:
    if layers is None:
        return dict(layer_numbers(paths))
    if callable(layers):
        return {path: layers(path) for path in paths}
    unused = [p for p in layers if not any(re.search(p, path) for path in paths)]
    if unused:
        raise ValueError(
            f"`layers` has patterns {unused} that are in no key path; these are {paths}."
        )
    return {
        path: next((i for i, p in enumerate(layers) if re.search(p, path)), None)
        for path in paths
    }


def _average(
    weights: list[Array], bases: Any, vectors: list[Array], data: None, shapes: tuple
) -> list[Array]:
    return [weighted_sum(w, v) for w, v in zip(weights, vectors, strict=True)]


def _swap(
    weights: list[Array],
    bases: list[Array],
    vectors: list[Array],
    stretches: list[Float[Array, "2"] | None],
    shapes: tuple,
) -> list[Array]:
    columns = zip(weights, vectors, stretches, strict=True)
    return [weighted_sum(_shares(w, stretch), v) for w, v, stretch in columns]


def _shares(
    w: Float[Array, " tasks"], stretch: Float[Array, "2"] | None
) -> Float[Array, " tasks"]:
    """Say how much of a layer's own stretch of [0, 1] lies in each expert's."""
    if stretch is None:
        return w
    upper, (first, last) = jnp.cumsum(w), stretch
    share = jnp.minimum(upper, last) - jnp.maximum(upper - w, first)
    share = jnp.maximum(share, 0)
    total = jnp.sum(share)
    return share / jnp.where(total > 0, total, 1)  # zero where all weights are
