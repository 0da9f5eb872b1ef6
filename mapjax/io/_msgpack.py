"""What `flax.serialization` writes: a nested dict in one msgpack file."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mapjax.io._names import flatten
from mapjax.io._tensor import AbstractCheckpoint, TensorInfo


class MsgpackCheckpoint(AbstractCheckpoint):
    """A msgpack file. Such a file cannot be read in parts: opening it reads all of it.

    Numbers in it come as arrays of shape ().
    """

    def __init__(self, path: Path) -> None:
        self.path, self.format = path, "msgpack"
        self.metadata, self.aliases = {}, {}
        restored = _restore(path)
        self._arrays = flatten(restored)
        self.tensors = {
            name: TensorInfo(x.shape, x.dtype, path) for name, x in self._arrays.items()
        }
        self.tree = jax.tree.unflatten(jax.tree.structure(restored), self.tensors.values())

    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Copy numbers of the flattened tensor from `start` on until `out` is full."""
        out[...] = self._arrays[name].reshape(-1)[start : start + out.size]

    def close(self) -> None:
        """Do nothing: the file is closed already."""


def dump_msgpack(tree: Any) -> bytes:
    """Serialise a nested dict of arrays as flax does."""
    from flax import serialization

    return serialization.msgpack_serialize(tree)


def _restore(path: Path) -> dict[str, Any]:
    from flax import serialization

    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        flatten(tree)
    except OSError:
        raise
    except Exception as error:  # msgpack, flax and NumPy raise many kinds
        raise ValueError(
            f"{path} is no whole msgpack file of flax: {type(error).__name__}, "
            f"{str(error)[:200]}. Copy or download it again."
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} holds {type(tree).__name__}, not a dict of arrays. Save one with "
            "`flax.serialization.to_bytes`."
        )
    return tree
