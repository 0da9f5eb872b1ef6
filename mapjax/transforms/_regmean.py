"""Regression means: the merge whose layers answer as the experts' layers do."""

from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax.task_vectors import TaskVectors
from mapjax.transforms._algebra import matmul, solve
from mapjax.transforms._checks import check_share
from mapjax.transforms._given import PerTask, each_task
from mapjax.transforms._matrices import Shape, edit_matrices, matrix_shape, mean_parts
from mapjax.transforms._operands import Gram
from mapjax.transforms._tensors import replace_tensors, tensors


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
    shapes, data = _kernels(task_vectors, given)
    edited = _regmean(
        list(tensors(task_vectors).values()), shapes, data, jnp.asarray(off_diagonal)
    )
    return replace_tensors(task_vectors, edited)


def _kernels(
    task_vectors: TaskVectors, given: list[Mapping[str, Gram]]
) -> tuple[tuple[Shape | None, ...], list[tuple[Array] | None]]:
    """Match Gram matrices with tensors, or say which does not fit."""
    named = tensors(task_vectors)
    for name, grams in zip(task_vectors.names, given, strict=True):
        for path in [p for p in grams if p not in named]:
            raise ValueError(
                f"`grams` of expert {name!r} has a Gram matrix for {path}, which is not "
                f"merged; merged are {list(named)}. Pass `gram_matrices` the same tree as "
                "`TaskVectors.from_params`, or drop this entry."
            )
    shapes: list[Shape | None] = []
    data: list[tuple[Array] | None] = []
    for path, v in named.items():
        found = [grams.get(path) for grams in given]
        present = [gram for gram in found if gram is not None]
        if not present:
            shapes.append(None)
            data.append(None)
            continue
        for name, gram in zip(task_vectors.names, found, strict=True):
            if gram is None:
                raise ValueError(
                    f"`grams` of expert {name!r} has no Gram matrix for {path}, but those "
                    "of other experts have. Compute all with the same `predict`."
                )
            valid = set(gram.axes) <= set(range(v.ndim - 1))
            shape = matrix_shape(v.shape[1:], gram.axes) if valid else None
            wanted = shape and (shape.num_inputs,) * 2
            if gram.axes != present[0].axes or gram.matrix.shape != wanted:
                raise ValueError(
                    f"`grams` of expert {name!r} has a Gram matrix of shape "
                    f"{gram.matrix.shape} for the axes {gram.axes} of {path}, whose shape is "
                    f"{v.shape[1:]}; expected is {wanted} for axes {present[0].axes}. "
                    "Compute all with the same `predict` from the experts themselves."
                )
        shapes.append(matrix_shape(v.shape[1:], present[0].axes))
        data.append((jnp.stack([gram.matrix for gram in present]),))
    return tuple(shapes), data


@eqx.filter_jit
def _regmean(
    vectors: list[Array],
    shapes: tuple[Shape | None, ...],
    data: list[tuple[Array] | None],
    off_diagonal: Array,
) -> list[Array]:
    def edit(
        m: Float[Array, "tasks inputs outputs"], g: Float[Array, "tasks inputs inputs"]
    ) -> Array:
        num_tasks, size, _ = m.shape
        eye = jnp.eye(size, dtype=m.dtype)
        factor = off_diagonal.astype(m.dtype)
        g = g.astype(m.dtype) * (factor + (1 - factor) * eye)
        total = jnp.sum(g, 0)
        diagonal = jnp.diagonal(total)
        alive = diagonal > 0
        # With a unit diagonal the least eigenvalue is 1 - factor at least; what that lacks
        # to the rounding of the largest is added, and pulls to the mean.
        scale = jnp.where(alive, 1 / jnp.sqrt(jnp.where(alive, diagonal, 1)), 1)
        floor = jnp.maximum(0, 2 * size * jnp.finfo(m.dtype).eps - (1 - factor))
        pull = jnp.where(alive, floor * diagonal, 1)
        own = matmul(g, m) + pull[:, None] / num_tasks * m
        definite = scale[:, None] * (total + jnp.diag(pull)) * scale
        return scale[:, None] * solve(definite, scale[:, None] * own)

    return edit_matrices(vectors, shapes, edit, mean_parts, data)
