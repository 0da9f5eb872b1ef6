"""What long work tells of itself: a progress bar, and how long its stages took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_AFTER = 2.0
"""Seconds of work before a bar appears, so that quick work prints nothing."""


@contextmanager
def progress_bar(
    description: str, total: int, *, show: bool | None = None
) -> Iterator[Callable[[int], None]]:
    """Count finished pieces of work on a rich progress bar with the time left.

    Args:
        description: What is being counted.
        total: How many pieces there are.
        show: True or False to insist; None shows a bar on terminals only.

    Yields:
        A function that takes how many further pieces are finished.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    visible = console.is_terminal if show is None else show
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task, begun, started = bar.add_task(description, total=total), time.monotonic(), False

    def advance(count: int) -> None:
        nonlocal started
        bar.advance(task, count)
        if visible and not started and time.monotonic() - begun > _AFTER:
            bar.start()
            started = True

    try:
        yield advance
    finally:
        if started:
            bar.stop()


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add what the block takes to the seconds of a stage."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begun
