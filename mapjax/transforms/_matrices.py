"""Which tensors are matrices, and rules that edit matrices in batches of one shape."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mapjax._tensors import tensors
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

AT_ONCE = 2**24
"""Matrices of one shape are decomposed together while they hold no more numbers."""


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
    found = {
        path: _matrix_shape(path, v[0], input_axes)
        for path, v in tensors(task_vectors).items()
    }
    if not any(found.values()):
        shapes = {path: v.shape[1:] for path, v in tensors(task_vectors).items()}
        raise ValueError(
            f"`{rule}` edits matrices, but no tensor is one: {shapes}. Use an elementwise "
            "transform, or an `input_axes` that finds the matrices."
        )
    return found


def _matrix_shape(path: str, v: Array, input_axes: InputAxes) -> Shape | None:
    if v.ndim < 2 or v.size == 0 or not jnp.issubdtype(v.dtype, jnp.floating):
        return None
    if callable(input_axes):
        axes = tuple(input_axes(path, v.shape))
        if len(set(axes)) != len(axes) or not set(axes) < set(range(v.ndim)):
            raise ValueError(
                f"`input_axes` gave {axes} for leaf {path} of shape {v.shape}: give some, "
                f"but not all, of the axes 0 to {v.ndim - 1}, or () to leave it out."
            )
    elif input_axes == "leading":
        axes = tuple(range(v.ndim - 1))
    else:
        axes = tuple(range(1, v.ndim))
    return matrix_shape(v.shape, axes) if axes else None


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
    data: Sequence[Any] | None = None,
) -> list[Array]:
    """Edit each matrix by one rule and each other tensor by another.

    Matrices of equal shape make one batch, so that a program has one decomposition for each
    shape. Large ones run one after the other, which keeps the factors of one in memory.

    Args:
        vectors: Of every tensor `[tasks, ...]`.
        shapes: How each is a matrix.
        edit: From matrices in float32 at least, and what `data` holds for them, to matrices.
        others: From vectors of any other tensor, in float32 at least, to vectors.
        data: What else belongs to each tensor, a pytree; not read where it is no matrix.
    """
    groups: dict[Any, list[int]] = {}
    edited: list[Any] = [None] * len(vectors)
    for i, (v, shape) in enumerate(zip(vectors, shapes, strict=True)):
        if shape is None:
            edited[i] = others(widened(v)).astype(v.dtype)
        else:
            groups.setdefault((shape[1:], v.dtype), []).append(i)
    for members in groups.values():
        chosen = [(shape, i) for i in members if (shape := shapes[i]) is not None]
        matrices = jnp.stack([to_matrices(vectors[i], shape) for shape, i in chosen])
        extra = [data[i] for i in members] if data is not None else [()] * len(members)
        extra = jax.tree.map(lambda *x: jnp.stack(x), *extra)

        def one(given: Any) -> Array:
            m, extra = given
            return edit(widened(m), *extra).astype(m.dtype)

        results = _batched(one, (matrices, extra), matrices.size)
        for k, (shape, i) in enumerate(chosen):
            edited[i] = from_matrices(results[k], vectors[i], shape)
    return edited


def _batched(one: Callable[[Any], Array], given: Any, size: int) -> Array:
    """Apply a rule to the matrices of one shape, together if that is safe and fits."""

    def each(given: Any) -> Array:
        return lax.map(one, given)

    # On the CPU decompositions must not be batched: see `_algebra.svd`.
    together = jax.vmap(one) if size <= AT_ONCE else each
    return lax.platform_dependent(given, cpu=each, default=together)


def mean_parts(v: Float[Array, "tasks ..."]) -> Float[Array, "tasks ..."]:
    """Give every task its share of the mean of the vectors."""
    return v / v.shape[0]
