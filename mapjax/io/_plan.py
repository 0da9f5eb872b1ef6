"""What a merge of files will do, found before anything is read or written."""

import dataclasses
from collections.abc import Sequence

from mapjax._sizes import room_for
from mapjax.io._inputs import Inputs

LARGEST_PIECE = 2**20
"""Numbers; larger pieces were not faster, and smaller ones cost more calls."""

_SMALLEST_PIECE = 2**12
# What a transform may take beside its vectors, in float32 vectors of all experts.
_WORKING_COPIES = 4


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """What a merge will do, and what it takes.

    Attributes:
        merged: The names of the tensors that are merged.
        left_alone: The names of those taken from the base as they are, and why.
        peak_memory: The most bytes of memory that numbers will take at any moment, beside
            Python and JAX themselves. An estimate where a transform of your own works on
            whole tensors, as what it needs is not known: four copies are assumed.
        bytes_read: How many bytes will be read.
        bytes_written: How many bytes will be written.
    """

    merged: tuple[str, ...]
    left_alone: dict[str, str]
    peak_memory: int
    bytes_read: int
    bytes_written: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """Numbers of one flattened tensor that are merged at once.

    Attributes:
        name: The tensor.
        start: The first number.
        size: How many.
        cost: How many bytes of memory that takes.
    """

    name: str
    start: int
    size: int
    cost: int


def cut(
    inputs: Inputs,
    names: Sequence[str],
    memory: int,
    extra: int,
    multiple: int = 1,
    taken: int = 0,
) -> list[Piece]:
    """Cut tensors into pieces of which as many as there are workers fit into memory.

    Args:
        inputs: What is merged.
        names: The tensors.
        memory: The bound, in bytes.
        extra: Bytes per number that are needed beside what is read and written.
        multiple: Pieces begin at multiples of this many numbers.
        taken: Bytes that something else takes, beside what the inputs hold.

    Raises:
        ValueError: If even the smallest pieces do not fit.
    """
    each = {name: _bytes_per_number(inputs, name) + extra for name in names}
    smallest = max(_SMALLEST_PIECE, multiple)
    size = max(LARGEST_PIECE, multiple)
    worst = max(each.values(), default=0)
    taken += inputs.held
    while size > smallest and taken + inputs.workers * size * worst > memory:
        size //= 2
    needed = taken + inputs.workers * size * worst
    if needed > memory:
        raise ValueError(
            f"`memory` is {memory} bytes, but at least {needed} are needed for "
            f"{len(inputs.experts)} experts.{_held(inputs)}"
        )
    pieces = []
    for name in names:
        total = inputs.base.tensors[name].size
        pieces += [
            Piece(
                name, at, min(size, total - at), bucket(min(size, total - at)) * each[name]
            )
            for at in range(0, total, size)
        ]
    return pieces


def whole(inputs: Inputs, names: Sequence[str], memory: int) -> list[Piece]:
    """Take tensors whole, for a transform that looks at all of one.

    Raises:
        ValueError: If one does not fit into memory.
    """
    pieces = []
    for name in names:
        size, sums = inputs.base.tensors[name].size, inputs.sums(name).itemsize
        if not size:
            continue
        vectors = len(inputs.experts) * sums * (1 + _WORKING_COPIES)
        cost = size * (_bytes_per_number(inputs, name) + vectors + 2 * sums)
        if inputs.held + cost > memory:
            raise ValueError(
                f"`memory` is {memory} bytes, but a transform of the whole tensor {name!r} "
                f"takes about {inputs.held + cost}. Allow more, or say `elementwise=True` of a "
                "transform that treats each number on its own; `mapjax.io.TIES` needs little "
                f"memory.{_held(inputs)}"
            )
        pieces.append(Piece(name, 0, size, cost))
    return pieces


def make_plan(
    inputs: Inputs, passes: Sequence[Sequence[Piece]], memory: int, written: int
) -> MergePlan:
    """Say what a merge takes that does these passes, one after the other."""
    return MergePlan(
        merged=inputs.merged,
        left_alone=inputs.left_alone,
        peak_memory=max(_peak(inputs, pieces, memory) for pieces in passes),
        bytes_read=sum(c.nbytes for c in (inputs.base, *inputs.experts)),
        bytes_written=written,
    )


def _peak(inputs: Inputs, pieces: Sequence[Piece], memory: int) -> int:
    """Say how much memory the pieces take when the most costly of them meet."""
    worst = sorted((piece.cost for piece in pieces), reverse=True)[: inputs.workers]
    return min(memory, inputs.held + sum(worst))


def bucket(size: int) -> int:
    """Round up to one of few sizes, so that few programs are compiled."""
    return room_for(size, _SMALLEST_PIECE)


def _held(inputs: Inputs) -> str:
    if not inputs.held:
        return ""
    return (
        f" Of these {inputs.held} are for arrays that an .npz file holds in Fortran's order: "
        "save them by `numpy.ascontiguousarray` to need less."
    )


def _bytes_per_number(inputs: Inputs, name: str) -> int:
    read = sum(c.tensors[name].dtype.itemsize for c in (inputs.base, *inputs.experts))
    return read + inputs.rounded(name).itemsize
