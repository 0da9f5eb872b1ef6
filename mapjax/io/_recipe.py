"""What a streamed merge computes for each piece."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mapjax import _tree
from mapjax.io import _arithmetic as arithmetic
from mapjax.io._inputs import Inputs
from mapjax.io._plan import Piece, bucket, cut, whole
from mapjax.io._tensor import AbstractCheckpoint
from mapjax.io._ties import TIES
from mapjax.task_vectors import TaskVectors, merge

BLOCK = 2**18
"""What a transform of single numbers gets at once, whatever the memory."""

Compute = Callable[[Piece], np.ndarray]
"""From a piece to the numbers to write."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How vectors are edited and added; see `merge_files` for the fields."""

    coefficients: np.ndarray
    transform: Callable[..., Any] | TIES | None
    elementwise: bool
    key: Any


class Schedule(NamedTuple):
    """The pieces, in the order of the base's files."""

    pieces: list[Piece]
    copied: frozenset[str]


def schedule(inputs: Inputs, recipe: Recipe, memory: int) -> Schedule:
    """Cut all tensors.

    Raises:
        ValueError: If `memory` is too small.
    """
    if callable(recipe.transform) and not recipe.elementwise:
        pieces = whole(inputs, inputs.merged, memory)
    else:
        vectors = 0
        if recipe.transform is not None:
            width = max(inputs.sums(name).itemsize for name in inputs.merged)
            copies = 2 if isinstance(recipe.transform, TIES) else 5
            vectors = copies * (1 + len(inputs.experts)) * width
        block = BLOCK if recipe.elementwise else 1
        pieces = cut(inputs, inputs.merged, memory, vectors, block)
    pieces += cut(inputs, list(inputs.left_alone), memory, 0)
    place = {name: i for i, name in enumerate(inputs.base.tensors)}
    pieces.sort(key=lambda piece: (place[piece.name], piece.start))
    return Schedule(pieces, frozenset(inputs.left_alone))


def read_piece(
    checkpoint: AbstractCheckpoint, piece: Piece, padded: int | None = None
) -> np.ndarray:
    """Read numbers into a buffer that JAX takes as it is, filled up with zeros."""
    dtype = checkpoint.tensors[piece.name].dtype
    buffer = arithmetic.aligned(bucket(piece.size) if padded is None else padded, dtype)
    checkpoint.read_into(piece.name, piece.start, buffer[: piece.size])
    buffer[piece.size :].view(np.uint8)[:] = 0
    return buffer


def copied(inputs: Inputs, piece: Piece) -> np.ndarray:
    """Read numbers that are taken from the base.

    Raises:
        ValueError: If they are whole numbers of a matrix, and others in an expert: those of
            quantised parameters, whose scales alone would be merged.
    """
    base = read_piece(inputs.base, piece, piece.size)
    info = inputs.base.tensors[piece.name]
    whole_numbers = jnp.issubdtype(info.dtype, jnp.integer) and len(info.shape) > 1
    if whole_numbers and not _tree.why_left([piece.name], statistics=True):
        for expert in inputs.experts:
            if not np.array_equal(base, read_piece(expert, piece, piece.size)):
                raise ValueError(
                    f"Tensor {piece.name!r} holds whole numbers ({info.dtype}) that are others "
                    f"in {expert.path}, and such are not merged. If these checkpoints are "
                    "quantised, merge what they were quantised from; if not, give the expert "
                    "the numbers of the base."
                )
    return base


def compute(inputs: Inputs, recipe: Recipe, thresholds: dict[str, np.ndarray]) -> Compute:
    """Give the function that merges one piece."""
    if recipe.transform is None:
        return functools.partial(_linear, inputs, recipe)
    if isinstance(recipe.transform, TIES):
        return functools.partial(_ties, inputs, recipe, thresholds)
    if recipe.elementwise:
        return functools.partial(_blocks, inputs, recipe)
    return functools.partial(_whole, inputs, recipe)


def _read(inputs: Inputs, piece: Piece, padded: int | None = None) -> tuple[Any, list[Any]]:
    base = read_piece(inputs.base, piece, padded)
    return base, [read_piece(expert, piece, padded) for expert in inputs.experts]


