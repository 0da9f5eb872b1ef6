"""The header of a safetensors file: a length in eight bytes, then JSON.

References:
    https://huggingface.co/docs/safetensors: *Format*.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mapjax.io._dtypes import SAFETENSORS, check_shape
from mapjax.io._tensor import TensorInfo

LONGEST_HEADER = 100_000_000
"""Bytes; the bound that the safetensors package itself has."""

_NAMES = {dtype: name for name, dtype in SAFETENSORS.items()}
_METADATA = "__metadata__"
_AGAIN = "Copy or download the file again."


class Layout(NamedTuple):
    """Where each tensor of a file begins, and all that stands before the first."""

    header: bytes
    offsets: dict[str, int]
    nbytes: int


def read_header(
    path: Path, file: BinaryIO
) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    """Read and check the header.

    Returns:
        The tensors in the order of their numbers, the byte at which each begins, and the
        metadata.

    Raises:
        ValueError: If the file is truncated or damaged: what is wrong, and what to do.
    """
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        if first.startswith(b"version"):
            raise ValueError(
                f"{path} is a Git LFS pointer and not the file itself: fetch it with "
                "`git lfs pull`."
            )
        raise ValueError(
            f"{path} is no whole safetensors file: its header would take {length} bytes, "
            f"but the file has {size}. {_AGAIN}"
        )
    if length > LONGEST_HEADER:
        raise ValueError(
            f"{path}: the header claims {length} bytes, but at most {LONGEST_HEADER} are "
            f"read. {_AGAIN}"
        )
    entries = _parse(path, file.read(length))
    metadata = entries.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
        raise ValueError(f"{path}: `__metadata__` must map strings to strings. {_AGAIN}")
    tensors, offsets = _check_entries(path, entries, 8 + length, size)
    return tensors, offsets, metadata


def lay_out(
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], metadata: Mapping[str, str]
) -> Layout:
    """Plan a file of tensors in this order, wider dtypes first, so that all are aligned.

    Raises:
        ValueError: If the format has no name for a dtype, or keeps a name to itself.
    """
    if _METADATA in tensors:
        raise ValueError(
            f"A tensor is called {_METADATA!r}, which in safetensors files are the notes. "
            "Rename it, or save as .npz or .msgpack."
        )
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    begin, offsets = 0, {}
    for name in sorted(tensors, key=lambda n: -tensors[n][1].itemsize):
        shape, dtype = tensors[name]
        if dtype not in _NAMES:
            raise ValueError(
                f"Tensor {name!r} is {dtype}, which safetensors files cannot hold. Cast it, "
                "or save as .npz or .msgpack."
            )
        end = begin + check_shape(Path("(new file)"), name, shape, dtype)
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
        offsets[name], begin = begin, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    front = len(text).to_bytes(8, "little") + text
    return Layout(
        front, {n: len(front) + o for n, o in offsets.items()}, len(front) + begin
    )


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of what JSON holds, and refuse a name that comes twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} comes twice")
    return made


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(text.decode(), object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: the header is damaged, {str(error)[:200]}. {_AGAIN}"
        ) from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: the header is no JSON object. {_AGAIN}")
    return entries


def _check_entries(
    path: Path, entries: dict[str, Any], begin: int, size: int
) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    found = []
    for name, entry in entries.items():
        try:
            dtype, shape, (start, stop) = (
                entry[key] for key in ("dtype", "shape", "data_offsets")
            )
            numbers = [*shape, start, stop]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: tensor {name!r} lacks a dtype, a shape or two data_offsets. {_AGAIN}"
            ) from error
        if any(type(n) is not int or n < 0 for n in numbers) or not isinstance(shape, list):
            raise ValueError(
                f"{path}: shape and data_offsets of tensor {name!r} must be lists of numbers, "
                f"0 or more. {_AGAIN}"
            )
        if not isinstance(dtype, str) or dtype not in SAFETENSORS:
            raise ValueError(
                f"{path}: tensor {name!r} has the dtype {str(dtype)[:40]!r}; known are "
                f"{', '.join(SAFETENSORS)}. Convert the tensor with the library that wrote it."
            )
        info = TensorInfo(tuple(shape), SAFETENSORS[dtype], path)
        nbytes = check_shape(path, name, info.shape, info.dtype)
        if stop - start != nbytes:
            raise ValueError(
                f"{path}: tensor {name!r} is {dtype} of shape {info.shape}, {nbytes} bytes, "
                f"but its data_offsets {[start, stop]} hold {stop - start}. {_AGAIN}"
            )
        found.append((start, stop, name, info))
    found.sort(key=lambda f: f[:2])
    end = 0
    for start, stop, name, _ in found:
        if start != end:
            what = "overlap" if start < end else "leave a hole before"
            raise ValueError(
                f"{path}: other tensors {what} tensor {name!r}, which begins at {start} and "
                f"not at {end}. {_AGAIN}"
            )
        end = stop
    if begin + end != size:
        raise ValueError(
            f"{path} should have {begin + end} bytes but has {size}: it is truncated, or "
            f"something was appended. {_AGAIN}"
        )
    return (
        {name: info for _, _, name, info in found},
        {name: begin + start for start, _, name, _ in found},
    )
