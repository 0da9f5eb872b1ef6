"""Lazily opened safetensors: one file, shards with an index, a Hugging Face folder."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from mapjax._atomic import SIDECAR
from mapjax.io._header import read_header
from mapjax.io._index import INDEX_SUFFIX, read_index
from mapjax.io._tensor import AbstractCheckpoint, as_bytes


class SafetensorsCheckpoint(AbstractCheckpoint):
    """Tensors in one or several safetensors files.

    Attributes:
        files: The files, in the order of their names.
        index: The index, if there is one.
        index_metadata: What the index carries beside the names, such as `total_size`.
        file_metadata: The strings that each file carries.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.format = path, "safetensors"
        self.tensors, self.metadata, self.file_metadata = {}, {}, {}
        self.index, self.files, places, self.index_metadata = read_index(path)
        self._offsets: dict[str, tuple[int, int]] = {}
        with contextlib.ExitStack() as stack:
            for each in self.files:
                file = stack.enter_context(each.open("rb", buffering=0))
                tensors, offsets, metadata = read_header(each, file)
                twice = next((name for name in tensors if name in self.tensors), None)
                if twice is not None:
                    raise ValueError(
                        f"Tensor {twice!r} is both in {self.tensors[twice].file} and in "
                        f"{each}. Remove the shards that belong to another checkpoint."
                    )
                self.tensors |= tensors
                self.file_metadata[each] = metadata
                self.metadata |= metadata
                handle = file.fileno()
                self._offsets |= {n: (handle, at) for n, at in offsets.items()}
            _check_places(self.index, places, self.tensors)
            self._stack = stack.pop_all()
        # `safetensors.torch.save_model` notes tied tensors so, and so does `save`. That a
        # file's "format" is "pt" is no tie, though a tensor be called "pt".
        self.aliases = {
            name: kept
            for name, kept in self.metadata.items()
            if kept in self.tensors and name not in (*self.tensors, "format")
        }

    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Read numbers of the flattened tensor from `start` on until `out` is full."""
        handle, offset = self._offsets[name]
        data = as_bytes(out)
        offset += start * out.itemsize
        while data.nbytes:
            done = os.preadv(handle, [data], offset)
            if not done:
                raise ValueError(
                    f"{self.tensors[name].file} became shorter while tensor {name!r} was "
                    "read. Do not change a checkpoint that is in use."
                )
            data, offset = data[done:], offset + done

    def verify(self) -> None:
        """Compare each file with the SHA-256 beside it, `NAME.sha256`, where there is one.

        Raises:
            ValueError: If a hash differs, or is none.
        """
        for each in self.files:
            sidecar = each.with_name(each.name + SIDECAR)
            if os.path.exists(sidecar):  # no error of a name that is too long
                check_hash(each, sidecar)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()


def check_hash(path: Path, sidecar: Path) -> None:
    """Compare a file with the hash in another, as `sha256sum` writes it."""
    words = sidecar.read_bytes()[:200].decode(errors="replace").split()
    want = words[0].lower() if words else ""
    if len(want) != 64 or set(want) - set("0123456789abcdef"):
        raise ValueError(
            f"{sidecar} holds no SHA-256. Write it with `sha256sum {path.name}`, or remove it."
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != want:
        raise ValueError(
            f"{path} has the SHA-256 {found}, but {sidecar.name} says {want}. Copy or "
            "download the file again, or remove the hash if the file was changed on purpose."
        )


def _check_places(
    index: Path | None, places: dict[str, Path] | None, tensors: dict
) -> None:
    """Refuse an index that says something else than the shards."""
    if places is None:
        return
    for name, place in places.items():
        if name not in tensors or tensors[name].file != place:
            raise ValueError(
                f"{index} says that tensor {name!r} is in {place.name}, which does not hold "
                f"it. The {INDEX_SUFFIX} and the shards belong to different checkpoints: "
                "copy or download them together."
            )
    extra = next((name for name in tensors if name not in places), None)
    if extra is not None:
        raise ValueError(
            f"{tensors[extra].file} holds tensor {extra!r}, which {index} does not name. "
            "Copy or download the index and the shards together."
        )