def _linear(inputs: Inputs, recipe: Recipe, piece: Piece) -> np.ndarray:
    base, experts = _read(inputs, piece)
    sums, rounded = inputs.sums(piece.name), inputs.rounded(piece.name)
    merged, finite = arithmetic.linear(recipe.coefficients, base, experts, sums, rounded)
    _check_finite(bool(finite), piece)
    return np.asarray(merged)[: piece.size]


def _ties(
    inputs: Inputs, recipe: Recipe, thresholds: dict[str, np.ndarray], piece: Piece
) -> np.ndarray:
    base, experts = _read(inputs, piece)
    sums, rounded = inputs.sums(piece.name), inputs.rounded(piece.name)
    merged, finite = arithmetic.elected(
        recipe.coefficients, base, experts, thresholds[piece.name], sums, rounded
    )
    _check_finite(bool(finite), piece)
    return np.asarray(merged)[: piece.size]


def _whole(inputs: Inputs, recipe: Recipe, piece: Piece) -> np.ndarray:
    shape = inputs.base.tensors[piece.name].shape
    base, experts = _read(inputs, piece, piece.size)
    experts = [expert.reshape(shape) for expert in experts]
    base, vectors = arithmetic.differences(
        base.reshape(shape), experts, inputs.sums(piece.name)
    )
    key = _tensor_key(inputs, recipe, piece)
    return _edited(inputs, recipe, piece, base, vectors, key)


def _blocks(inputs: Inputs, recipe: Recipe, piece: Piece) -> np.ndarray:
    # Blocks are the same whatever the memory, and so are the random numbers in them.
    block = bucket(min(inputs.base.tensors[piece.name].size, BLOCK))
    padded = math.ceil(piece.size / block) * block
    base, experts = _read(inputs, piece, padded)
    merged = np.empty(padded, inputs.rounded(piece.name))
    key = _tensor_key(inputs, recipe, piece)
    for begin in range(0, padded, block):
        part = slice(begin, begin + block)
        wide, vectors = arithmetic.differences(
            base[part], [e[part] for e in experts], inputs.sums(piece.name)
        )
        own = (
            None if key is None else jax.random.fold_in(key, (piece.start + begin) // block)
        )
        merged[part] = _edited(inputs, recipe, piece, wide, vectors, own)
    return merged[: piece.size]


def _tensor_key(inputs: Inputs, recipe: Recipe, piece: Piece) -> Any:
    """Give each tensor its key."""
    if recipe.key is None:
        return None
    return jax.random.fold_in(recipe.key, inputs.places[piece.name])


def _edited(
    inputs: Inputs, recipe: Recipe, piece: Piece, base: Any, vectors: Any, key: Any
) -> np.ndarray:
    assert callable(recipe.transform)
    name = piece.name
    task_vectors = TaskVectors({name: base}, {name: vectors}, inputs.names)
    more = {} if key is None else {"key": key}
    edited = recipe.transform(task_vectors, **more)
    if not isinstance(edited, TaskVectors) or edited.num_tasks != len(inputs.names):
        raise ValueError(
            f"`transform` made {type(edited).__name__} of the vectors of {name!r}, but must "
            f"return `mapjax.TaskVectors` of the {len(inputs.names)} experts."
        )
    # Under one name for all: a program is compiled for each name.
    same = TaskVectors({"": edited.base[name]}, {"": edited.vectors[name]}, edited.names)
    merged = np.asarray(merge(same, recipe.coefficients)[""])
    if merged.shape != base.shape:
        raise ValueError(
            f"`transform` changed the shape of {name!r} from {base.shape} to {merged.shape}."
        )
    with np.errstate(all="ignore"):  # what overflows is found in the next line
        merged = merged.astype(inputs.rounded(name), copy=False)
    _check_finite(bool(np.isfinite(merged).all()), piece)
    return merged


def _check_finite(finite: bool, piece: Piece) -> None:
    if not finite:
        raise ValueError(
            f"Tensor {piece.name!r} holds NaN or infinite values in the base or in an expert, "
            "or gets them by the merge or as it is rounded. Repair that tensor, lower the "
            "coefficients, or pass a wider `dtype`."
        )
