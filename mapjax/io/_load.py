"""Load any checkpoint as arrays."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.tree_util as jtu
from jax.sharding import Sharding
from jaxtyping import PyTree

from mapjax.io._names import check_like, flatten, match, nest, select
from mapjax.io._open import open_item
from mapjax.io._tensor import AbstractCheckpoint, Wish, difference, some


def load(
    path: str | Path,
    *,
    like: PyTree = None,
    sharding: Sharding | PyTree = None,
    item: str | None = None,
    separator: str | None = None,
    verify: bool = True,
) -> PyTree:
    """Load parameters from safetensors, .npz, flax msgpack or orbax.

    The content tells the format. Nothing is ever unpickled.

    Args:
        path: A file, a folder, or the index of a sharded checkpoint.
        like: A tree of arrays or `jax.ShapeDtypeStruct`s (`jax.eval_shape` makes one): the
            result has its structure and its dtypes. Leaves find their tensors by key path.
        sharding: Where arrays shall lie: one sharding, or a tree or flat dict of them; each
            device reads only its part. Taken from `like` if its leaves have one. Without,
            arrays stay on the host.
        item: The part to load, such as "params" of a whole train state. Nothing else is
            read, except from msgpack.
        separator: Nest flat names, such as "layers.0.weight" at ".", into dicts. For
            safetensors and .npz; other formats know their trees.
        verify: Compare the files with the hashes beside them (`NAME.sha256`, as `sha256sum`
            writes it), and the arrays of an .npz with their checksums.

    Returns:
        A tree like `like`; else a flat dict of names (safetensors, .npz) or the tree that
        was saved (orbax, msgpack). NumPy arrays, or JAX arrays where a sharding is given.
        bfloat16 and float8 come as such.

    Raises:
        ValueError: If the file is damaged, incomplete, of no known format or a pickle, or
            does not fit `like`. File, tensor and remedy are named.
        OSError: If it cannot be read.

    Example:
        >>> import numpy as np, pathlib, tempfile, mapjax.io
        >>> path = pathlib.Path(tempfile.mkdtemp(), "base.safetensors")
        >>> mapjax.io.save(path, {"layer": {"w": np.ones(2, np.float32)}})
        >>> mapjax.io.load(path)
        {'layer.w': array([1., 1.], dtype=float32)}
        >>> mapjax.io.load(path, separator=".")
        {'layer': {'w': array([1., 1.], dtype=float32)}}
    """
    checkpoint, item = open_item(Path(path), item)
    with checkpoint:
        if verify:
            checkpoint.verify()
        where = str(path)
        every = [*checkpoint.tensors, *checkpoint.aliases]
        names = dict(zip(every, every, strict=True))
        if item in names and like is None:
            wish = _wishes(checkpoint, {item: item}, None, sharding, where)
            return checkpoint.place(wish)[item]
        if item is not None:
            names = select(names, item, where)
        if like is not None:
            names = _matched(like, names, where)
        wishes = _wishes(checkpoint, names, like, sharding, where)
        arrays = _place(checkpoint, names, wishes)
        if like is not None:
            return jax.tree.unflatten(jax.tree.structure(like), list(arrays.values()))
        if checkpoint.tree is not None:
            tree = checkpoint.tree if item is None else _part(checkpoint.tree, item)
            in_order = [arrays[name] for name in flatten(tree)]
            return jax.tree.unflatten(jax.tree.structure(tree), in_order)
    return arrays if separator is None else nest(arrays, separator)


def _matched(like: PyTree, names: dict[str, str], where: str) -> dict[str, str]:
    found, missing, extra = match(flatten(like), names)
    if missing or extra:
        raise ValueError(
            f"{where} {difference(missing, extra)}. Give `like` the tree of the checkpoint, or "
            'pick a part of the checkpoint, such as `item="params"`.'
        )
    return {name: names[spelled] for name, spelled in found.items()}


def _wishes(
    checkpoint: AbstractCheckpoint,
    names: dict[str, str],
    like: PyTree,
    sharding: Any,
    where: str,
) -> dict[str, Wish]:
    leaves = None if like is None else flatten(like)
    places: dict[str, Any] = {}
    if sharding is not None and not isinstance(sharding, Sharding):
        places = _sharding_names(sharding)
        unknown = sorted(set(places) - set(names))
        if unknown:
            raise ValueError(
                f"`sharding` has {some(unknown)}, which {where} lacks. Give it the tree of the "
                "result, or one sharding for all."
            )
    wishes = {}
    for name, full in names.items():
        info = checkpoint.tensors[checkpoint.aliases.get(full, full)]
        place = sharding if isinstance(sharding, Sharding) else places.get(name)
        dtype = info.dtype
        if leaves is not None:
            leaf = leaves[name]
            dtype = check_like(name, info.shape, dtype, leaf, where)
            place = place if sharding is not None else getattr(leaf, "sharding", None)
        wishes[name] = Wish(dtype, place)
    return wishes


def _place(
    checkpoint: AbstractCheckpoint, names: dict[str, str], wishes: dict[str, Wish]
) -> dict[str, Any]:
    """Read every tensor once, tied ones too."""
    kept = {name: checkpoint.aliases.get(full, full) for name, full in names.items()}
    first: dict[tuple[str, Wish], str] = {}
    for name, wish in wishes.items():
        first.setdefault((kept[name], wish), name)
    # One call for all that differ; a tensor asked for in two ways takes a second call.
    read: dict[tuple[str, Wish], Any] = {}
    left = list(first)
    while left:
        now = {full: wish for full, wish in reversed(left)}
        arrays = checkpoint.place(now)
        read |= {(full, wish): arrays[full] for full, wish in now.items()}
        left = [key for key in left if key not in read]
    return {name: read[kept[name], wish] for name, wish in wishes.items()}


def _sharding_names(tree: PyTree) -> dict[str, Any]:

    return {
        jtu.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jtu.tree_leaves_with_path(tree)
    }


def _part(tree: PyTree, item: str) -> PyTree:
    def step(node: Any, key: str) -> Any:
        return node[int(key)] if isinstance(node, list | tuple) else node[key]

    return functools.reduce(step, item.split("."), tree)
