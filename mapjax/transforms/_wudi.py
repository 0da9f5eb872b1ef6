"""WUDI: the merge that interferes least with what each task's update reads."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mapjax._algebra import apart, matmul, norms, side_by_side, solve
from mapjax._checks import check_count
from mapjax._jit import jit
from mapjax._tensors import edit_tensors
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_positive
from mapjax.transforms._descent import adam
from mapjax.transforms._matrices import (
    InputAxes,
    Shape,
    edit_matrices,
    matrix_shapes,
    mean_parts,
)


def wudi(
    task_vectors: TaskVectors, *, ridge: float = 0.01, input_axes: InputAxes = "leading"
) -> TaskVectors:
    r"""Minimise the interference with every task in closed form (WUDI).

    The rows of an update span the inputs that it was trained on, so that
    $S_i = \tau_i \tau_i^\top / \|\tau_i\|^2$ (with kernels $[in, out]$) stands for a task's
    second moments of the inputs. The $\tau$ that minimises
    $\sum_i \|\tau_i^\top (\tau - \tau_i)\|^2 / \|\tau_i\|^2
    + \epsilon \|\tau - \sum_i \tau_i\|^2$ is the sum of
    $(\sum_j S_j + \epsilon)^{-1} (S_i + \epsilon) \tau_i$, which is what task $i$ keeps. It
    is RegMean with moments taken from the updates themselves. Other tensors are averaged.

    Needs nothing but the vectors. Costs one solve for each matrix, of the smaller of its
    inputs and its outputs times tasks. For many tasks without data. Coefficients of one
    give the minimum that the published run moves towards; see `wudi_descent` for that run.
    A single expert is returned as it is.

    Args:
        task_vectors: The base and the vectors.
        ridge: $\epsilon$ as a multiple of the mean eigenvalue of $\sum_i S_i$, positive.
            Large values give the plain sum.
        input_axes: Which axes of a tensor are its inputs, `"trailing"` for equinox; see
            `mapjax.transforms.InputAxes`.

    Returns:
        Task vectors whose sum is the minimum.

    Raises:
        ValueError: If `ridge` is not positive or there is no matrix.

    References:
        Cheng et al., *Whoever Started the Interference Should End It: Guiding Data-Free
        Model Merging via Task Vectors*, ICML 2025, arXiv 2503.08099.
    """
    check_positive("ridge", ridge, "0.01")
    shapes = matrix_shapes(task_vectors, input_axes, "wudi")
    return edit_tensors(task_vectors, _wudi, tuple(shapes.values()), jnp.asarray(ridge))


def wudi_descent(
    task_vectors: TaskVectors,
    *,
    num_steps: int = 300,
    learning_rate: float = 1e-5,
    input_axes: InputAxes = "leading",
) -> TaskVectors:
    r"""Take a few steps of Adam from the sum towards the least interference (WUDI).

    The published run, on the objective of `wudi` without a ridge. The gradient is the sum
    of $2 (\sum_j S_j \rho_i - S_i \tau_i)$ over the parts $\rho_i$ of the tasks, which start
    as $\tau_i$ and each take their own share of every step. Other tensors are averaged.

    Needs nothing but the vectors. Costs two products of each matrix with its moments, per
    task and step. Take `wudi` first: there is no step to tune. An entry moves by at most
    about `num_steps * learning_rate`, 0.003 by default, so that updates larger than those
    of big models need larger steps. Coefficients of one give the published merge.

    Args:
        task_vectors: The base and the vectors.
        num_steps: At least 0, where it gives the plain sum.
        learning_rate: Of Adam, positive.
        input_axes: Which axes of a tensor are its inputs, `"trailing"` for equinox; see
            `mapjax.transforms.InputAxes`.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If `num_steps` is negative, `learning_rate` is not positive, or there is
            no matrix.

    References:
        Cheng et al., ICML 2025, arXiv 2503.08099, Algorithm 1.
    """
    check_count("num_steps", num_steps, 0)
    check_positive("learning_rate", learning_rate, "the paper's 1e-5")
    shapes = matrix_shapes(task_vectors, input_axes, "wudi_descent")
    steps = jnp.asarray(num_steps), jnp.asarray(learning_rate)
    return edit_tensors(task_vectors, _wudi_descent, tuple(shapes.values()), *steps)


@jit
def _wudi(
    vectors: list[Array], shapes: tuple[Shape | None, ...], ridge: Array
) -> list[Array]:
    def edit(m: Float[Array, "tasks inputs outputs"]) -> Array:
        num_tasks, num_inputs, num_outputs = m.shape
        n, roots = root_moments(m)
        # Every S_i has trace one, or zero where there is no update. A penalty below the
        # rounding of the largest eigenvalue would not make the matrix definite.
        trace = jnp.maximum(jnp.sum(n > 0), 1).astype(m.dtype)
        least = 4 * jnp.finfo(m.dtype).eps
        epsilon = jnp.maximum(ridge.astype(m.dtype) / num_inputs, least) * trace
        # Less what the others do: tau_i - (S + e)^-1 (S - S_i) tau_i, with S the sum, loses
        # fewer digits, and none where there are no others.
        if num_inputs <= num_tasks * num_outputs:

            def meet(moments: Array, task: tuple[Array, ...]) -> tuple[Array, Array]:
                norm, update, found = task
                root = update / jnp.where(norm > 0, norm, 1)
                return moments + matmul(root, root.T), found + matmul(moments, update)

            # Those before a task and those after it: a difference would lose digits.
            start = jnp.zeros_like(m, shape=(num_inputs, num_inputs))
            total, found = lax.scan(meet, start, (n, m, jnp.zeros_like(m)))
            _, found = lax.scan(meet, start, (n, m, found), reverse=True)
            penalty = epsilon * jnp.eye(num_inputs, dtype=m.dtype)
            return m - solve(total + penalty, found)
        # With A A' = S, (A A' + e)^-1 A F = A (A' A + e)^-1 F, and A F is S - S_i times
        # tau_i for an F of A' tau_i but for zeros in the block of task i.
        a = side_by_side(roots)
        inner = matmul(a.T, a)
        f = apart(inner, num_tasks) * n[:, None, None]
        f = f.reshape(num_tasks, num_tasks, num_outputs, num_outputs)
        f = jnp.where(jnp.eye(num_tasks, dtype=bool)[:, :, None, None], 0, f)
        penalty = epsilon * jnp.eye(len(inner), dtype=m.dtype)
        f = f.reshape(num_tasks, len(inner), num_outputs)
        return m - matmul(a, solve(inner + penalty, f))

    return edit_matrices(vectors, shapes, edit, mean_parts)


@jit
def _wudi_descent(
    vectors: list[Array],
    shapes: tuple[Shape | None, ...],
    num_steps: Array,
    learning_rate: Array,
) -> list[Array]:
    def edit(m: Float[Array, "tasks inputs outputs"]) -> Array:
        num_tasks, num_inputs, num_outputs = m.shape
        _, roots = root_moments(m)
        own = matmul(roots, matmul(roots.mT, m))  # S_i tau_i
        a = side_by_side(roots)
        small = num_inputs <= num_tasks * num_outputs
        moments = matmul(a, a.T) if small else None

        def gradient(parts: Array) -> Array:
            if moments is None:
                return 2 * (matmul(a, matmul(a.T, parts)) - own)
            return 2 * (matmul(moments, parts) - own)

        return adam(gradient, m, num_steps, learning_rate)

    return edit_matrices(vectors, shapes, edit, mean_parts)


def root_moments(m: Array) -> tuple[Array, Array]:
    """Compute norms, and each update divided by its norm, whose square is S_i."""
    n = norms(m, (1, 2))
    # An expert like the base weighs nothing.
    return n, m / jnp.where(n > 0, n, 1)[:, None, None]
