"""Between the names of a checkpoint and the tree of a model, by a map of the user's own."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from mapjax.io._names import check_like, flatten, match, nest
from mapjax.io._tensor import some

NameMap = Mapping[str, str | tuple[str, Sequence[int]] | None]
"""From patterns of names to key paths; with the order of axes, where that differs."""


def rename(tensors: Mapping[str, Any], mapping: NameMap, *, like: PyTree = None) -> PyTree:
    r"""Make the tree of a model of tensors that have other names and layouts.

    Args:
        tensors: Arrays by name, as `load` gives them for safetensors.
        mapping: From a regular expression, which must match a whole name (the first that
            does counts), to the key path, joined by ".", in which `\1` is the first group. A
            pair gives the order of the axes too, as for `numpy.transpose`: `(1, 0)` turns a
            kernel `[out, in]` into `[in, out]`, and `(2, 3, 1, 0)` a convolution of PyTorch
            into one of flax. None leaves tensors out.
        like: A tree of arrays or `jax.ShapeDtypeStruct`s: the result has its structure and
            its dtypes. Axes are split or joined to fit its leaves, such as `[in, heads *
            width]` to `[in, heads, width]`.

    Returns:
        Nested dicts, or a tree like `like`. Nothing is copied where NumPy can look at it.

    Raises:
        ValueError: If a pattern is none, a name matches none, two tensors come to one key
            path, axes do not fit, or leaves are missing, left over or of another shape.

    Example:
        >>> import numpy as np, mapjax.io
        >>> tensors = {"h.0.fc.weight": np.ones((3, 2)), "h.0.fc.bias": np.zeros(3)}
        >>> mapping = {
        ...     r"h\.(\d+)\.fc\.weight": (r"layer_\1.kernel", (1, 0)),
        ...     r"h\.(\d+)\.fc\.bias": r"layer_\1.bias",
        ... }
        >>> params = mapjax.io.rename(tensors, mapping)
        >>> params["layer_0"]["kernel"].shape
        (2, 3)
        >>> list(mapjax.io.rename_back(params, mapping, tensors))
        ['h.0.fc.weight', 'h.0.fc.bias']
    """
    renamed = {
        path: x.transpose(axes) for path, (_, x, axes) in _renamed(tensors, mapping).items()
    }
    if like is None:
        return nest(renamed, ".", "Correct the key paths in `mapping`.")
    leaves = flatten(like)
    spelled = _matched(leaves, renamed, "`like`")
    values = [
        _fitted(name, renamed[spelled[name]], leaf, tuple(leaf.shape))
        for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def rename_back(
    params: PyTree, mapping: NameMap, tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the arrays of a tree the names and layouts that they had before `rename`.

    Args:
        params: A tree as `rename` made it, with any numbers.
        mapping: The same as then.
        tensors: The same as then. Those that were left out are returned as they are.

    Returns:
        Arrays by name, in the order, layouts and dtypes of `tensors`, for `save(path, ...,
        like=)`.

    Raises:
        ValueError: As `rename`.
    """
    leaves = flatten(params)
    renamed = _renamed(tensors, mapping)
    spelled = _matched(renamed, leaves, "`tensors`")
    found = dict(tensors)
    for path, (name, old, axes) in renamed.items():
        shape = tuple(old.shape[i] for i in axes)
        x = _fitted(path, leaves[spelled[path]], old, shape)
        found[name] = x.transpose(np.argsort(axes))
    return found


def _renamed(
    tensors: Mapping[str, Any], mapping: NameMap
) -> dict[str, tuple[str, Any, tuple[int, ...]]]:
    """By key path the name, the tensor, and the order of its axes."""
    patterns = [(_compiled(pattern), target) for pattern, target in mapping.items()]
    renamed: dict[str, tuple[str, Any, tuple[int, ...]]] = {}
    unknown = []
    for name, x in tensors.items():
        hits = ((p.fullmatch(name), target) for p, target in patterns)
        hit, target = next(((h, t) for h, t in hits if h), (None, None))
        if hit is None:
            unknown.append(name)
        if hit is None or target is None:
            continue
        template, axes = (target, None) if isinstance(target, str) else target
        path = _expanded(hit, template)
        axes = tuple(range(x.ndim)) if axes is None else tuple(axes)
        if sorted(axes) != list(range(x.ndim)):
            raise ValueError(
                f"`mapping` orders the axes of {name!r} as {axes}, but its shape is "
                f"{tuple(x.shape)}: name each axis once."
            )
        if path in renamed:
            raise ValueError(
                f"`mapping` brings both {renamed[path][0]!r} and {name!r} to {path!r}. Use "
                r"the groups of the pattern, such as `\1`."
            )
        renamed[path] = name, x, axes
    if unknown:
        raise ValueError(
            f"`mapping` has no pattern for {some(unknown)}. Add one, or `{{pattern: None}}` "
            "to leave them out."
        )
    return renamed


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`mapping` has {pattern!r}, which is no regular expression: {error}."
        ) from error


def _expanded(hit: re.Match[str], template: str) -> str:
    try:
        return hit.expand(template)
    except (re.error, IndexError) as error:
        raise ValueError(
            f"`mapping` has the key path {template!r}, which does not fit the pattern "
            f"{hit.re.pattern!r}: {error}."
        ) from error


def _matched(
    wanted: Mapping[str, Any], given: Mapping[str, Any], owner: str
) -> dict[str, str]:
    # A leaf of `nnx.State` has a key of its own, which no user writes down.
    short = {name.removesuffix(".value"): name for name in given}
    spelled = {name: name.removesuffix(".value") for name in wanted}
    found, missing, extra = match(spelled.values(), short)
    if missing or extra:
        parts = [f"lack {some(missing)}, which {owner} has"] if missing else []
        parts += [f"have {some(extra)}, which {owner} lacks"] if extra else []
        raise ValueError(f"The leaves {' and '.join(parts)}. Correct the `mapping`.")
    return {name: short[found[key]] for name, key in spelled.items()}


def _fitted(path: str, x: Any, like: Any, shape: tuple[int, ...]) -> Any:
    """Reshape and cast an array to what stands in its place."""
    if math.prod(x.shape) != math.prod(shape):
        raise ValueError(
            f"{path!r} has shape {tuple(x.shape)}, but {shape} is needed, which holds another "
            "count of numbers. Both must come from the same configuration of the model."
        )
    # A split or a join keeps strides. What does not has its axes in another order, and a
    # reshape would mix its numbers up.
    fewer, more = sorted(map(_strides, (x.shape, shape)), key=len)
    if not fewer <= more:
        raise ValueError(
            f"{path!r} has shape {tuple(x.shape)}, but {shape} is needed, and splitting or "
            "joining axes does not lead there. Give the order of the axes in `mapping`, such "
            "as `(key path, (1, 0))`."
        )
    wanted = jax.ShapeDtypeStruct(shape, like.dtype)
    dtype = check_like(path, shape, x.dtype, wanted, "`rename`")
    x = x.reshape(shape)
    return x if x.dtype == dtype else x.astype(dtype)


def _strides(shape: Sequence[int]) -> set[int]:
    """How many numbers lie between neighbours, for each axis with more than one."""
    return {math.prod(shape[i + 1 :]) for i, size in enumerate(shape) if size != 1}
