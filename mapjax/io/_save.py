"""Save arrays as a checkpoint, in the format of another one if asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from mapjax._atomic import check_free, check_space, new_file, new_folder
from mapjax._npz import write_npz
from mapjax.io._dtypes import BY_NAME
from mapjax.io._msgpack import dump_msgpack
from mapjax.io._names import check_like, flatten, match, nest
from mapjax.io._npz import NpzCheckpoint
from mapjax.io._open import open_checkpoint
from mapjax.io._orbax import save_orbax
from mapjax.io._shards import Shards, new_safetensors, one_file, shards_like
from mapjax.io._tensor import AbstractCheckpoint, difference

_SUFFIXES = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".msgpack": "msgpack",
    "": "orbax",
}
_LEAST_TIED = 2  # axes: biases may begin as one array of zeros, and are not tied by that


def save(path: str | Path, params: PyTree, *, like: str | Path | None = None) -> None:
    """Save parameters, whole or not at all.

    What is written has another name until it is complete and on the disk; a file that had
    the name stays as it was until then. Tied tensors, the same array of two axes or more at
    several places, are stored once in safetensors.

    Args:
        path: Without `like` the suffix tells the format: .safetensors, .npz, .msgpack, or
            none for an orbax folder.
        params: Any pytree of arrays. Key paths joined by "." are the names in safetensors
            and .npz.
        like: The path of a checkpoint to repeat: format, names, shards and index, dtypes,
            order, tied tensors, metadata, and in a Hugging Face folder the small text files
            beside the weights (configuration, tokenizer).

    Raises:
        ValueError: If a leaf is no array, two have the same name, the format cannot hold
            a dtype, `params` does not fit `like`, or a folder at `path` is not empty.
        OSError: If the disk is full or cannot be written. Nothing is left behind.

    Example:
        >>> import numpy as np, pathlib, tempfile, mapjax.io
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> mapjax.io.save(folder / "base.npz", {"w": np.ones(2, np.float16)})
        >>> mapjax.io.save(folder / "merged", {"w": np.zeros(2)}, like=folder / "base.npz")
        >>> mapjax.io.load(folder / "merged")
        {'w': array([0., 0.], dtype=float16)}
    """
    path, named = Path(path), flatten(params)
    if not named:
        raise ValueError("`params` has no arrays to save.")
    if like is not None:
        with open_checkpoint(like) as checkpoint:
            _save_like(path, named, checkpoint)
        return
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"`path` is {path}, whose suffix {path.suffix!r} names no format: use "
            ".safetensors, .npz, .msgpack, or none for an orbax folder; or pass `like`."
        )
    form = _SUFFIXES[path.suffix]
    if form == "safetensors":
        kept, tied = _tied(named)
        _save_safetensors(path, kept, one_file(path, list(kept), tied))
    elif form == "npz":
        _save_npz(path, named, compressed=False)
    elif form == "msgpack":
        nested = nest(flatten(params, separator="\0"), "\0")
        _save_msgpack(path, jax.tree.map(_host, nested))
    else:
        _save_orbax(path, jax.tree.map(_for_orbax, params))


def _save_like(path: Path, named: dict[str, Any], like: AbstractCheckpoint) -> None:
    found, extra, missing = match(named, like.tensors)
    extra = [name for name in extra if not _is_tied(name, named, found, like)]
    if missing or extra:
        raise ValueError(
            f"`params` {difference(missing, extra)} ({like.path}). Save what was loaded from "
            "there, or leave out `like`."
        )
    arrays = {}
    for name, spelled in found.items():
        x, info = named[name], like.tensors[spelled]
        check_like(name, x.shape, x.dtype, info, "`params`")
        arrays[spelled] = x
    arrays = {name: arrays[name] for name in like.tensors}
    if like.format == "safetensors":
        _save_safetensors(path, arrays, shards_like(like, path), like.tensors)
        return
    cast = {name: _host(x, like.tensors[name].dtype) for name, x in arrays.items()}
    if isinstance(like, NpzCheckpoint):
        _save_npz(path, cast, compressed=like.compressed)
        return
    tree = jax.tree.unflatten(jax.tree.structure(like.tree), list(cast.values()))
    (_save_msgpack if like.format == "msgpack" else _save_orbax)(path, tree)


def _save_safetensors(
    path: Path,
    arrays: Mapping[str, Any],
    shards: Shards,
    like: Mapping[str, Any] | None = None,
) -> None:
    forms = {
        name: (tuple(x.shape), (like or arrays)[name].dtype.newbyteorder("="))
        for name, x in arrays.items()
    }
    with new_safetensors(path, shards, forms) as writer:
        for name, x in arrays.items():  # one at a time leaves a device
            writer.write(name, 0, _host(x, forms[name][1]))


def _save_npz(path: Path, arrays: Mapping[str, Any], *, compressed: bool) -> None:
    unknown = [n for n, x in arrays.items() if np.dtype(x.dtype).name not in BY_NAME]
    if unknown:
        raise ValueError(
            f"Tensor {unknown[0]!r} is {arrays[unknown[0]].dtype}, which .npz files cannot "
            "hold. Cast it."
        )
    if not compressed:
        check_space(path, sum(x.nbytes for x in arrays.values()))
    with new_file(path) as file:
        write_npz(
            file, {name: _host(x) for name, x in arrays.items()}, compressed=compressed
        )


def _save_msgpack(path: Path, tree: PyTree) -> None:
    data = dump_msgpack(tree)
    with new_file(path, len(data)) as file:
        file.write(data)


def _save_orbax(path: Path, tree: PyTree) -> None:
    check_space(check_free(path), sum(x.nbytes for x in jax.tree.leaves(tree)))
    with new_folder(path) as folder:
        save_orbax(folder, tree)


def _host(x: Any, dtype: Any = None) -> np.ndarray:
    """Bring an array to the host, as contiguous numbers of a dtype in native order."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        raise ValueError(
            "An array is spread over several processes. Save it as an orbax folder, or gather "
            "it with `jax.experimental.multihost_utils.process_allgather`."
        )
    array = np.asarray(x)
    dtype = array.dtype.newbyteorder("=") if dtype is None else dtype
    return np.asarray(array, dtype=dtype, order="C")


def _for_orbax(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _tied(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Split off names of arrays that another name has already."""
    first: dict[int, str] = {}
    tied = {}
    for name, x in named.items():
        other = first.setdefault(id(x), name) if x.ndim >= _LEAST_TIED else name
        if other != name:
            tied[name] = other
    return {name: x for name, x in named.items() if name not in tied}, tied


def _is_tied(
    name: str, named: Mapping[str, Any], found: Mapping[str, str], like: AbstractCheckpoint
) -> bool:
    """Say whether a further array is one that is saved, or one that `like` ties."""
    x = named[name]
    if name not in like.aliases:
        return x.ndim >= _LEAST_TIED and any(named[n] is x for n in found)
    for partner in (named[n] for n in found if found[n] == like.aliases[name]):
        if partner is x or np.array_equal(_host(partner), _host(x)):
            return True
    raise ValueError(
        f"{name!r} is tied to {like.aliases[name]!r} in {like.path}, but differs from it "
        "in `params`. Make both equal, or leave out `like`."
    )
