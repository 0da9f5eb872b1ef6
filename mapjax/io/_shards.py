"""Writing safetensors, in one file or in the shards of another checkpoint."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mapjax._atomic import check_free, check_space, new_file, new_folder, write_at
from mapjax.io._header import lay_out
from mapjax.io._index import INDEX_SUFFIX, SHOWN, inside
from mapjax.io._safetensors import SafetensorsCheckpoint
from mapjax.io._tensor import AbstractCheckpoint, as_bytes

Form = tuple[tuple[int, ...], np.dtype]
"""The shape and the dtype that a tensor is written with."""

_BESIDE = (".json", ".txt", ".model", ".jinja")
_LARGEST_BESIDE = 2**26


@dataclasses.dataclass(frozen=True)
class Shards:
    """How tensors are spread over files.

    Attributes:
        files: The names of the tensors in each file.
        metadata: The strings that each file carries.
        index: The name of the index and what it carries, if there is one.
        beside: Further files to copy.
        folder: Whether a folder is written, or a single file.
    """

    files: dict[str, list[str]]
    metadata: dict[str, dict[str, str]]
    index: tuple[str, dict[str, Any]] | None = None
    beside: tuple[Path, ...] = ()
    folder: bool = False


def one_file(path: Path, names: list[str], metadata: Mapping[str, str]) -> Shards:
    """Put everything into one file."""
    return Shards({path.name: names}, {path.name: dict(metadata)})


def shards_like(checkpoint: AbstractCheckpoint, path: Path) -> Shards:
    """Repeat the shards of a checkpoint; of one without shards, its single file."""
    if not isinstance(checkpoint, SafetensorsCheckpoint):
        return one_file(path, list(checkpoint.tensors), {})
    root = checkpoint.index.parent if checkpoint.index else checkpoint.path
    if not checkpoint.index and not checkpoint.path.is_dir():
        return one_file(path, list(checkpoint.tensors), checkpoint.metadata)
    files: dict[str, list[str]] = {str(f.relative_to(root)): [] for f in checkpoint.files}
    for name, info in checkpoint.tensors.items():
        files[str(info.file.relative_to(root))].append(name)
    index = checkpoint.index
    return Shards(
        files,
        {str(f.relative_to(root)): m for f, m in checkpoint.file_metadata.items()},
        (index.name, checkpoint.index_metadata) if index else None,
        tuple(_beside(root)),
        folder=True,
    )


class Writer:
    """Takes the numbers of tensors in any order, from several threads."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[BinaryIO, int]] = {}

    def add(self, file: BinaryIO, offsets: Mapping[str, int]) -> None:
        """Learn where tensors go."""
        self._places |= {name: (file, offset) for name, offset in offsets.items()}

    def write(self, name: str, start: int, numbers: np.ndarray) -> None:
        """Write contiguous numbers of a flattened tensor, the first of them `start`."""
        file, offset = self._places[name]
        write_at(file, as_bytes(numbers), offset + start * numbers.dtype.itemsize)


def check_output(path: Path, shards: Shards, tensors: Mapping[str, Form]) -> int:
    """Find, before any work, what would stop `new_safetensors`; returns the bytes needed."""
    if shards.folder:
        path = check_free(path)
    elif path.is_dir():
        raise ValueError(f"{path} is a folder: pass the path of a file.")
    needed = 0
    for file, names in shards.files.items():
        layout = lay_out({n: tensors[n] for n in names}, shards.metadata.get(file, {}))
        needed += layout.nbytes
    check_space(path, needed)
    return needed


@contextlib.contextmanager
def new_safetensors(
    path: Path, shards: Shards, tensors: Mapping[str, Form]
) -> Iterator[Writer]:
    """Open all files of a checkpoint to write; they appear when all are complete.

    Raises:
        OSError: If the disk has no room for them, before anything is computed.
    """
    check_output(path, shards, tensors)
    writer = Writer()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(new_folder(path)) if shards.folder else path.parent
        for file, names in shards.files.items():
            forms = {name: tensors[name] for name in names}
            layout = lay_out(forms, shards.metadata.get(file, {}))
            opened = stack.enter_context(new_file(folder / file, layout.nbytes))
            write_at(opened, memoryview(layout.header), 0)
            writer.add(opened, layout.offsets)
        yield writer
        if shards.index:
            _write_index(folder, shards, tensors)
        for extra in shards.beside:
            with extra.open("rb") as source, new_file(folder / extra.name) as copy:
                copy.write(source.read())


def _write_index(folder: Path, shards: Shards, tensors: Mapping[str, Form]) -> None:
    assert shards.index is not None
    name, metadata = shards.index
    total = sum(int(np.prod(s, dtype=object)) * d.itemsize for s, d in tensors.values())
    index = {
        "metadata": {**metadata, "total_size": total},
        "weight_map": {n: file for file, names in shards.files.items() for n in names},
    }
    with new_file(folder / name) as file:
        file.write((json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


def _beside(root: Path) -> list[Path]:
    """List the small text files of a Hugging Face folder, none from outside of it."""
    found = []
    for file in sorted(root.glob(SHOWN)):
        wanted = file.suffix in _BESIDE and not file.name.endswith(INDEX_SUFFIX)
        if wanted and file.is_file() and file.stat().st_size <= _LARGEST_BESIDE:
            with contextlib.suppress(ValueError):
                found.append(inside(root, file.name, root))
    return found
