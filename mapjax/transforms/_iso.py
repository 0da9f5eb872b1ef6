"""Isotropic merging: every direction of the merged update counts the same."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._algebra import (
    Singular,
    apart,
    largest,
    matmul,
    norms,
    polar,
    side_by_side,
    singular,
)
from mapjax._jit import jit
from mapjax._tensors import edit_tensors
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_share
from mapjax.transforms._matrices import (
    InputAxes,
    Shape,
    edit_matrices,
    matrix_shapes,
    mean_parts,
)


def iso_c(task_vectors: TaskVectors, *, input_axes: InputAxes = "leading") -> TaskVectors:
    r"""Give all singular directions of the summed vectors the same weight (Iso-C).

    With $\sum_i \tau_i = U \Sigma V^\top$ the merge is $\bar\sigma U V^\top$, where
    $\bar\sigma$ is the mean singular value. Task $i$ keeps its share
    $\bar\sigma \sum_k w_{ik} u_k v_k^\top$ of it, with
    $w_{ik} \propto \|\tau_i v_k\|^2 + \|\tau_i^\top u_k\|^2$ and $\sum_i w_{ik} = 1$: how
    much of its update lies in a direction. (Parts linear in $\tau_i$,
    $\bar\sigma \tau_i V \Sigma^{-1} V^\top$, have the same sum, but grow without bound where
    tasks cancel.) Other tensors are averaged. Directions that no task has stay empty.

    Needs nothing but the vectors. Costs one decomposition of each matrix. For tasks with
    much in common. Coefficients of one give Iso-C; the paper then tunes one factor on all
    of them, and so do equal coefficients. A single expert is flattened as well.

    Args:
        task_vectors: The base and the vectors.
        input_axes: Which axes of a tensor with more than two are its inputs; see
            `mapjax.transforms.InputAxes`.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If there is no matrix.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> a, b = jnp.diag(jnp.array([3.0, 0.0])), jnp.diag(jnp.array([0.0, 1.0]))
        >>> tv = mj.TaskVectors.from_params(jnp.zeros((2, 2)), [a, b])
        >>> mj.merge(mj.transforms.iso_c(tv), [1.0, 1.0]).round()
        Array([[2., 0.],
               [0., 2.]], dtype=float32)

    References:
        Marczak et al., *No Task Left Behind: Isotropic Model Merging with Common and
        Task-Specific Subspaces*, ICML 2025, arXiv 2502.04959, Algorithm 1.
    """
    shapes = matrix_shapes(task_vectors, input_axes, "iso_c")
    return edit_tensors(task_vectors, _iso, tuple(shapes.values()), 1.0)


def iso_cts(
    task_vectors: TaskVectors, *, common: float = 0.8, input_axes: InputAxes = "leading"
) -> TaskVectors:
    r"""Add directions of single tasks to the common ones, all with one weight (Iso-CTS).

    The top $k$ singular directions of $\sum_i \tau_i$ are kept. The others give way to the
    top $(r - k) / N$ of each $\tau_i$ with the common outputs projected out, and all $r$
    are made orthogonal and weighted by their mean singular value. Task $i$ keeps its own
    directions, and of each common one a share as in `iso_c`. Other tensors are averaged.

    Needs nothing but the vectors. Costs one decomposition of each matrix of each task and
    three more. For many or dissimilar tasks, where `iso_c` loses the small ones.
    Coefficients of one give Iso-CTS.

    Args:
        task_vectors: The base and the vectors.
        common: Share of the directions that are common, from 0 to 1. What is left is
            divided evenly, the remainder going to the common ones; 1 gives `iso_c`.
        input_axes: Which axes of a tensor are its inputs; see
            `mapjax.transforms.InputAxes`. Here it matters for matrices as well.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If `common` is outside [0, 1] or there is no matrix.

    References:
        Marczak et al., ICML 2025, arXiv 2502.04959, Algorithm 2.
    """
    check_share("common", common, "the paper's 0.8")
    shapes = matrix_shapes(task_vectors, input_axes, "iso_cts")
    return edit_tensors(task_vectors, _iso, tuple(shapes.values()), float(common))


@jit
def _iso(
    vectors: list[Array], shapes: tuple[Shape | None, ...], common: float
) -> list[Array]:
    def edit(m: Float[Array, "tasks inputs outputs"]) -> Array:
        num_tasks, num_inputs, num_outputs = m.shape
        rank = min(num_inputs, num_outputs)
        # As published: rounded to the nearest, but never more than there is room for.
        own = min(round((rank - int(rank * common)) / num_tasks), rank // num_tasks)
        shared = singular(jnp.sum(m, 0)).top(rank - num_tasks * own)
        rest = m - matmul(matmul(m, shared.right), shared.right.mT)
        single = singular(rest, scale=norms(m, (1, 2))).top(own)
        mean = (jnp.sum(single.values) + jnp.sum(shared.values)) / rank

        u_own, u = _orthogonalise(single.left, shared.left)
        v_own, v = _orthogonalise(single.right, shared.right)
        weighted = u * _shares(m, shared)[:, None, :]
        return mean * (matmul(u_own, v_own.mT) + matmul(weighted, v.mT))

    return edit_matrices(vectors, shapes, edit, mean_parts)


def _orthogonalise(own: Array, shared: Array) -> tuple[Array, Array]:
    """Make the directions of all tasks and the common ones orthogonal to one another."""
    if own.shape[-1] == 0:  # the common ones are orthogonal already
        return own, shared
    stacked = polar(jnp.concatenate([side_by_side(own), shared], axis=1))
    singles, shared = jnp.split(stacked, [stacked.shape[1] - shared.shape[1]], axis=1)
    return apart(singles, len(own)), shared


def _shares(
    m: Float[Array, "tasks inputs outputs"], d: Singular
) -> Float[Array, "tasks rank"]:
    """Say how much of each direction is each task's."""
    m = m / largest(m, (0, 1, 2))
    energy = jnp.sum(matmul(m, d.right) ** 2, 1) + jnp.sum(matmul(m.mT, d.left) ** 2, 1)
    total = jnp.sum(energy, 0)
    return jnp.where(total > 0, energy / jnp.where(total > 0, total, 1), 0)
