"""Orbax checkpoints: folders that JAX training loops write."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from mapjax.io._names import flatten
from mapjax.io._tensor import AbstractCheckpoint, TensorInfo, Wish, some

_MARKS = ("_METADATA", "manifest.ocdbt", "_sharding")
_UNFINISHED = ".orbax-checkpoint-tmp"


class OrbaxCheckpoint(AbstractCheckpoint):
    """One tree in an orbax folder. A leaf is read as a whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.format = path, "orbax"
        self.metadata, self.aliases = {}, {}
        self._described = _describe(path)
        self.tree = jax.tree.map(
            lambda leaf: TensorInfo(tuple(leaf.shape), np.dtype(leaf.dtype), path),
            self._described,
        )
        self.tensors = flatten(self.tree)

    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Read numbers of the flattened tensor from `start` on until `out` is full."""
        wish = Wish(self.tensors[name].dtype, None)
        out[...] = self.place({name: wish})[name].reshape(-1)[start : start + out.size]

    def place(self, wishes: Mapping[str, Wish]) -> dict[str, Any]:
        """Read some of the leaves, and nothing of the others."""
        import orbax.checkpoint as ocp

        def how(path: tuple[Any, ...], info: TensorInfo) -> Any:
            wish = wishes.get(jtu.keystr(path, simple=True, separator="."))
            if wish is None:
                return None  # orbax leaves out what is None
            if wish.sharding is None:
                return ocp.RestoreArgs(restore_type=np.ndarray, dtype=wish.dtype)
            return ocp.ArrayRestoreArgs(
                sharding=wish.sharding, global_shape=info.shape, dtype=wish.dtype
            )

        args = jtu.tree_map_with_path(how, self.tree)
        item = jax.tree.map(
            lambda leaf, arg: None if arg is None else leaf,
            self._described,
            args,
            is_leaf=lambda x: x is None,
        )
        with explained(self.path), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(
                self.path.absolute(),
                args=ocp.args.PyTreeRestore(
                    item=item, restore_args=args, partial_restore=True
                ),
            )
        read = flatten(tree)
        for name, wish in wishes.items():
            if wish.sharding is None:  # orbax leaves the dtype of a scalar as it was
                read[name] = np.asarray(read[name]).astype(wish.dtype, copy=False)
        return {name: read[name] for name in wishes}

    def close(self) -> None:
        """Do nothing: no file stays open."""


def is_orbax(folder: Path) -> bool:
    """Say whether a folder is an orbax checkpoint, or holds one or steps of them."""
    return _is_tree(folder) or bool(_items(folder)) or bool(_steps(folder))


def find_tree(path: Path, item: str | None) -> tuple[Path, str | None]:
    """Find the folder of a tree, and what part of the tree is still to be picked.

    A checkpoint of several items keeps each in a folder of its own, which `item` names.

    Raises:
        ValueError: If there are several to choose from, or it was never finished.
    """
    if _UNFINISHED in path.name:
        raise ValueError(
            f"{path} was never finished: orbax renames a checkpoint once it is complete. Use "
            "an earlier step."
        )
    if _is_tree(path):
        return path, item
    items = _items(path)
    if item is not None:
        first, _, rest = item.partition(".")
        if first in items:
            return path / first, rest or None
    if len(items) == 1:
        return path / items[0], item
    if items:
        raise ValueError(
            f"{path} has the items {items}"
            + (f" and no {item!r}" if item else "")
            + f": pass one, such as `item={items[0]!r}`."
        )
    steps = _steps(path)
    raise ValueError(
        f"{path} holds the checkpoints {some(steps)}: pass the path of one, such as "
        f"{path / steps[-1]}."
    )


def save_orbax(folder: Path, tree: PyTree) -> None:
    """Write a tree into an empty folder."""
    import orbax.checkpoint as ocp

    with explained(folder), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree, force=True)
        checkpointer.wait_until_finished()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what orbax and tensorstore raise into an error that names the checkpoint."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: orbax says {type(error).__name__}, {str(error)[:300]}. If it is "
            "damaged, use another step; otherwise compare its tree with "
            "`mapjax.io.open_checkpoint(path).tensors`."
        ) from error


def _describe(path: Path) -> PyTree:
    import orbax.checkpoint as ocp
    from etils import epath

    with explained(path):
        tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path.absolute())).tree
        if not jax.tree.leaves(tree):
            raise ValueError("the tree has no leaves")
        return tree


def _is_tree(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in _MARKS)


def _items(folder: Path) -> list[str]:
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and _is_tree(p))
    # A folder of finished trees is one checkpoint only if orbax says so.
    if not (folder / "_CHECKPOINT_METADATA").is_file():
        return [] if all(name.isdigit() for name in found) else found
    try:
        handlers = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())[
            "item_handlers"
        ]
        return [name for name in found if name in handlers]
    except (ValueError, KeyError, TypeError, RecursionError):
        return found


def _steps(folder: Path) -> list[str]:
    steps = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
    found = [p.name for p in steps if _is_tree(p) or (p / "_CHECKPOINT_METADATA").is_file()]
    return sorted(found, key=int)
