"""Means weighted by curvature: closed forms with the coefficients in the denominator."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._algebra import matmul, side_by_side, solve
from mapjax._tensors import map_by_shape
from mapjax._types import widened
from mapjax.rules._rule import MergeRule, dense, weighted_sum
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_positive, check_share
from mapjax.transforms._given import PerTask, each_task
from mapjax.transforms._gram import match_grams
from mapjax.transforms._matrices import (
    InputAxes,
    Shape,
    from_matrices,
    matrix_shapes,
    to_matrices,
)
from mapjax.transforms._regmean import damped, equilibrate
from mapjax.transforms._weighted import read_weights
from mapjax.transforms._wudi import root_moments


def fisher_mean(task_vectors: TaskVectors, fishers: PerTask) -> MergeRule:
    r"""Average the experts entry by entry, by coefficient times Fisher information.

    $\theta_0 + \sum_i c_i F_i v_i / \sum_i c_i F_i$, the maximum of the preference-weighted
    sum of the experts' Gaussian log-posteriors; where all $c_i F_i$ are zero, the average
    by coefficients alone.

    Needs the diagonal Fisher information of every expert: see `mapjax.transforms.fisher`.
    Costs three passes over the vectors, and keeps the Fisher information. With ones it is
    the sum of `mapjax.transforms.fisher_weighted`.

    Args:
        task_vectors: The base and the vectors.
        fishers: For each expert, by name or in order, a tree like the parameters with
            non-negative weights.

    Returns:
        The rule; see `MergeRule` for what coefficients mean.

    Raises:
        ValueError: If the names, key paths or shapes are not those of the experts, or a
            weight is negative, NaN or infinite.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), [jnp.ones(2), 3 * jnp.ones(2)])
        >>> rule = fisher_mean(tv, [jnp.ones(2), jnp.array([0.0, 1.0])])
        >>> rule([1.0, 3.0])
        Array([1. , 2.5], dtype=float32)

    References:
        Matena and Raffel, *Merging Models with Fisher-Weighted Averaging*, NeurIPS 2022,
        arXiv 2111.09832, Eq. 4.
    """
    task_vectors = dense(task_vectors)
    rows = read_weights(task_vectors, fishers, "fishers")
    data = [_relative(jnp.stack([widened(f) for f in row])) for row in rows]
    return MergeRule(task_vectors, data, _fisher, (None,) * len(data))


def regmean_mean(
    task_vectors: TaskVectors, grams: PerTask, *, off_diagonal: float = 0.9
) -> MergeRule:
    r"""Find the kernels that best reproduce the experts' layers, weighted by coefficients.

    $\theta_0 + (\sum_i c_i G_i)^{-1} \sum_i c_i G_i v_i$, which minimises
    $\sum_i c_i \|X_i (W - W_i)\|^2$. Input units that are always zero are averaged by
    coefficients, and so are all tensors without a Gram matrix.

    Needs the Gram matrices of every expert's inputs: see `mapjax.transforms.gram_matrices`.
    Costs a solve for each kernel and merge. With ones it is the sum of
    `mapjax.transforms.regmean`.

    Args:
        task_vectors: The base and the vectors.
        grams: For each expert, by name or in order, what `gram_matrices` gives for its own
            parameters and inputs.
        off_diagonal: Factor on off-diagonal entries, from 0 (weights per input unit) to 1.

    Returns:
        The rule; see `MergeRule` for what coefficients mean.

    Raises:
        ValueError: If the names are not those of the experts, Gram matrices do not fit the
            kernels or are not finite, or `off_diagonal` is outside [0, 1].

    References:
        Jin et al., *Dataless Knowledge Fusion by Merging Weights of Language Models*, ICLR
        2023, arXiv 2212.09849, Eq. 2 and Section 3.2.
    """
    check_share("off_diagonal", off_diagonal, "the paper's 0.9")
    task_vectors = dense(task_vectors)
    shapes, found = match_grams(task_vectors, each_task(task_vectors, grams, "grams"))
    scaled = [None if g is None else damped(g[0], off_diagonal) for g in found]
    data = scaled, jnp.asarray(1 - off_diagonal)
    return MergeRule(task_vectors, data, _regmean, shapes)


def wudi_mean(
    task_vectors: TaskVectors, *, ridge: float = 0.01, input_axes: InputAxes = "leading"
) -> MergeRule:
    r"""Interfere least with what each task's update reads, weighted by coefficients.

    $\theta_0 + (\sum_i c_i S_i + \epsilon)^{-1} \sum_i c_i (S_i + \epsilon) v_i$ for
    coefficients that sum to one, with $S_i = v_i v_i^\top / \|v_i\|^2$ (kernels
    $[in, out]$): `regmean_mean` with moments taken from the updates themselves. The ridge
    pulls to the average by coefficients. Other tensors are averaged.

    Needs nothing but the vectors. Costs a solve for each matrix and merge, of the smaller
    of its inputs and its outputs times tasks.

    Args:
        task_vectors: The base and the vectors.
        ridge: $\epsilon$ as a multiple of the mean eigenvalue of $\sum_i c_i S_i$, positive.
        input_axes: Which axes of a tensor are its inputs, `"trailing"` for equinox; see
            `mapjax.transforms.InputAxes`.

    Returns:
        The rule; see `MergeRule` for what coefficients mean.

    Raises:
        ValueError: If `ridge` is not positive or there is no matrix.

    References:
        Cheng et al., *Whoever Started the Interference Should End It: Guiding Data-Free
        Model Merging via Task Vectors*, ICML 2025, arXiv 2503.08099.
    """
    check_positive("ridge", ridge, "0.01")
    task_vectors = dense(task_vectors)
    shapes = tuple(matrix_shapes(task_vectors, input_axes, "wudi_mean").values())
    return MergeRule(task_vectors, jnp.asarray(ridge), _wudi, shapes)


def _relative(f: Float[Array, "tasks ..."]) -> Float[Array, "tasks ..."]:
    # Only proportions matter. They are to the least, since products of tiny numbers would
    # be flushed to zero beside a large one whose expert may have no weight; and what is
    # 1e18 times the least has all of the mean, and derivatives that are finite.
    positive = f >= jnp.finfo(f.dtype).tiny
    least = jnp.min(jnp.where(positive, f, jnp.inf), axis=0, keepdims=True)
    return jnp.minimum(f / least, 1e18)


def _fisher(
    weights: list[Array],
    bases: list[Array],
    vectors: list[Array],
    fishers: list[Array],
    shapes: tuple,
) -> list[Array]:
    def edit(w: Float[Array, " tasks"], v: Array, f: Array) -> Array:
        # The mean by coefficients, and what curvature adds to it: for a single expert
        # that is an exact zero.
        mean = weighted_sum(w, v)
        total = weighted_sum(w, f)
        added = weighted_sum(w, f * (v - mean)) / jnp.where(total > 0, total, 1)
        return mean + jnp.where(total > 0, added, 0)

    return [edit(*each) for each in zip(weights, vectors, fishers, strict=True)]


def _regmean(
    weights: list[Array], bases: Any, vectors: list[Array], data: Any, shapes: tuple
) -> list[Array]:
    grams, least = data

    def edit(
        w: Float[Array, " tasks"], m: Float[Array, "tasks inputs outputs"], g: Array
    ) -> Array:
        mean = weighted_sum(w, m)
        scale, _, definite = equilibrate(weighted_sum(w, g), least)
        towards = scale[:, None] * weighted_sum(w, matmul(g, m - mean))
        return mean + scale[:, None] * solve(definite, towards[None])[0]

    return _edit(weights, vectors, shapes, edit, grams)


def _wudi(
    weights: list[Array], bases: Any, vectors: list[Array], ridge: Array, shapes: tuple
) -> list[Array]:
    def edit(w: Float[Array, " tasks"], m: Float[Array, "tasks inputs outputs"]) -> Array:
        num_tasks, num_inputs, num_outputs = m.shape
        mean = weighted_sum(w, m)
        norms, roots = root_moments(m)
        # Every S_i has trace one, or zero where there is no update. A penalty below the
        # rounding of the largest eigenvalue would not make the matrix definite.
        trace = jnp.sum(jnp.where(norms > 0, w, 0))
        least = 4 * jnp.finfo(m.dtype).eps
        epsilon = jnp.maximum(ridge.astype(m.dtype) / num_inputs, least)
        epsilon = epsilon * jnp.where(trace > 0, trace, 1)
        # With A the roots side by side and W the weights of their columns, the sum of the
        # c_i S_i is A W A', and that of the c_i S_i (v_i - mean) is A W F.
        a = side_by_side(roots)
        columns = jnp.repeat(w.astype(m.dtype), num_outputs)
        f = matmul(roots.mT, m - mean).reshape(num_tasks * num_outputs, num_outputs)
        f = columns[:, None] * f
        if num_inputs <= num_tasks * num_outputs:
            definite = matmul(a * columns, a.T) + epsilon * jnp.eye(num_inputs)
            return mean + solve(definite, matmul(a, f)[None])[0]
        # (A W A' + e)^-1 A = A (W A' A + e)^-1, which is the smaller one here.
        inner = columns[:, None] * matmul(a.T, a) + epsilon * jnp.eye(len(columns))
        return mean + matmul(a, jnp.linalg.solve(inner, f))

    return _edit(weights, vectors, shapes, edit)


def _edit(
    weights: list[Array],
    vectors: list[Array],
    shapes: tuple[Shape | None, ...],
    edit: Callable[..., Float[Array, "inputs outputs"]],
    *data: Sequence[Any],
) -> list[Array]:
    """Merge matrices by a rule, those of one shape together, and average other tensors."""
    found = [(i, shape) for i, shape in enumerate(shapes) if shape is not None]
    matrices = [to_matrices(vectors[i], shape) for i, shape in found]
    others = [[column[i] for i, _ in found] for column in (weights, *data)]
    results = map_by_shape(edit, others[0], matrices, *others[1:])
    merged = {
        i: from_matrices(m[None], vectors[i][:1], shape)[0]
        for (i, shape), m in zip(found, results, strict=True)
    }
    return [
        merged[i] if i in merged else weighted_sum(w, v)
        for i, (w, v) in enumerate(zip(weights, vectors, strict=True))
    ]
