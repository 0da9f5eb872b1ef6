"""The files of a record: a line of JSON for each sample, and outputs beside it."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mapjax._atomic import new_file


def check_path(path: Path) -> None:
    """Refuse now, and not after the first evaluation, a path that cannot be written.

    Raises:
        ValueError: If it is a folder, or lies in something that is none.
    """
    if path.is_dir():
        raise ValueError(
            f"`save_to` is {path}, which is a folder: pass a file, such as "
            f"{path / 'samples.jsonl'}."
        )
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(
            f"`save_to` is {path}, but {parent} is a file: pass a path in a folder."
        )


def read_lines(path: Path, form: str) -> tuple[dict[str, Any] | None, list[str], int]:
    """Read a record as far as it is whole: a kill can cut the last line short.

    Returns:
        The header (None if nothing of it is whole), the other lines, and how many bytes
        they take.

    Raises:
        ValueError: If the file is no record.
    """
    whole = path.read_bytes()
    size = whole.rfind(b"\n") + 1
    lines = whole[:size].decode(errors="replace").splitlines()
    begin = json.dumps({"format": form})[:-1].encode()
    try:
        assert whole[: len(begin)] == begin[: len(whole)]
        header = json.loads(lines[0]) if lines else None
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"`save_to` names {path}, which is not a record of samples. Pass a new path."
        ) from error
    return header, lines[1:], size


def append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines to a record, and put them onto the disk.

    Raises:
        OSError: If they cannot be written. The file is named, also of a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what = f"{error.strerror} while saving samples. Those before are kept: make room"
        raise OSError(error.errno, f"{what}, and run again to go on", str(path)) from error


def save_outputs(folder: Path, key: bytes, outputs: list[np.ndarray]) -> None:
    """Write what the metrics saw of one merge, whole or not at all."""
    with new_file(_outputs_file(folder, key)) as file:
        np.savez(file, *outputs)


def load_outputs(
    folder: Path, key: bytes, shapes: list[tuple[int, ...]]
) -> list[np.ndarray] | None:
    """Read what the metrics saw of one merge; None if it is missing or damaged.

    Raises:
        ValueError: If they have other shapes than the tasks give.
    """
    path = _outputs_file(folder, key)
    try:
        # NumPy does not close a file that it cannot read.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            leaves = [file[f"arr_{i}"] for i in range(len(file.files))]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    found = [x.shape for x in leaves]
    if found != shapes:
        raise ValueError(
            f"{path} holds outputs of shapes {found}, but the tasks give {shapes}: pass a "
            "new path as `save_to`, or the same `predict` as before."
        )
    return leaves


def _outputs_file(folder: Path, key: bytes) -> Path:
    return folder / (hashlib.sha256(key).hexdigest()[:16] + ".npz")
