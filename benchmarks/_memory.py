"""What a process holds, as Linux counts it, and what it does with what it frees."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

_PROCESS = Path("/proc/self")
_KEEP_PAGES = ":".join(
    f"glibc.malloc.{option}"
    for option in ("hugetlb=1", "arena_max=1", "mmap_max=0", f"trim_threshold={2**36}")
)


def keep_pages() -> None:
    """Start this process again, so that it uses the pages that it frees again.

    Results of hundreds of megabytes are fresh pages, and the kernel's work on them takes as
    long as a merge. With the options that this sets, pages are large and are kept, as on a
    GPU, for NumPy and JAX alike. Only on Linux, and not where `GLIBC_TUNABLES` is set.
    """
    # It is read when a process starts.
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        again = os.environ | {"GLIBC_TUNABLES": _KEEP_PAGES}
        os.execve(sys.executable, sys.orig_argv, again)


def watch_peak() -> Callable[[], int]:
    """Forget the peak of memory so far.

    Returns:
        A function that gives by how many bytes the process has grown since then, at most;
        zero where the system does not say.
    """
    # Where this is not allowed, the peak is that of the whole life of the process.
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")
    before = _status("VmRSS")
    return lambda: _status("VmHWM") - before


def _status(name: str) -> int:
    if not (_PROCESS / "status").exists():
        return 0
    lines = (_PROCESS / "status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(name)).split()[1])
