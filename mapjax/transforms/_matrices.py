"""Which tensors are matrices, and rules that edit matrices in batches of one shape."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._tensors import kept_tensors, map_by_shape
from mapjax._types import widened
from mapjax.task_vectors import TaskVectors

InputAxes = Literal["leading", "trailing"] | Callable[[str, tuple[int, ...]], Sequence[int]]
"""Which axes of a tensor are a layer's inputs; all the others are its outputs.

`"leading"`: all but the last, as in flax, where a dense kernel is `[in, out]` and a
convolution `[height, width, in, out]`. `"trailing"`: all but the first, as in equinox and
PyTorch. Or a function from a key path and a shape to the axes, such as `(0,)` for a query
kernel `[in, heads, features]`, and `()` for a tensor that is not to be edited as a matrix.
"""

Axes = tuple[int, ...]


class Shape(NamedTuple):
    """How one tensor is a matrix."""

    axes: Axes
    num_inputs: int
    num_outputs: int

    @property
    def rank(self) -> int:
        """The most singular values that a matrix of this shape can have."""
        return min(self.num_inputs, self.num_outputs)


def matrix_shapes(
    task_vectors: TaskVectors, input_axes: InputAxes, rule: str
) -> dict[str, Shape | None]:
    """Say of every tensor how it is a matrix, None if it is none.

    Tensors with fewer than two axes, without entries or with complex ones are none.

    Args:
        task_vectors: The base and the vectors.
        input_axes: See `InputAxes`.
        rule: The name of the caller, for messages.

    Raises:
        ValueError: If `input_axes` is no known word, names axes that a tensor lacks, or no
            tensor is a matrix.
    """
    if not callable(input_axes) and input_axes not in ("leading", "trailing"):
        raise ValueError(
            f"`input_axes` is {input_axes!r}: pass 'leading' for kernels [in, out] as in "
            "flax, 'trailing' for [out, in] as in equinox, or a function of a key path and "
            "a shape that gives the input axes."
        )
    kept = kept_tensors(task_vectors)
    found = {
        path: _matrix_shape(path, v.shape[1:], v.dtype, input_axes)
        for path, v in kept.items()
    }
    if not any(found.values()):
        shapes = {path: v.shape[1:] for path, v in kept.items()}
        raise ValueError(
            f"`{rule}` edits matrices, but no tensor is one: {shapes}. Use an elementwise "
            "transform, or an `input_axes` that finds the matrices."
        )
    return found


def _matrix_shape(
    path: str, shape: tuple[int, ...], dtype: Any, input_axes: InputAxes
) -> Shape | None:
    if len(shape) < 2 or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        return None
    every = range(len(shape))
    if callable(input_axes):
        axes = tuple(input_axes(path, shape))
        if len(set(axes)) != len(axes) or not set(axes) < set(every):
            raise ValueError(
                f"`input_axes` gave {axes} for leaf {path} of shape {shape}: give some, "
                f"but not all, of the axes 0 to {every[-1]}, or () to leave it out."
            )
    else:
        axes = tuple(every[:-1] if input_axes == "leading" else every[1:])
    return matrix_shape(shape, axes) if axes else None


def matrix_shape(shape: tuple[int, ...], axes: Axes) -> Shape:
    """Read a tensor of the given shape as a matrix with these axes as its rows."""
    num_inputs = math.prod(shape[a] for a in axes)
    return Shape(axes, num_inputs, math.prod(shape) // num_inputs)


def to_matrices(v: Array, shape: Shape) -> Float[Array, "tasks inputs outputs"]:
    """Turn vectors `[tasks, ...]` of one tensor into matrices."""
    return v.transpose(_order(v.ndim, shape)).reshape(
        -1, shape.num_inputs, shape.num_outputs
    )


def from_matrices(
    m: Float[Array, "tasks inputs outputs"], like: Array, shape: Shape
) -> Array:
    """Turn matrices back into vectors like the ones they come from."""
    order = _order(like.ndim, shape)
    back = sorted(range(like.ndim), key=order.__getitem__)
    return m.reshape([like.shape[a] for a in order]).transpose(back)


def _order(ndim: int, shape: Shape) -> list[int]:
    outputs = [a for a in range(ndim - 1) if a not in shape.axes]
    return [0, *(a + 1 for a in shape.axes), *(a + 1 for a in outputs)]


def edit_matrices(
    vectors: list[Array],
    shapes: tuple[Shape | None, ...],
    edit: Callable[..., Float[Array, "tasks inputs outputs"]],
    others: Callable[[Array], Array],
    data: Sequence[tuple[Array, ...] | None] | None = None,
) -> list[Array]:
    """Edit each matrix by one rule and each other tensor by another.

    A program has one decomposition for each shape; see `map_by_shape`.

    Args:
        vectors: Of every tensor `[tasks, ...]`.
        shapes: How each is a matrix.
        edit: From matrices in float32 at least, and what `data` holds for them, to matrices.
        others: From vectors of any other tensor, in float32 at least, to vectors.
        data: What else belongs to each tensor, arrays; not read where it is no matrix.
    """
    found = [(i, shape) for i, shape in enumerate(shapes) if shape is not None]
    columns: list[Sequence[Array]] = [
        [to_matrices(vectors[i], shape) for i, shape in found]
    ]
    if data is not None:
        columns += zip(*(data[i] for i, _ in found), strict=True)

    def one(m: Array, *extra: Array) -> Array:
        return edit(widened(m), *extra).astype(m.dtype)

    results = map_by_shape(one, *columns)
    edited = {
        i: from_matrices(m, vectors[i], shape)
        for (i, shape), m in zip(found, results, strict=True)
    }
    return [
        edited[i] if i in edited else others(widened(v)).astype(v.dtype)
        for i, v in enumerate(vectors)
    ]


def mean_parts(v: Float[Array, "tasks ..."]) -> Float[Array, "tasks ..."]:
    """Give every task its share of the mean of the vectors."""
    return v / v.shape[0]
