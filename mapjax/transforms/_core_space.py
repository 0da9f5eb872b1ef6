"""Transforms of low-rank vectors in a basis that all experts share."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from mapjax import _tree
from mapjax._algebra import apart, matmul, side_by_side
from mapjax._jit import jit
from mapjax._low_rank import LowRank
from mapjax.task_vectors import TaskVectors

_SMALLEST = 1e-5
"""Share of the largest singular value below which there is nothing but rounding."""

Transform = Callable[[TaskVectors], TaskVectors]


def core_space(task_vectors: TaskVectors, transform: Transform) -> TaskVectors:
    r"""Apply a transform to small cores of low-rank vectors.

    With orthonormal bases $U$ of all first factors and $V$ of all second ones, of up to
    $N r$ columns, $v_i = U M_i V^\top$ exactly, but for directions of
    factors below $10^{-5}$ of the largest among all experts. The transform edits the cores
    $M_i = U^\top v_i V$, at a cost that does not grow with the layer.

    Args:
        task_vectors: With `LowRank` leaves; dense ones go to the transform as they are.
        transform: Any that reads vectors alone: the base of a core is zeros.

    Returns:
        Vectors with `LowRank` leaves $U M'_i V^\top$, of rank $N r$ or as much as there is,
        in the same groups.

    Raises:
        ValueError: If no leaf is low-rank, or the transform returns other tensors.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> pair = jnp.ones((8, 1)), jnp.ones((1, 8))
        >>> tv = mj.from_lora(jnp.zeros((8, 8)), {"mnist": {"(root)": pair}})
        >>> core_space(tv, mj.transforms.ties).vectors.shape
        (1, 8, 8)

    References:
        Panariello et al., *Accurate and Efficient Low-Rank Model Merging in Core Space*,
        NeurIPS 2025, arXiv 2509.17786.
    """
    return _edit(task_vectors, transform, _to_cores)


def knots(task_vectors: TaskVectors, transform: Transform) -> TaskVectors:
    r"""Apply a transform to low-rank vectors where their left singular vectors are one.

    The differences side by side are $[v_1, \dots, v_N] = U S\, [V_1^\top, \dots,
    V_N^\top]$. The transform, TIES in the paper, edits the $V_i$.

    Args:
        task_vectors: With `LowRank` leaves; dense ones go to the transform as they are.
        transform: Any that reads vectors alone: the base of a $V_i$ is zeros.

    Returns:
        Vectors with `LowRank` leaves $U S V_i'^\top$, of rank $N r$ or as much as there is,
        in the same groups.

    Raises:
        ValueError: If no leaf is low-rank, or the transform returns other tensors.

    References:
        Stoica et al., *Model merging with SVD to tie the Knots*, ICLR 2025, arXiv
        2410.19735.
    """
    return _edit(task_vectors, transform, _to_aligned)


def _edit(
    task_vectors: TaskVectors,
    transform: Transform,
    enter: Callable[[LowRank], tuple[Array, Array, Array | None]],
) -> TaskVectors:
    """Transform small tensors in place of low-rank leaves, and put these back."""
    base, vectors, frames = {}, {}, {}
    places = _tree.values_up_to(task_vectors.base, task_vectors.vectors)
    leaves = _tree.leaves(task_vectors.base)
    for leaf, v in zip(leaves, places, strict=True):
        if isinstance(v, LowRank):
            small, *frames[leaf.path] = enter(v)
            base[leaf.path], vectors[leaf.path] = jnp.zeros(small.shape[1:]), small
        elif v is not None:
            base[leaf.path], vectors[leaf.path] = leaf.value, v
    if not frames:
        raise ValueError(
            "No leaf of the task vectors is low-rank. Make them with `from_lora` or "
            "`low_rank`, or apply the transform to the vectors themselves."
        )
    edited = transform(TaskVectors(base, vectors, task_vectors.names)).vectors
    shapes, kept = (
        {path: None if v is None else v.shape for path, v in each.items()}
        for each in (edited, vectors)
    )
    if shapes != kept:
        raise ValueError(
            f"`transform` returned vectors of shapes {shapes}, but was given {kept}: use one "
            "that keeps every tensor and expert."
        )
    merged = [
        _leave(v, edited[leaf.path], *frames[leaf.path])
        if leaf.path in frames
        else edited.get(leaf.path)
        for leaf, v in zip(leaves, places, strict=True)
    ]
    vectors = _tree.rebuild(task_vectors.base, merged)
    return TaskVectors(task_vectors.base, vectors, task_vectors.names, task_vectors.groups)


def _to_cores(v: LowRank) -> tuple[Array, Array, Array | None]:
    cores, left, right, *values = _cores(v)
    k, m = map(_rank, values)
    return cores[:, :k, :m], left[:, :k], right[:, :m].T


@jit
def _cores(v: LowRank) -> tuple[Array, ...]:
    a, b = v.matrices()
    (left, s), (right, t) = _left_basis(a), _left_basis(jnp.swapaxes(b, 1, 2))
    cores = matmul(matmul(left.T, a), matmul(b, right))
    return v.scale[:, None, None] * cores, left, right, s, t


def _to_aligned(v: LowRank) -> tuple[Array, Array, Array | None]:
    aligned, left, values = _aligned(v)
    k = _rank(values)
    return aligned[:, :k], left[:, :k], None


@jit
def _aligned(v: LowRank) -> tuple[Array, Array, Array]:
    a, b = v.matrices()
    (left, _), n = _left_basis(a), len(a)
    # Their columns hold all that the differences do: a small matrix to decompose.
    inside = v.scale[:, None, None] * matmul(matmul(left.T, a), b)
    u, s, aligned = jnp.linalg.svd(side_by_side(inside), full_matrices=False)
    return apart(aligned, n), matmul(left, u * s), s


@jit
def _leave(v: LowRank, edited: Array, left: Array, right: Array | None) -> LowRank:
    n = len(edited)
    if right is None:
        a, b = jnp.broadcast_to(left, (n, *left.shape)), edited
    else:
        a, b = matmul(left, edited), jnp.broadcast_to(right, (n, *right.shape))
    rows, columns = v.a.shape[:-1], v.b.shape[2:]
    return LowRank(
        a.reshape(*rows, -1).astype(v.a.dtype),
        b.reshape(n, -1, *columns).astype(v.b.dtype),
        jnp.ones_like(v.scale),
        v.error,
    )


def _rank(values: Array) -> int:
    """Count the singular values above rounding; under a JAX transform, all.

    Vectors of the others are arbitrary. A transform would edit them beside real ones, and
    trim fewer of those.
    """
    if isinstance(values, Tracer):
        return len(values)
    return max(1, int(np.sum(np.asarray(values) > _SMALLEST * np.max(values))))


def _left_basis(factors: Array) -> tuple[Array, Array]:
    """Give orthonormal columns that span those of all factors, and singular values.

    Args:
        factors: `[experts, side, rank]`.
    """
    u, s, _ = jnp.linalg.svd(side_by_side(factors), full_matrices=False)
    return u, s
