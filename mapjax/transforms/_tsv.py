"""Task singular vectors: few directions of every task, made orthogonal to one another."""

from jaxtyping import Array, Float

from mapjax._algebra import apart, matmul, polar, side_by_side, singular
from mapjax._jit import jit
from mapjax._tensors import edit_tensors
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._matrices import (
    InputAxes,
    Shape,
    edit_matrices,
    matrix_shapes,
    mean_parts,
)


def tsv(
    task_vectors: TaskVectors, *, rank: int | None = None, input_axes: InputAxes = "leading"
) -> TaskVectors:
    r"""Keep the top singular vectors of every task and decorrelate them (TSV-M).

    Of each matrix $\tau_i = U_i \Sigma_i V_i^\top$ the top $k$ triplets are kept. The
    stacked $[U_1 \dots U_N]$ and $[V_1 \dots V_N]$ are replaced by their orthogonal polar
    factors $[\hat U_1 \dots \hat U_N]$ and $[\hat V_1 \dots \hat V_N]$, and task $i$ keeps
    $\hat U_i \Sigma_i \hat V_i^\top$. Tasks then share no direction, so that coefficients
    move one task with little effect on the others. Other tensors are averaged. Directions
    with a singular value of zero are dropped, where the published code would fill them in.

    Needs nothing but the vectors. Costs one decomposition of each matrix of each task and
    two of the stacked factors. A first choice for many tasks without data. Coefficients of
    one give TSV-M; a single expert is returned as it is.

    Args:
        task_vectors: The base and the vectors.
        rank: $k$, from 1 to the smaller side of the smallest matrix; by default, as in the
            paper, the smaller side of each matrix divided by the number of tasks, at least 1.
        input_axes: Which axes of a tensor with more than two are its inputs; see
            `mapjax.transforms.InputAxes`.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If `rank` is below 1 or beyond the shape of a matrix, or there is none.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> a, b = jnp.diag(jnp.array([2.0, 1.0])), jnp.diag(jnp.array([1.0, 3.0]))
        >>> tv = mj.TaskVectors.from_params(jnp.zeros((2, 2)), [a, b])
        >>> mj.merge(mj.transforms.tsv(tv), [1.0, 1.0]).round()
        Array([[2., 0.],
               [0., 3.]], dtype=float32)

    References:
        Gargiulo et al., *Task Singular Vectors: Reducing Task Interference in Model
        Merging*, CVPR 2025, arXiv 2412.00081, Algorithm 1.
    """
    shapes = matrix_shapes(task_vectors, input_axes, "tsv")
    if rank is not None:
        for path, shape in shapes.items():
            if shape is not None and not 1 <= rank <= shape.rank:
                raise ValueError(
                    f"`rank` is {rank}, but leaf {path} is a {shape.num_inputs} x "
                    f"{shape.num_outputs} matrix: pass 1 to {shape.rank}, or leave it out "
                    "for that rank divided by the number of tasks."
                )
    return edit_tensors(task_vectors, _tsv, tuple(shapes.values()), rank)


@jit
def _tsv(
    vectors: list[Array], shapes: tuple[Shape | None, ...], rank: int | None
) -> list[Array]:
    def edit(m: Float[Array, "tasks inputs outputs"]) -> Array:
        k = max(1, min(m.shape[1:]) // m.shape[0]) if rank is None else rank
        u, s, v = singular(m).top(k)
        u, v = orthogonalise(u), orthogonalise(v)
        return matmul(u * s[:, None, :], v.mT)

    return edit_matrices(vectors, shapes, edit, mean_parts)


def orthogonalise(
    blocks: Float[Array, "tasks side rank"],
) -> Float[Array, "tasks side rank"]:
    """Make the columns of all tasks orthogonal, changing them as little as possible."""
    return apart(polar(side_by_side(blocks)), len(blocks))
