"""NumPy archives, opened lazily; nothing in them is ever unpickled."""

import errno
import os
import struct
import threading
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from mapjax.io._dtypes import BY_NAME, check_shape
from mapjax.io._tensor import AbstractCheckpoint, TensorInfo, as_bytes

_DEFLATE = 1032  # what zlib compresses at most
_BLOCK = 2**20
_AGAIN = "Copy or download the file again."


class NpzCheckpoint(AbstractCheckpoint):
    """Arrays of an .npz file.

    bfloat16 is what JAX takes it for, two bytes without a meaning for NumPy. Other dtypes
    that NumPy cannot name stand in the comment of the archive's member, where `save` puts
    them.

    Attributes:
        compressed: Whether any array is compressed; such are read from front to back.
        held: The most bytes that are held of an array in Fortran's order, which is read as a
            whole and given in pieces.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.format = path, "npz"
        self.tensors, self.metadata, self.aliases = {}, {}, {}
        self._members: dict[str, tuple[zipfile.ZipInfo, np.dtype, bool, int]] = {}
        self._streams: dict[str, tuple[IO[bytes], int]] = {}
        self._turned: dict[str, np.ndarray] = {}
        self._lock = threading.RLock()
        self._file = path.open("rb", buffering=0)
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._read_members()
        except Exception as error:  # zipfile raises whatever a damaged file leads it to
            self._file.close()
            raise _damaged(path, error) from error
        self.compressed = any(m[0].compress_type for m in self._members.values())
        turned = [info.nbytes for n, info in self.tensors.items() if self._members[n][2]]
        self.held = max(turned, default=0)

    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Read numbers of the flattened tensor from `start` on until `out` is full."""
        member, dtype, fortran, front = self._members[name]
        info = self.tensors[name]
        if fortran:  # in another order than asked for
            # The whole is kept for its next pieces.
            with self._lock:
                turned = self._turned.pop(name, None)
                if turned is None:
                    self._turned.clear()  # before there is another
                    raw = np.empty(info.size, dtype)
                    self._read_bytes(name, member, front, raw)
                    turned = raw.reshape(info.shape[::-1]).T
                out[...] = turned.flat[start : start + out.size]
                if out.size < info.size:
                    self._turned[name] = turned
            return
        raw = out if dtype.isnative else np.empty(out.size, dtype)
        self._read_bytes(name, member, front + start * dtype.itemsize, raw)
        if raw is not out:
            out[...] = raw

    def verify(self) -> None:
        """Compare every array with its checksum.

        Raises:
            ValueError: If one differs.
        """
        try:
            with self._lock:
                bad = self._zip.testzip()
        except Exception as error:  # as above
            raise _damaged(self.path, error) from error
        if bad is not None:
            raise ValueError(f"{self.path}: {bad!r} does not match its checksum. {_AGAIN}")

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    def _read_members(self) -> None:
        members = self._zip.infolist()
        size = os.fstat(self._file.fileno()).st_size
        if sum(member.compress_size for member in members) > size:
            raise ValueError(f"{self.path}: arrays overlap in the archive. {_AGAIN}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                what = (
                    "is a PyTorch file, which is a pickle and can run any program when it is "
                    "loaded. Convert it to safetensors where it was made"
                    if "data.pkl" in name
                    else f"holds {name[:80]!r}, which is no array. Save arrays with `np.savez`"
                )
                raise ValueError(f"{self.path} {what}.")
            if name in self.tensors:
                raise ValueError(f"{self.path}: the name {name!r} comes twice. {_AGAIN}")
            if member.flag_bits & 1 or member.compress_type not in (0, 8):
                raise ValueError(
                    f"{self.path}: {name!r} is encrypted or compressed in an unknown way. Save "
                    "it with `np.savez`."
                )
            if member.file_size > _DEFLATE * (member.compress_size + 1):
                raise ValueError(
                    f"{self.path}: {name!r} claims an impossible size. {_AGAIN}"
                )
            with self._zip.open(member) as stream:
                shape, fortran, stored = _read_array_header(self.path, name, stream)
                front = stream.tell()
            dtype = _meaning(self.path, name, stored, member.comment)
            nbytes = check_shape(self.path, name, shape, stored)
            if front + nbytes != member.file_size:
                raise ValueError(
                    f"{self.path}: {name!r} is {dtype} of shape {shape}, {nbytes} bytes, but "
                    f"{member.file_size - front} are there. {_AGAIN}"
                )
            if member.compress_type == 0:
                front += self._data_offset(member)
            if stored.kind == "V":
                stored = dtype
            self.tensors[name] = TensorInfo(shape, dtype, self.path)
            fortran = fortran and len(shape) > 1
            self._members[name] = (member, stored, fortran, front)

    def _data_offset(self, member: zipfile.ZipInfo) -> int:
        local = os.pread(self._file.fileno(), 30, member.header_offset)
        name, extra = struct.unpack("<HH", local[26:])
        return member.header_offset + 30 + name + extra

    def _read_bytes(
        self, name: str, member: zipfile.ZipInfo, position: int, out: np.ndarray
    ) -> None:
        data = as_bytes(out)
        if member.compress_type == 0:
            while data.nbytes:
                done = os.preadv(self._file.fileno(), [data], position)
                if not done:
                    raise ValueError(f"{self.path}: {name!r} is cut short. {_AGAIN}")
                data, position = data[done:], position + done
            return
        try:
            with self._lock:
                stream, at = self._streams.pop(name, (None, 0))
                if stream is None or at > position:
                    stream, at = self._zip.open(member), 0
                while at < position and (
                    skipped := stream.read(min(_BLOCK, position - at))
                ):
                    at += len(skipped)
                while data.nbytes:
                    block = stream.read(min(_BLOCK, data.nbytes))
                    if not block:
                        raise ValueError("it is cut short")
                    data[: len(block)] = block
                    data, at = data[len(block) :], at + len(block)
                if at < member.file_size:
                    self._streams[name] = stream, at
        except Exception as error:  # zlib and zipfile raise several kinds
            raise _damaged(self.path, error) from error


