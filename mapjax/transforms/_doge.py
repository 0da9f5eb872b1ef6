"""Adaptive projective gradient descent: one correction that serves all tasks."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._algebra import matmul, norms, side_by_side, singular
from mapjax._checks import check_count
from mapjax._jit import jit
from mapjax._tensors import edit_tensors
from mapjax._types import widened
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import (
    check_density,
    check_positive,
    check_share,
)
from mapjax.transforms._descent import adam
from mapjax.transforms._matrices import InputAxes, Shape, edit_matrices, matrix_shapes
from mapjax.transforms._order_statistics import counts, thresholds


def doge(
    task_vectors: TaskVectors,
    *,
    scale: float = 0.07,
    density: float = 0.3,
    num_steps: int = 400,
    learning_rate: float = 1e-4,
    shared: float = 1 / 6,
    input_axes: InputAxes = "leading",
) -> TaskVectors:
    r"""Correct all vectors by one that brings the merge close to every task (DOGE).

    Per matrix, with $\lambda_i = \eta / \|\tau_i\|$, Adam finds the $\Delta$ that minimises
    $\sum_j \sum_o \langle \tau_j, \tau_j - \sum_i \lambda_i (\tau_i + \Delta) \rangle_o^2$,
    a first-order estimate of what task $j$ loses, output by output. Gradients are projected
    off the outputs that the tasks share: the top $r / 6$ directions of their stacked top
    $r / N$ singular vectors. Task $i$ keeps $\lambda_i (\tau_i + \Delta)$ where
    $|\tau_i|$ is among its largest over all matrices. Other tensors stay at the base, as in
    the published code.

    Needs nothing but the vectors. Costs two decompositions, and `num_steps` passes over the
    matrices. When tasks conflict strongly. Coefficients of one give the published merge;
    $\lambda_i$ already evens out the norms, so equal coefficients tune $\eta$.

    Args:
        task_vectors: The base and the vectors.
        scale: $\eta$, the norm of every task's update of every matrix; 0.07 is for the
            matrices of CLIP, so raise it for models whose updates are larger.
        density: Share of the entries of each task that are kept, in (0, 1].
        num_steps: Steps of Adam, at least 0, where $\Delta$ is zero.
        learning_rate: Of Adam, positive: an entry of $\Delta$ moves by at most about
            `num_steps * learning_rate`.
        shared: Share of the singular directions that are shared and so left alone, from 0
            to 1.
        input_axes: Which axes of a tensor are its inputs, `"trailing"` for equinox; see
            `mapjax.transforms.InputAxes`.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If an argument is out of its range or there is no matrix.

    References:
        Wei et al., *Modeling Multi-Task Model Merging as Adaptive Projective Gradient
        Descent*, ICML 2025, arXiv 2501.01230.
    """
    check_positive("scale", scale, "the paper's 0.07")
    check_density(density)
    check_count("num_steps", num_steps, 0)
    check_positive("learning_rate", learning_rate, "the paper's 1e-4")
    check_share("shared", shared, "the paper's 1 / 6")
    shapes = matrix_shapes(task_vectors, input_axes, "doge")
    places = tuple(shapes.values())
    numbers = [jnp.asarray(x) for x in (scale, num_steps, learning_rate)]

    def edit(vectors: list[Array]) -> list[Array]:
        pairs = zip(vectors, places, strict=True)
        matrices = [v for v, shape in pairs if shape is not None]
        kept = counts(matrices, density, "global")
        return _doge(vectors, places, float(shared), kept, *numbers)

    return edit_tensors(task_vectors, edit)


@jit
def _doge(
    vectors: list[Array],
    shapes: tuple[Shape | None, ...],
    shared: float,
    kept: list[Array],
    scale: Array,
    num_steps: Array,
    learning_rate: Array,
) -> list[Array]:
    def edit(m: Float[Array, "tasks inputs outputs"]) -> Array:
        norm = norms(m, (1, 2))
        # An expert like the base has nothing to say, and no norm to be scaled by.
        weights = jnp.where(norm > 0, scale / jnp.where(norm > 0, norm, 1), 0)
        weights = weights.astype(m.dtype)
        total = jnp.sum(weights[:, None, None] * m, 0)
        basis = _shared_outputs(m, shared)

        def gradient(delta: Float[Array, "1 inputs outputs"]) -> Array:
            merged = total + jnp.sum(weights) * delta[0]
            loss = jnp.sum(m * (m - merged), 1)  # of every task and output
            g = -2 * jnp.sum(weights) * jnp.sum(loss[:, None] * m, 0)
            return (g - matmul(matmul(g, basis), basis.mT))[None]

        delta = adam(gradient, jnp.zeros_like(m[:1]), num_steps, learning_rate)
        return weights[:, None, None] * (m + delta)

    edited = edit_matrices(vectors, shapes, edit, jnp.zeros_like)
    matrices = [i for i, shape in enumerate(shapes) if shape is not None]
    least = thresholds([vectors[i] for i in matrices], kept)
    for i, t in zip(matrices, least, strict=True):
        edited[i] = jnp.where(jnp.abs(widened(vectors[i])) >= t, edited[i], 0)
    return edited


def _shared_outputs(
    m: Float[Array, "tasks inputs outputs"], shared: float
) -> Float[Array, "outputs directions"]:
    """Find the directions of the outputs that the tasks have in common."""
    rank = min(m.shape[1:])
    right = singular(m).top(max(1, rank // len(m))).right
    # The share is one of sixths and the like: do not lose a direction to its rounding.
    return singular(side_by_side(right)).top(int(rank * shared + 1e-6)).left
