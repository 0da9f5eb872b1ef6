"""WIDEN: weigh inputs by how much their magnitude and direction changed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._algebra import norms
from mapjax._jit import jit
from mapjax._tensors import base_tensors, edit_each, edit_tensors
from mapjax._types import widened
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_number, check_real
from mapjax.transforms._matrices import (
    InputAxes,
    Shape,
    from_matrices,
    matrix_shapes,
    to_matrices,
)
from mapjax.transforms._order_statistics import ranks


def widen(
    task_vectors: TaskVectors,
    *,
    ratio: float = 1.0,
    score: float = 1.0,
    input_axes: InputAxes = "leading",
) -> TaskVectors:
    r"""Weigh each input of a layer by how much each expert changed it (WIDEN).

    A weight is split into the norm of what leaves each input, its magnitude, and that
    divided by the norm, its direction. For each expert the changes of both (the difference
    of magnitudes, one minus the cosine of directions) are ranked over the inputs. A rank
    becomes a score: its softmax over the experts, or `score` where it is above `ratio`
    times the expert's mean rank. Task $i$ keeps $\tau_i$ times the mean of both scores.
    Entries of other tensors are weighed in the same way by their own change.

    Needs nothing but the vectors. Costs a pass over the base and the vectors, and a sort of
    the inputs. For experts that were trained for very different lengths of time, whose
    changes differ in size. Coefficients of one give WIDEN.

    Args:
        task_vectors: The base and the vectors.
        ratio: $t$ of the paper: how far above the mean a rank is important.
        score: $s$ of the paper: the score of an important rank.
        input_axes: Which axes of a tensor are its inputs; see
            `mapjax.transforms.InputAxes`.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If a number is not finite, a tensor complex, or none is a matrix.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> base, change = jnp.eye(2), jnp.array([[0.0, 0.0], [3.0, 0.0]])
        >>> tv = mj.TaskVectors.from_params(base, [base + change, base])
        >>> mj.merge(mj.transforms.widen(tv), [1.0, 1.0])
        Array([[1., 0.],
               [3., 1.]], dtype=float32)

    References:
        Yu et al., *Extend Model Merging from Fine-Tuned to Pre-Trained Large Language
        Models via Weight Disentanglement*, 2024, arXiv 2408.03092.
    """
    check_number("ratio", ratio)
    check_number("score", score)
    check_real(task_vectors, "widen")
    shapes = matrix_shapes(task_vectors, input_axes, "widen")
    ratio_and_score = jnp.asarray([ratio, score], jnp.float32)
    others = base_tensors(task_vectors), ratio_and_score, tuple(shapes.values())
    return edit_tensors(task_vectors, _widen, *others)


@jit
def _widen(
    vectors: list[Array],
    bases: list[Array],
    ratio_and_score: Array,
    shapes: tuple[Shape | None, ...],
) -> list[Array]:
    ratio, score = ratio_and_score

    def scores(change: Array, important: Array) -> Array:
        return jnp.where(important, score, jax.nn.softmax(change, axis=0))

    def rank_scores(change: Float[Array, "tasks inputs"]) -> Float[Array, "tasks inputs"]:
        size = change.shape[1]
        rank = ranks(change).astype(change.dtype)
        # The mean rank, written so that rounding does not decide about the middle one.
        return scores(rank / size, rank > ratio * (size - 1) / 2)

    def edit(v: Array, base: Array, shape: Shape | None) -> Array:
        if shape is None:
            change = jnp.abs(v)
            mean = jnp.mean(change, axis=range(1, v.ndim), keepdims=True)
            return v * scores(change, change > ratio * mean)
        base = widened(base)
        old, new = (to_matrices(x, shape) for x in (base[None], base + v))
        (old_magnitude, old), (new_magnitude, new) = _disentangle(old), _disentangle(new)
        # One minus the cosine of unit vectors, without cancellation for close ones.
        turn = jnp.sum((new - old) ** 2, axis=2) / 2
        # Where a row is zero the cosine is: all such rows turn alike.
        turn = jnp.where((old_magnitude > 0) & (new_magnitude > 0), turn, 1)
        growth = jnp.abs(new_magnitude - old_magnitude)
        rows = to_matrices(v, shape)
        changed = jnp.any(rows != 0, axis=2)  # else rounding would rank what is equal
        growth, turn = (jnp.where(changed, change, 0) for change in (growth, turn))
        weights = (rank_scores(growth) + rank_scores(turn)) / 2
        return from_matrices(rows * weights[..., None], v, shape)

    return edit_each(vectors, edit, bases, shapes)


def _disentangle(
    w: Float[Array, "tasks inputs outputs"],
) -> tuple[Float[Array, "tasks inputs"], Float[Array, "tasks inputs outputs"]]:
    """Split rows into norms and directions; a row of zeros has the direction zero."""
    magnitude = norms(w, 2)
    return magnitude, w / jnp.where(magnitude > 0, magnitude, 1)[..., None]
