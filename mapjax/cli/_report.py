"""What `mapjax inspect` finds out, as plain numbers and words."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mapjax.alignment._shared_base import compare_with_base
from mapjax.io import AbstractCheckpoint, open_checkpoint
from mapjax.io._inputs import Inputs, check_inputs
from mapjax.io._plan import Piece, cut, make_plan
from mapjax.io._recipe import Recipe, schedule
from mapjax.io._stream import run

# Norms of a few million numbers are good to a tenth of a percent and take a second.
_MOST_NUMBERS = 2**23
_SAMPLE = 2**16
_WORKING_BYTES = 40  # per number and expert, in float64 and float32

# Experts of one other base have the way to it in common.
_ALIKE = 0.9
_COPIED = 1e-12


def make_report(
    base: Path, experts: Mapping[str, Path], *, reading: str, memory: int
) -> dict[str, Any]:
    """Look at a base and experts.

    Args:
        base: The pretrained checkpoint.
        experts: Names and paths of the fine-tuned ones.
        reading: How many numbers to read: "none", "some" or "all".
        memory: The bound, in bytes.

    Returns:
        `checkpoints`, `norms` and `merge` (None where they could not be found out), `notes`
        and `errors`.
    """
    report: dict[str, Any] = {"checkpoints": [], "norms": None, "merge": None}
    errors = report["errors"] = []
    notes = report["notes"] = []
    with contextlib.ExitStack() as stack:
        opened: list[tuple[str, AbstractCheckpoint | None]] = []
        for name, path in (("base", base), *experts.items()):
            checkpoint = None
            try:
                checkpoint = stack.enter_context(open_checkpoint(path))
                report["checkpoints"].append(_describe(name, checkpoint))
            except (ValueError, OSError) as error:
                errors.append(_words(error))
            opened.append((name, checkpoint))
        (_, first), *others = opened  # an expert may be called "base", too
        if first is None or not others:
            return report
        fitting = _fitting(first, others, errors)
        if not fitting:
            return report
        names = tuple(fitting)
        inputs = check_inputs(
            first, list(fitting.values()), names, statistics=False, dtype=None
        )
        rate = None
        try:
            if reading != "none":
                begun = time.perf_counter()
                some = math.inf if reading == "all" else _MOST_NUMBERS
                grams, share, bad, nbytes = _grams(inputs, some, memory)
                rate = nbytes / (time.perf_counter() - begun)
                errors += [f"Tensor {n!r} holds NaN or infinite values." for n in bad]
                if grams and not bad:
                    report["norms"] = _norms(inputs, grams, share)
                    notes += _verdicts(report["norms"])
            report["merge"] = _plan(inputs, memory, rate)
        except (ValueError, OSError) as error:
            errors.append(_words(error))
    return report


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _describe(name: str, checkpoint: AbstractCheckpoint) -> dict[str, Any]:
    infos = checkpoint.tensors.values()
    return {
        "name": name,
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "num_tensors": len(checkpoint.tensors),
        "num_numbers": sum(info.size for info in infos),
        "num_files": len({info.file for info in infos}),
        "nbytes": checkpoint.nbytes,
        "dtypes": dict(collections.Counter(info.dtype.name for info in infos)),
        "tied": len(checkpoint.aliases),
    }


def _fitting(
    base: AbstractCheckpoint,
    opened: list[tuple[str, AbstractCheckpoint | None]],
    errors: list[str],
) -> dict[str, AbstractCheckpoint]:
    """Keep the experts that fit the base, and say of each other one why it does not."""
    found = {}
    for name, expert in opened:
        if expert is None:
            continue
        try:
            check_inputs(base, [expert], (name,), statistics=False, dtype=None)
        except ValueError as error:
            if str(error) not in errors:  # of the base itself, for every expert
                errors.append(str(error))
        else:
            found[name] = expert
    return found


def _grams(
    inputs: Inputs, most: float | int, memory: int
) -> tuple[dict[str, np.ndarray], float, list[str], int]:
    """Sum the products of the base and the task vectors with each other in each tensor.

    Returns:
        The sums `[1 + experts, 1 + experts]` by name, the share of the numbers that were
        read, the names of tensors with numbers that are not finite, and how many bytes were
        read.
    """
    everything = [inputs.base, *inputs.experts]
    sizes = {name: inputs.base.tensors[name].size for name in inputs.merged}
    total = sum(sizes.values())
    pieces = cut(inputs, inputs.merged, memory, _WORKING_BYTES * len(everything))
    if total > most:
        pieces = _sampled(sizes, most / total, pieces)
    read = dict.fromkeys(sizes, 0)
    grams = {name: np.zeros((len(everything),) * 2) for name in sizes}
    bad: set[str] = set()
    results: list[tuple[str, int, np.ndarray, int]] = []

    def work(piece: Piece) -> None:
        rows = np.empty((len(everything), piece.size), np.float32)
        nbytes = 0
        for i, checkpoint in enumerate(everything):
            numbers = np.empty(piece.size, checkpoint.tensors[piece.name].dtype)
            checkpoint.read_into(piece.name, piece.start, numbers)
            with np.errstate(all="ignore"):
                if numbers.dtype.kind == "c":
                    numbers = np.abs(numbers)
                rows[i] = numbers.astype(np.float32)
            nbytes += numbers.nbytes
        rows[1:] -= rows[0]
        if not np.isfinite(rows).all():
            bad.add(piece.name)
        results.append((piece.name, piece.size, _products(rows), nbytes))

    run(pieces, work, workers=inputs.workers, memory=memory - inputs.held)
    for name, count, gram, _ in results:
        read[name] += count
        grams[name] += gram
    scaled = {n: grams[n] * (sizes[n] / read[n]) for n in sizes if read[n]}
    share = sum(read.values()) / max(total, 1)
    return scaled, share, sorted(bad), sum(nbytes for *_, nbytes in results)


def _products(rows: np.ndarray) -> np.ndarray:
    """Multiply rows with each other, in float64 over short blocks of float32 sums."""
    with np.errstate(all="ignore"):
        total = np.zeros((len(rows),) * 2)
        for at in range(0, rows.shape[1], _SAMPLE):
            block = rows[:, at : at + _SAMPLE]
            total += block @ block.T
    return total


def _sampled(sizes: Mapping[str, int], share: float, pieces: list[Piece]) -> list[Piece]:
    """Take short pieces spread evenly over each tensor."""
    cost = {piece.name: piece.cost / max(piece.size, 1) for piece in pieces}
    found = []
    for name, total in sizes.items():
        count = max(1, round(total * share / _SAMPLE))
        length = min(_SAMPLE, total)
        if count * length >= total:
            count, length = 1, total
        starts = np.linspace(0, total - length, count).astype(int)
        price = math.ceil(cost.get(name, 0) * length)
        found += [Piece(name, int(start), length, price) for start in starts]
    return [piece for piece in found if piece.size]


def _norms(inputs: Inputs, grams: dict[str, np.ndarray], share: float) -> dict[str, Any]:
    names = inputs.names
    gram = np.sum(list(grams.values()), axis=0)
    # Scales that start as ones are alike in all networks, so only matrices are compared.
    matrices = [g for n, g in grams.items() if len(inputs.base.tensors[n].shape) > 1]
    compared = np.sum(matrices or list(grams.values()), axis=0)
    square, dots, changes = compared[0, 0], compared[0, 1:], np.diagonal(compared)[1:]
    near = compare_with_base(names, np.stack([np.full_like(dots, square), dots, changes]))
    lengths = np.sqrt(np.maximum(np.diag(gram), 0))
    base, vectors = lengths[0], lengths[1:]
    with np.errstate(all="ignore"):
        cosine = gram[1:, 1:] / np.outer(vectors, vectors)
        relative = vectors / base
    rows = {}
    for i, name in enumerate(names):
        kind = (
            "is the base"
            if vectors[i] <= _COPIED * base
            else "shared"
            if name not in near.strangers
            else "another?"
        )
        rows[name] = {
            "norm": float(vectors[i]),
            "relative_norm": float(relative[i]),
            "cosine_with_base": near.cosines[i],
            "shares_base": kind,
        }
    return {
        "base_norm": float(base),
        "experts": rows,
        "cosine": [[None if np.isnan(x) else float(x) for x in row] for row in cosine],
        "share_read": share,
    }


def _verdicts(norms: dict[str, Any]) -> list[str]:
    rows, notes = norms["experts"], []
    names = list(rows)
    for i, name in enumerate(names):
        if rows[name]["shares_base"] == "is the base":
            notes.append(f"{name!r} is the same as the base: its coefficient does nothing.")
        if rows[name]["shares_base"] == "another?":
            alike = [
                other
                for j, other in enumerate(names)
                if i != j and (norms["cosine"][i][j] or 0) > _ALIKE
            ]
            why = f" It points the way of {', '.join(map(repr, alike))}: is the base of "
            notes.append(
                f"{name!r} is hardly like the base (cosine "
                f"{rows[name]['cosine_with_base']:.2f}): it does not look fine-tuned from it, "
                "and merges of it are seldom any good."
                + (f"{why}these another one?" if alike else "")
            )
        for j in range(i):
            cosine = norms["cosine"][i][j]
            if cosine is not None and cosine > 1 - 1e-6:
                notes.append(f"{names[j]!r} and {name!r} have the same direction.")
    return notes


def _plan(inputs: Inputs, memory: int, rate: float | None) -> dict[str, Any]:
    zeros = np.zeros(len(inputs.experts))
    order = schedule(inputs, Recipe(zeros, None, False, None), memory)
    plan = make_plan(inputs, (order.pieces,), memory, inputs.base.nbytes)
    nbytes = plan.bytes_read + plan.bytes_written
    return {
        "num_merged": len(plan.merged),
        **dataclasses.asdict(plan),
        "seconds": nbytes / rate if rate else None,
    }
