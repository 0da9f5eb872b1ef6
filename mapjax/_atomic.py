"""Writing a file or a folder whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SIDECAR = ".sha256"
"""What follows a file's name in the name of the file that holds its hash."""


def check_space(path: Path, nbytes: int) -> None:
    """Refuse to start writing what does not fit onto the disk.

    Raises:
        OSError: If there is less room than `nbytes`, or no folder to write into.
    """
    folder = existing_parent(path)
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{nbytes} bytes are needed but {free} are free. Make room or write to another "
            "disk",
            str(path),
        )


def existing_parent(path: Path) -> Path:
    """Find the closest folder above `path` that exists.

    Raises:
        NotADirectoryError: If a file stands where a folder would have to be.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, f"is a file, so that {path.name} cannot lie in it", str(folder)
        )
    return folder


@contextlib.contextmanager
def new_file(path: Path, nbytes: int = 0) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when it is complete and on the disk.

    Args:
        path: The final name; a file that has it is replaced at the end, and of a link what
            it leads to.
        nbytes: How many bytes will be written: reserved at once, so that a full disk is
            noticed before the work and not in the middle.

    Raises:
        OSError: If it cannot be written. Nothing is left behind, and a file that had the
            name before stays as it was.
    """
    given, path = path, Path(os.path.realpath(path))
    check_space(path, nbytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        with _explained(path), part.open("xb") as file:
            if nbytes:
                _reserve(file, nbytes)
            yield file
            file.flush()
            os.fsync(file.fileno())
        # A hash of what stood here before would call the new file damaged.
        for named in {given, path}:
            sidecar = named.with_name(named.name + SIDECAR)
            if os.path.exists(sidecar):  # which a name that is too long does not
                sidecar.unlink()
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder that takes its name only when everything in it is written.

    Yields:
        The folder to write into, which has another name until then.

    Raises:
        ValueError: If the name is taken; see `check_free`.
        OSError: If it cannot be written. Nothing is left behind.
    """
    path = check_free(path)
    existing_parent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        with _explained(path):
            part.mkdir()
            yield part
            for folder in [*(p for p in part.rglob("*") if p.is_dir()), part]:
                sync_folder(folder)
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def check_free(path: Path) -> Path:
    """Find where a new folder will lie, all links followed.

    Raises:
        ValueError: If there is a file, or a folder that holds something or cannot be
            replaced by the finished one.
    """
    real = Path(os.path.realpath(path))
    if real.is_dir() and not any(real.iterdir()):
        what = "the current folder" if real.samefile(os.curdir) else "a mount point"
        if real.samefile(os.curdir) or os.path.ismount(real):
            raise ValueError(
                f"{path} is {what}, which a new folder cannot replace. Pass the path of a "
                "folder in it."
            )
    elif real.exists() or real.is_symlink():
        raise ValueError(
            f"{path} exists already, and a folder is never overwritten. Remove it or pass "
            "another path."
        )
    return real


def sync_folder(folder: Path) -> None:
    """Put the names in a folder onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_at(file: BinaryIO, data: memoryview, offset: int) -> None:
    """Write all of `data` at a place in a file; safe from several threads."""
    while data.nbytes:
        done = os.pwrite(file.fileno(), data, offset)
        data, offset = data[done:], offset + done


def _reserve(file: BinaryIO, nbytes: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except (AttributeError, OSError) as error:
        # Some file systems, and some systems, cannot reserve; only a full disk matters.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        os.ftruncate(file.fileno(), nbytes)


def _part(path: Path) -> Path:
    stem = os.fsdecode(os.fsencode(path.name)[:200])  # a name has 255 bytes at most
    return path.with_name(f".{stem}.{secrets.token_hex(4)}.part")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)} while writing; nothing was left behind. Make room "
            "or write to another disk",
            str(path),
        ) from error