def _read_array_header(
    path: Path, name: str, stream: Any
) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python 2
            return read(stream)
    except Exception as error:  # of zipfile, ast and NumPy
        raise ValueError(
            f"{path}: {name!r} is no array of NumPy, {type(error).__name__}, "
            f"{str(error)[:200]}. {_AGAIN}"
        ) from error


def _meaning(path: Path, name: str, dtype: np.dtype, comment: bytes) -> np.dtype:
    """Say which dtype is meant where NumPy has stored bytes without a meaning."""
    if dtype.hasobject:
        raise ValueError(
            f"{path}: {name!r} is pickled, and a pickle can run any program when it is loaded. "
            "Save arrays of numbers."
        )
    if dtype.kind == "V" and dtype.fields is None and not dtype.shape:
        word = comment.decode(errors="replace") or (
            "bfloat16" if dtype.itemsize == 2 else ""
        )
        if word in BY_NAME and BY_NAME[word].itemsize == dtype.itemsize:
            return BY_NAME[word]
    elif dtype.kind in "biufc" and dtype.newbyteorder("=").name in BY_NAME:
        return dtype.newbyteorder("=")
    raise ValueError(
        f"{path}: {name!r} is {str(dtype)[:80]}, and what it means was not noted. Save it with "
        "`mapjax.io.save`, or as floating-point or whole numbers."
    )


def _damaged(path: Path, error: Exception) -> Exception:
    """Name the file, unless the error does, or it is one of reading and not of the file."""
    # A damaged archive makes zipfile seek to where nothing can be.
    disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    if disk or (isinstance(error, ValueError) and str(error).startswith(str(path))):
        return error
    return ValueError(
        f"{path} is no whole .npz file: {type(error).__name__}, {str(error)[:200]}. {_AGAIN}"
    )
