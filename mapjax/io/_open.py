"""Recognise what a path holds, from its content."""

from pathlib import Path

from mapjax.io._index import INDEX_SUFFIX, SHOWN
from mapjax.io._msgpack import MsgpackCheckpoint
from mapjax.io._npz import NpzCheckpoint
from mapjax.io._orbax import OrbaxCheckpoint, find_tree, is_orbax
from mapjax.io._safetensors import SafetensorsCheckpoint
from mapjax.io._tensor import AbstractCheckpoint

_KNOWN = (
    f"safetensors (a file, a folder or a *{INDEX_SUFFIX}), .npz, .msgpack of flax, orbax "
    "folders"
)
_FOREIGN = {
    b"\x93NUMPY": "one NumPy array: save a dict of arrays with `np.savez`",
    b"\x89HDF": "HDF5: load it with h5py and pass the arrays to `mapjax.io.save`",
    b"GGUF": "GGUF, which is quantised: use the checkpoint that it was made from",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"PK\x05\x06": "an empty archive: save arrays with `np.savez`",
}


def open_checkpoint(path: str | Path, *, item: str | None = None) -> AbstractCheckpoint:
    """Open a checkpoint without reading its numbers.

    Takes milliseconds whatever the size, except for msgpack, which can only be read whole.

    Args:
        path: A file or a folder in any format that `load` reads.
        item: Of an orbax checkpoint of several items, the one to open.

    Returns:
        The checkpoint: `tensors` with shapes and dtypes, `read(name, index)`, `close()`.

    Raises:
        ValueError: If the format is not known, or the checkpoint is damaged, incomplete or
            points outside its folder.
        OSError: If there is nothing at `path` or it cannot be read.

    Example:
        >>> import numpy as np, pathlib, tempfile, mapjax.io
        >>> path = pathlib.Path(tempfile.mkdtemp(), "base.safetensors")
        >>> mapjax.io.save(path, {"w": np.arange(6.0).reshape(3, 2)})
        >>> with mapjax.io.open_checkpoint(path) as checkpoint:
        ...     checkpoint.tensors["w"].shape, checkpoint.read("w", (slice(1),))
        ((3, 2), array([[0., 1.]]))
    """
    return open_item(Path(path), item)[0]


def open_item(path: Path, item: str | None) -> tuple[AbstractCheckpoint, str | None]:
    """Open a checkpoint, and say what part of it is still to be picked."""
    form = recognise(path)
    if form == "orbax":
        folder, rest = find_tree(path, item)
        return OrbaxCheckpoint(folder), rest
    kinds = {
        "safetensors": SafetensorsCheckpoint,
        "npz": NpzCheckpoint,
        "msgpack": MsgpackCheckpoint,
    }
    return kinds[form](path), item


def recognise(path: Path) -> str:
    """Name the format of what is at a path.

    Raises:
        ValueError: If it is none that is known, a pickle above all.
        OSError: If there is nothing, or it cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(2, "there is no such file or folder", str(path))
    if path.is_dir():
        return _recognise_folder(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file and no folder. Pass {_KNOWN}.")
    with path.open("rb") as file:
        start = file.read(16)
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is {what}.")
    if start.startswith(b"PK\x03\x04"):
        return "npz"
    if start[4:8] == bytes(4) and start[8:9] == b"{":
        return "safetensors"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError(
            f"{path} is a pickle, which can run any program when it is loaded. Convert it to "
            "safetensors where it was made."
        )
    by_suffix = {
        ".safetensors": "safetensors",
        ".npz": "npz",
        ".msgpack": "msgpack",
        ".json": "safetensors",
    }
    if path.suffix in by_suffix:
        return by_suffix[path.suffix]  # its reader says what is wrong
    if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return "msgpack"
    if start.lstrip()[:1] == b"{":
        return "safetensors"
    raise ValueError(
        f"{path} is in no known format; it begins with {start[:8]!r}. Pass {_KNOWN}."
    )


def _recognise_folder(path: Path) -> str:
    if any(any(path.glob(SHOWN + end)) for end in (".safetensors", INDEX_SUFFIX)):
        return "safetensors"
    if is_orbax(path):
        return "orbax"
    pickles = sorted(p.name for p in path.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise ValueError(
            f"{path} holds {pickles[:3]}, which are pickles and can run any program when they "
            "are loaded. Convert them to safetensors where they were made."
        )
    raise ValueError(f"{path} is a folder without a checkpoint. Pass {_KNOWN}.")
