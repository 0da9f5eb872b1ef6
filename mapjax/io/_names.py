"""Between pytrees and flat dicts of named arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from mapjax.io._tensor import some


def flatten(tree: PyTree, *, separator: str = ".") -> dict[str, Any]:
    """Name every array by its key path.

    Numbers become arrays of shape (); arrays stay where they are, on a device or not.

    Raises:
        ValueError: If a leaf is no array, or two have the same name or one with a NUL.
    """
    named: dict[str, Any] = {}
    for path, leaf in jtu.tree_leaves_with_path(tree):
        name = jtu.keystr(path, simple=True, separator=separator)
        if isinstance(leaf, bool | int | float | complex):
            leaf = np.asarray(leaf)
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not _is_plain(dtype):
            raise ValueError(
                f"Leaf {jtu.keystr(path) or '(root)'} is {type(leaf).__name__}"
                f"{'' if dtype is None else f' of {dtype}'}, not an array of numbers. Keep it "
                "out of the tree, for example with `equinox.partition`, and give random keys "
                "as `jax.random.key_data`."
            )
        if "\0" in name and separator != "\0":
            raise ValueError(
                f"The name {name!r} holds a NUL, which no file keeps. Rename it."
            )
        if not name:
            raise ValueError("The tree is a single array: pass a dict that names it.")
        if name in named:
            raise ValueError(
                f"Two leaves have the name {name!r} once their keys are joined by "
                f"{separator!r}. Rename one of them."
            )
        named[name] = leaf
    return named


def _is_plain(dtype: Any) -> bool:
    return not jnp.issubdtype(dtype, jax.dtypes.extended) and np.dtype(dtype).kind != "O"


def nest(
    named: Mapping[str, Any],
    separator: str,
    instead: str = "Load the names flat, with `separator=None`.",
) -> dict[str, Any]:
    """Make nested dicts of names that hold separators.

    Args:
        named: Arrays by name.
        separator: Where names are cut.
        instead: What to do if that cannot be.

    Raises:
        ValueError: If a name is both an array and a group.
    """
    tree: dict[str, Any] = {}
    for name, array in named.items():
        *groups, last = name.split(separator)
        here = tree
        for group in groups:
            here = here.setdefault(group, {})
            if not isinstance(here, dict):
                raise ValueError(_both(name, separator) + instead)
        if last in here:
            raise ValueError(_both(name, separator) + instead)
        here[last] = array
    return tree


def select(names: Mapping[str, Any], item: str, where: str) -> dict[str, str]:
    """Find what stands under `item`: from names without it to full names.

    Raises:
        ValueError: If nothing does.
    """
    found = {
        name[len(item) + 1 :]: name
        for name in names
        if name.startswith(item) and name[len(item) : len(item) + 1] in (".", "/")
    }
    if not found:
        tops = sorted({name.replace("/", ".").split(".")[0] for name in names})
        raise ValueError(f"{where} has no item {item!r}, but {some(tops, most=8)}.")
    return found


def match(
    wanted: Iterable[str], names: Iterable[str]
) -> tuple[dict[str, str], list[str], list[str]]:
    """Find the partner of each name: itself, or else one where "." and "/" are the same.

    Returns:
        From the wanted names, in their order, to the others; wanted names without a
        partner; and other names that nobody wanted.
    """
    wanted, names = list(wanted), list(names)
    same = set(wanted) & set(names)
    spelled = {n.replace("/", "."): n for n in names if n not in same}
    found = {n: n if n in same else spelled.pop(n.replace("/", "."), "") for n in wanted}
    missing = [name for name, other in found.items() if not other]
    return (
        {n: other for n, other in found.items() if other},
        missing,
        list(spelled.values()),
    )


def check_like(
    name: str, shape: tuple[int, ...], dtype: np.dtype, leaf: Any, where: str
) -> np.dtype:
    """Return the dtype that a leaf of `like` asks for, or refuse what does not fit it."""
    want = np.dtype(leaf.dtype)
    if tuple(leaf.shape) != tuple(shape):
        raise ValueError(
            f"{where}: {name!r} has shape {tuple(shape)}, but {tuple(leaf.shape)} in `like`. "
            "Both must come from the same configuration of the model."
        )
    if not any(
        jnp.issubdtype(dtype, kind) and jnp.issubdtype(want, kind)
        for kind in (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    ):
        raise ValueError(
            f"{where}: {name!r} is {dtype}, but {want} in `like`, and neither can stand for "
            "the other. Cast one of them."
        )
    return want


def _both(name: str, separator: str) -> str:
    return f"{name!r} cannot be nested at {separator!r}: a part of it is the name of an array. "
