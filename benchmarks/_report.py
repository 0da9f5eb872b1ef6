"""What every benchmark shares: timing, the machine, and JSON out."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def parser(description: str) -> argparse.ArgumentParser:
    """Make the command line that every benchmark has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="small sizes, to see it run")
    result.add_argument("--output", type=_file, help="write the figures to this JSON file")
    return result


def _file(text: str) -> Path:
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, but must be a JSON file")
    return Path(text)


def seconds(function: Callable[[], Any]) -> float:
    """Time one call, waiting for the device."""
    begun = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begun


def timed(function: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """Time the first call, which compiles, apart from the median of those after it."""
    first = seconds(function)
    later = [seconds(function) for _ in range(repeats)]
    return {"first": first, "median": statistics.median(later), "least": min(later)}


def against(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int = 5
) -> dict[str, Any]:
    """Time two functions in turn, so that a machine's moods meet both alike."""
    first = {"ours": seconds(ours), "theirs": seconds(theirs)}
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return {
        "first": first,
        "ours": statistics.median(a for a, _ in pairs),
        "theirs": statistics.median(b for _, b in pairs),
        "times_faster": statistics.median(b / a for a, b in pairs),
    }


def report(
    name: str, figures: dict[str, Any], output: Path | None, *, show: bool = True
) -> None:
    """Print the figures with the machine they belong to, and write them if asked."""
    device = jax.devices()[0]
    whole = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "device": device.device_kind,
            "platform": device.platform,
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
        "versions": {p: metadata.version(p) for p in ("mapjax", "jax", "jaxlib", "numpy")},
        "figures": figures,
    }
    text = json.dumps(whole, indent=2 if show else None)
    if show:
        print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")
