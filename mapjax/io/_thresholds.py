"""What a number must reach to be kept by TIES: the first pass over the files."""

from collections.abc import Callable

import numpy as np

from mapjax.io import _arithmetic as arithmetic
from mapjax.io._inputs import Inputs
from mapjax.io._plan import Piece, cut
from mapjax.io._recipe import read_piece
from mapjax.io._stream import run
from mapjax.io._ties import TIES, Histogram, kept, kth_largest

_COUNTING = 22  # bytes per number: its magnitude, its bin, and the copies on the way
_READING = 2**16  # numbers at a time, of what is then held as a whole


def first_pass(inputs: Inputs, ties: TIES, memory: int) -> list[list[Piece]]:
    """Cut what competes into pieces, those that compete with each other together.

    A tensor that fits is one piece; others, and the whole model, are counted in pieces.

    Raises:
        ValueError: If `memory` is too small.
    """
    taken = len(inputs.experts) * Histogram.nbytes
    names = [name for name in inputs.merged if inputs.base.tensors[name].size]
    if ties.scope == "global" and names:
        return [cut(inputs, names, memory, _COUNTING, taken=taken)]
    groups = []
    for name in names:
        pieces = cut(inputs, [name], memory, _COUNTING, taken=taken)
        cost = 4 * inputs.base.tensors[name].size + 64 * _READING
        fits = inputs.held + taken + inputs.workers * cost <= memory
        groups.append(
            [Piece(name, 0, inputs.base.tensors[name].size, cost)] if fits else pieces
        )
    return groups


def find_thresholds(
    inputs: Inputs, ties: TIES, groups: list[list[Piece]], memory: int
) -> dict[str, np.ndarray]:
    """Find for each tensor the smallest magnitude that is kept, per expert.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    found: dict[str, np.ndarray] = {}

    def alone(piece: Piece) -> None:
        found[piece.name] = np.array(
            [_exact(inputs, piece, i, ties) for i in range(len(inputs.experts))], np.float32
        )

    single = [group[0] for group in groups if _is_whole(inputs, group)]
    _run(inputs, single, alone, memory)
    for group in groups:
        if not _is_whole(inputs, group):
            least = _counted(inputs, group, ties, memory)
            found |= {piece.name: least for piece in group}
    return found


def _run(
    inputs: Inputs, pieces: list[Piece], work: Callable[[Piece], None], memory: int
) -> None:
    room = memory - inputs.held
    run(pieces, work, workers=inputs.workers, memory=room, doubles=inputs.doubles)


def _is_whole(inputs: Inputs, group: list[Piece]) -> bool:
    return len(group) == 1 and inputs.base.tensors[group[0].name].size == group[0].size


def _exact(inputs: Inputs, piece: Piece, expert: int, ties: TIES) -> float:
    values = np.empty(piece.size, np.float32)
    for start in range(0, piece.size, _READING):
        part = Piece(piece.name, start, min(_READING, piece.size - start), 0)
        values[start : start + part.size] = _magnitudes(inputs, part, expert)
    return kth_largest(values, kept(ties.density, piece.size))


def _counted(inputs: Inputs, pieces: list[Piece], ties: TIES, memory: int) -> np.ndarray:
    histograms = [Histogram() for _ in inputs.experts]
    k = kept(ties.density, sum(piece.size for piece in pieces))

    def count(piece: Piece) -> None:
        for i, histogram in enumerate(histograms):
            histogram.add(_magnitudes(inputs, piece, i))

    _run(inputs, pieces, count, memory)
    for histogram in histograms:
        histogram.narrow(k)
    _run(inputs, pieces, count, memory)
    return np.array([histogram.kth_largest(k) for histogram in histograms], np.float32)


def _magnitudes(inputs: Inputs, piece: Piece, expert: int) -> np.ndarray:
    base = read_piece(inputs.base, piece)
    other = read_piece(inputs.experts[expert], piece)
    sums = inputs.sums(piece.name)
    return np.asarray(arithmetic.magnitudes(base, other, sums))[: piece.size]
