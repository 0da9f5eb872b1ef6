"""Merging checkpoints on disk against mergekit, on the same files in the same run.

Whole processes are measured: their time, and the memory of a process and its children at its
highest, sampled fifty times a second. Resident memory counts the pages of files that are
mapped into memory, which the kernel can take back; anonymous memory does not. Before each
merge all inputs are read once and what was written is put onto the disk, so that the page
cache is as warm for one as for the other. mapjax puts its output onto the disk within its
time; mergekit leaves that to the kernel.

mergekit lives in an environment of its own:

    python -m venv mergekit-env && mergekit-env/bin/pip install mergekit
    python -m benchmarks.bench_io --mergekit mergekit-env/bin/mergekit-yaml
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._checkpoints import DTYPES, checkpoints, files, nbytes, read, weight_map
from benchmarks._report import parser, report

_COEFFICIENTS = (0.5, 0.3, 0.4)
_DENSITY = 0.2
_RULES = {"linear": "task_arithmetic", "ties": "ties"}
_MAPJAX = (sys.executable, "-c", "from mapjax.cli import main; main()")


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        inputs = checkpoints(
            folder, 2e7 if arguments.quick else arguments.gigabytes * 1e9, arguments.dtype
        )
        figures: dict[str, Any] = {
            "dtype": arguments.dtype,
            "gigabytes": [nbytes(path) / 1e9 for path in inputs],
            "start_seconds": start(),
            "inspect_seconds": inspect(inputs),
        }
        if arguments.mergekit is None:
            print("--mergekit is not given: mapjax is measured alone.", file=sys.stderr)
        else:
            figures["mergekit"] = _versions(arguments.mergekit)
        with tempfile.TemporaryDirectory(dir=folder) as outputs:
            for rule in _RULES:
                figures[rule] = merges(rule, inputs, Path(outputs), arguments.mergekit)
    report("io", figures, arguments.output)


def start() -> dict[str, float]:
    """Time fresh processes that do nothing but begin."""
    python = [sys.executable, "-c"]
    return {
        "python": _median([*python, "pass"]),
        "import_jax": _median([*python, "import jax"]),
        "import_mapjax": _median([*python, "import mapjax"]),
        "import_names": _median(
            [*python, "from mapjax import Evaluator, map_front, merge"]
        ),
        "help": _median([*_MAPJAX, "--help"]),
    }


def inspect(inputs: Sequence[Path]) -> dict[str, float]:
    """Time `mapjax inspect` of all checkpoints, and once without any page of them cached."""
    command = [*_MAPJAX, "inspect", *map(str, inputs)]
    os.sync()  # only what is on the disk can leave the cache
    for file in files(inputs):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"cold": _seconds(command), "warm": _median(command)}


def merges(
    rule: str, inputs: Sequence[Path], outputs: Path, mergekit: Path | None
) -> dict[str, Any]:
    """Merge by both, one after the other, and compare with NumPy what they wrote."""
    output = outputs / f"mapjax-{rule}"
    command = [*_MAPJAX, "merge", *map(str, inputs), "-o", str(output), "--coefficients"]
    command += [*map(str, _COEFFICIENTS), "--rule", rule]
    if rule == "ties":
        command += ["--density", str(_DENSITY)]
    ours = _measured(command, inputs)
    found: dict[str, Any] = {"ours": ours | {"exact": _exact(rule, inputs, output)}}
    shutil.rmtree(output)
    if mergekit is None:
        return found
    config, output = outputs / f"{rule}.yaml", outputs / f"mergekit-{rule}"
    config.write_text(json.dumps(_mergekit_config(rule, inputs)))  # which is YAML as well
    # There is no tokenizer to copy, which it would complain about.
    command = [str(mergekit), str(config), str(output), "--no-copy-tokenizer", "--quiet"]
    theirs = _measured(command, inputs)
    found["theirs"] = theirs | {"exact": _exact(rule, inputs, output)}
    shutil.rmtree(output)
    found["times_faster"] = theirs["seconds"] / ours["seconds"]
    for kind in ("resident", "anonymous"):
        found[f"share_of_{kind}_memory"] = ours[kind] / theirs[kind]
    return found


def _arguments() -> argparse.Namespace:
    command = parser(__doc__ or "")
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument("--mergekit", type=Path, help="mergekit's program, mergekit-yaml")
    command.add_argument("--gigabytes", type=float, default=4.0, help="of the base")
    command.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    command.add_argument(
        "--folder", type=Path, help="where checkpoints of an earlier run are, or will stay"
    )
    return command.parse_args()


def _median(command: Sequence[str]) -> float:
    _seconds(command)
    return statistics.median(_seconds(command) for _ in range(5))


def _seconds(command: Sequence[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def _measured(command: Sequence[str], inputs: Sequence[Path]) -> dict[str, float]:
    """Run a program; return its seconds, and its memory at its highest in megabytes."""
    block = bytearray(2**24)
    os.sync()
    for file in files(inputs):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(block):
                pass
    peak = {"resident": 0.0, "anonymous": 0.0}
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while process.poll() is None:
            family = [_memory(pid) for pid in _family(process.pid)]
            own = family[0].get("VmHWM", 0) if family else 0  # between samples as well
            now = sum(status.get("VmRSS", 0) for status in family)
            peak["resident"] = max(peak["resident"], own, now)
            now = sum(status.get("RssAnon", 0) for status in family)
            peak["anonymous"] = max(peak["anonymous"], now)
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command} failed:\n{said.read().decode()}")
    return {"seconds": seconds, **{name: size / 1e6 for name, size in peak.items()}}


def _family(pid: int) -> list[int]:
    """List a process, its children and theirs."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):  # it has ended
            for thread in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def _memory(pid: int) -> dict[str, int]:
    """Read the sizes in a process's status, in bytes."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        words = [line.split() for line in lines]
        return {w[0][:-1]: 1024 * int(w[1]) for w in words if w[2:] == ["kB"]}
    return {}


def _mergekit_config(rule: str, inputs: Sequence[Path]) -> dict[str, Any]:
    base, *experts = map(str, inputs)
    more = {"density": _DENSITY} if rule == "ties" else {}
    models = [
        {"model": path, "parameters": {"weight": c, **more}}
        for path, c in zip(experts, _COEFFICIENTS, strict=True)
    ]
    return {
        "merge_method": _RULES[rule],
        "base_model": base,
        "models": models,
        "parameters": {"normalize": False},
        "dtype": json.loads((inputs[0] / "config.json").read_text())["torch_dtype"],
    }


def _versions(mergekit: Path) -> dict[str, str]:
    code = "from importlib.metadata import version as v; print(v('mergekit'), v('torch'))"
    command = [str(mergekit.parent / "python"), "-c", code]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(zip(("mergekit", "torch"), words.split(), strict=True))


def _exact(rule: str, inputs: Sequence[Path], output: Path) -> dict[str, float]:
    """Say which share of some tensors is float32 arithmetic in NumPy, rounded once.

    Processors and their compilers fuse a product into a sum, so that it is not rounded on
    its own; NumPy does not. Both are float32 arithmetic.
    """
    names = list(weight_map(inputs[0]))
    same: dict[str, list[np.ndarray]] = {"fused": [], "unfused": []}
    for name in names[:: len(names) // 8]:
        base, *experts = (read(path, name).astype(np.float32) for path in inputs)
        vectors = np.stack([expert - base for expert in experts])
        if rule == "ties":
            vectors = _ties(vectors)
        got = read(output, name)
        for kind, wide in (("fused", np.float64), ("unfused", np.float32)):
            total = base
            for c, vector in zip(_COEFFICIENTS, vectors, strict=True):
                product = wide(np.float32(c)) * vector.astype(wide)
                total = (total + product).astype(np.float32)
            same[kind].append(np.ravel(total.astype(got.dtype) == got))
    return {kind: float(np.concatenate(each).mean()) for kind, each in same.items()}


def _ties(vectors: np.ndarray) -> np.ndarray:
    """Keep the largest, elect signs, and share the mean of those that agree."""
    for vector in vectors:
        size = np.abs(vector).ravel()
        kept = max(1, round(_DENSITY * size.size))
        least = np.partition(size, size.size - kept)[size.size - kept]
        vector[np.abs(vector) < least] = 0
    agrees = vectors * np.sign(vectors.sum(0)) > 0
    return np.where(agrees, vectors / np.maximum(agrees.sum(0, dtype=np.float32), 1), 0)


if __name__ == "__main__":
    main()
