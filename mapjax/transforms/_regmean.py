"""Regression means: the merge whose layers answer as the experts' layers do."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._algebra import matmul, solve
from mapjax._jit import jit
from mapjax._tensors import edit_tensors
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_share
from mapjax.transforms._given import PerTask, each_task
from mapjax.transforms._gram import match_grams
from mapjax.transforms._matrices import Shape, edit_matrices, mean_parts


def regmean(
    task_vectors: TaskVectors, grams: PerTask, *, off_diagonal: float = 0.9
) -> TaskVectors:
    r"""Find the kernels that reproduce every expert's layers on its own inputs (RegMean).

    The $W$ that minimises $\sum_i \|X_i (W - W_i)\|^2$ is
    $\theta_0 + (\sum_j G_j)^{-1} \sum_i G_i \tau_i$ with $G_i = X_i^\top X_i$ (kernels
    $[in, out]$). Task $i$ keeps $(\sum_j G_j)^{-1} G_i \tau_i$. Off-diagonal entries of the
    $G_i$ are scaled down. Input units that are always zero are averaged, and so are all
    tensors without a Gram matrix.

    Needs unlabelled inputs of every task, some hundreds: see `gram_matrices`. Costs a solve
    for each kernel. A strong choice whenever inputs are at hand. Coefficients of one give
    RegMean with equally weighted tasks; a single expert is returned as it is.

    Args:
        task_vectors: The base and the vectors.
        grams: For each expert, by name or in order, what `gram_matrices` gives for its own
            parameters and inputs.
        off_diagonal: Factor on off-diagonal entries, from 0 (weights per input unit) to 1
            (plain least squares, which overfits few inputs).

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If the names are not those of the experts, a Gram matrix belongs to no
            kernel, is missing for one expert or has another shape, or `off_diagonal` is
            outside [0, 1]. The key path is named.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> def predict(params, x):
        ...     return x @ params
        >>> experts = [jnp.ones((2, 1)), 3 * jnp.ones((2, 1))]
        >>> inputs = [jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])]
        >>> tv = mj.TaskVectors.from_params(jnp.zeros((2, 1)), experts)
        >>> grams = [
        ...     mj.transforms.gram_matrices(predict, e, x)
        ...     for e, x in zip(experts, inputs, strict=True)
        ... ]
        >>> mj.merge(mj.transforms.regmean(tv, grams), [1.0, 1.0])
        Array([[1.],
               [3.]], dtype=float32)

    References:
        Jin et al., *Dataless Knowledge Fusion by Merging Weights of Language Models*, ICLR
        2023, arXiv 2212.09849, Eq. 2 and Section 3.2.
    """
    check_share("off_diagonal", off_diagonal, "the paper's 0.9")
    given = each_task(task_vectors, grams, "grams")
    shapes, data = match_grams(task_vectors, given)
    return edit_tensors(task_vectors, _regmean, shapes, data, jnp.asarray(off_diagonal))


@jit
def _regmean(
    vectors: list[Array],
    shapes: tuple[Shape | None, ...],
    data: list[tuple[Array] | None],
    off_diagonal: Array,
) -> list[Array]:
    def edit(
        m: Float[Array, "tasks inputs outputs"], g: Float[Array, "tasks inputs inputs"]
    ) -> Array:
        g = damped(g.astype(m.dtype), off_diagonal)
        scale, pull, definite = equilibrate(jnp.sum(g, 0), 1 - off_diagonal)
        own = matmul(g, m) + (pull / scale**2)[:, None] / len(m) * m
        return scale[:, None] * solve(definite, scale[:, None] * own)

    return edit_matrices(vectors, shapes, edit, mean_parts, data)


def damped(g: Float[Array, "tasks inputs inputs"], factor: Array | float) -> Array:
    """Scale the off-diagonal entries of Gram matrices."""
    factor = jnp.asarray(factor, g.dtype)
    return g * (factor + (1 - factor) * jnp.eye(g.shape[1], dtype=g.dtype))[None]


def equilibrate(
    total: Float[Array, "inputs inputs"], least: Array
) -> tuple[Float[Array, " inputs"], Float[Array, " inputs"], Float[Array, "inputs inputs"]]:
    """Scale a sum of Gram matrices to a unit diagonal, and make it safely definite.

    Args:
        total: The sum. Rows of inputs that are always zero are zero.
        least: What its least eigenvalue is with a unit diagonal, at least.

    Returns:
        The factor of every row and column, what was then added to the diagonal, and the
        result. What is added pulls to the mean: what `least` lacks to the rounding of the
        largest eigenvalue, and one for inputs that are always zero.
    """
    diagonal = jnp.diagonal(total)
    alive = diagonal > 0
    scale = jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, diagonal, 1)), 1)
    rounding = 2 * len(total) * jnp.finfo(total.dtype).eps
    lack = jnp.maximum(0, rounding - least).astype(total.dtype)
    pull = jnp.where(alive, lack, 1)
    return scale, pull, scale[:, None] * total * scale + jnp.diag(pull)
