"""Sequential merging: every task is projected off the directions merged before it."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mapjax._algebra import matmul, norms_over, singular
from mapjax._jit import jit
from mapjax._tensors import edit_tensors
from mapjax._types import widened
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_share
from mapjax.transforms._matrices import InputAxes, Shape, edit_matrices, matrix_shapes


def opcm(
    task_vectors: TaskVectors, *, alpha: float = 0.5, input_axes: InputAxes = "leading"
) -> TaskVectors:
    r"""Merge one task after the other, each projected off what is there (OPCM).

    With the sum of the tasks so far $U \Sigma V^\top$, a new $\tau_t$ loses the entries
    $u_i^\top \tau_t v_j$ with $i = j$, and those with $i, j \le r$, where the top $r$
    singular values are the fewest that make up the share $\alpha$. At the end all tasks are
    scaled by one number, so that the norm of the merged update is the mean norm of the
    tasks'. Other tensors are summed and scaled. (Rescaling after every task, as the paper
    writes it, cancels but for the last.)

    Needs nothing but the vectors, and their order: earlier tasks keep more. Costs one
    decomposition of each matrix for each task. For models that arrive one by one.
    Coefficients of one give OPCM; a single expert is returned as it is.

    Args:
        task_vectors: The base and the vectors, in the order in which to merge them.
        alpha: From 0, where only the diagonal is removed, to 1.
        input_axes: Which axes of a tensor with more than two are its inputs; see
            `mapjax.transforms.InputAxes`.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If `alpha` is outside [0, 1] or there is no matrix.

    References:
        Tang et al., *Merging Models on the Fly Without Retraining: A Sequential Approach to
        Scalable Continual Model Merging*, NeurIPS 2025, arXiv 2501.09522, Algorithm 1.
    """
    check_share("alpha", alpha, "the paper's 0.5")
    shapes = matrix_shapes(task_vectors, input_axes, "opcm")
    return edit_tensors(task_vectors, _opcm, tuple(shapes.values()), jnp.asarray(alpha))


@jit
def _opcm(
    vectors: list[Array], shapes: tuple[Shape | None, ...], alpha: Array
) -> list[Array]:
    def add(total: Array, tau: Array) -> tuple[Array, Array]:
        u, s, v = singular(total)
        before = jnp.cumsum(s) - s
        top = (before < alpha.astype(s.dtype) * jnp.sum(s)) & (s > 0)
        removed = (top[:, None] & top) | jnp.eye(len(s), dtype=bool)
        common = jnp.where(removed, matmul(u.mT, matmul(tau, v)), 0)
        cleaned = tau - matmul(matmul(u, common), v.mT)
        return total + cleaned, cleaned

    def edit(m: Float[Array, "tasks inputs outputs"]) -> Array:
        return lax.scan(add, jnp.zeros_like(m[0]), m)[1]

    cleaned = edit_matrices(vectors, shapes, edit, lambda v: v)
    merged = [jnp.sum(widened(v), 0) for v in cleaned]
    norm = norms_over([v[None] for v in merged])[0]
    wanted = jnp.mean(norms_over(vectors))
    scale = jnp.where(norm > 0, wanted / jnp.where(norm > 0, norm, 1), 0)
    return [(widened(v) * scale).astype(v.dtype) for v in cleaned]
