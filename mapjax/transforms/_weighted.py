"""Means weighted entry by entry: by Fisher information, or by an optimizer's moments."""

from typing import Any

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from mapjax._jit import jit
from mapjax._tensors import edit_tensors, kept_tensors
from mapjax._types import widened
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_density
from mapjax.transforms._given import PerTask, each_task, weights_like
from mapjax.transforms._order_statistics import counts, thresholds


def fisher_weighted(task_vectors: TaskVectors, fishers: PerTask) -> TaskVectors:
    r"""Average the vectors entry by entry, weighted by Fisher information.

    Task $i$ keeps $F_i \tau_i / \sum_j F_j$; where all $F_j$ are zero it keeps
    $\tau_i / N$. The published code adds a floor of 1e-6 to every $F_i$, which for large
    models is more than most of their entries; here there is none.

    Needs the diagonal Fisher information of every expert, from labelled examples: see
    `fisher`. Costs a pass over the vectors, besides one gradient per example. When there
    are labels and weights matter entry by entry. Coefficients of one give Fisher merging,
    equal tasks; a single expert is returned as it is.

    Args:
        task_vectors: The base and the vectors.
        fishers: For each expert, by name or in order, a tree like the parameters with
            non-negative weights.

    Returns:
        Task vectors whose sum is the weighted mean.

    Raises:
        ValueError: If the names, key paths or shapes are not those of the experts, or a
            weight is negative, NaN or infinite.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), [jnp.ones(2), 3 * jnp.ones(2)])
        >>> weighted = mj.transforms.fisher_weighted(tv, [jnp.ones(2), jnp.array([0.0, 1.0])])
        >>> mj.merge(weighted, [1.0, 1.0])
        Array([1., 2.], dtype=float32)

    References:
        Matena and Raffel, *Merging Models with Fisher-Weighted Averaging*, NeurIPS 2022,
        arXiv 2111.09832, Eq. 4.
    """
    weights = read_weights(task_vectors, fishers, "fishers")
    return edit_tensors(task_vectors, _weigh, weights)


def ota(
    task_vectors: TaskVectors, second_moments: PerTask, *, density: float = 1.0
) -> TaskVectors:
    r"""Average the vectors entry by entry, weighted by Adam's second moments (OTA, FFG).

    Adam's running mean $\nu_i$ of squared gradients stands for the curvature that training
    met. Task $i$ keeps $\sqrt{\nu_i}\, m_i \tau_i / \sum_j \sqrt{\nu_j}$, where the mask
    $m_i$ keeps the entries with the largest saliency $\nu_i \tau_i^2$ of the whole model
    (fast Fisher grafting). Where all $\nu_j$ are zero it keeps $m_i \tau_i / N$.

    Needs the optimizer states of the experts' training: see `second_moments`. Costs about
    a few passes over the vectors, or 1 with `density=1`. When checkpoints come with optimizer
    states, as nothing has to be run. Coefficients of one give OTA.

    Args:
        task_vectors: The base and the vectors.
        second_moments: For each expert, by name or in order, a tree like the parameters.
        density: Share of each expert's entries that are kept, in (0, 1]. The paper chooses
            it per expert as the least that keeps the expert's score, about 0.4.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If the names, key paths or shapes are not those of the experts, a moment
            is negative, NaN or infinite, or `density` is outside (0, 1].

    References:
        Mahdavinia et al., *Harnessing Optimization Dynamics for Curvature-Informed Model
        Merging*, 2025, arXiv 2509.11167.
    """
    check_density(density)
    moments = read_weights(task_vectors, second_moments, "second_moments")

    def edit(vectors: list[Array]) -> list[Array]:
        kept = None if density == 1 else counts(vectors, density, "global")
        return _ota(vectors, moments, kept)

    return edit_tensors(task_vectors, edit)


def read_weights(
    task_vectors: TaskVectors, given: PerTask, argument: str
) -> list[list[Array]]:
    """Find the weights of every task, for every tensor; traced values are not looked at.

    Raises:
        ValueError: If they do not fit the tensors, or one is negative, NaN or infinite. The
            expert and the key path are named.
    """
    weights = weights_like(task_vectors, each_task(task_vectors, given, argument), argument)
    for path, row in zip(kept_tensors(task_vectors), weights, strict=True):
        for name, w in zip(task_vectors.names, row, strict=True):
            if not isinstance(w, Tracer) and not bool(_are_weights(w)):
                raise ValueError(
                    f"`{argument}` of expert {name!r} has negative, NaN or infinite entries "
                    f"for leaf {path}, but means need weights of zero or more: compute them "
                    "again, or repair that leaf."
                )
    return weights


@jit
def _are_weights(w: Array) -> Any:
    return jnp.all((w >= 0) & jnp.isfinite(w))


@jit
def _ota(
    vectors: list[Array], moments: list[list[Array]], kept: list[Array] | None
) -> list[Array]:
    edited = _weigh(vectors, [[jnp.sqrt(widened(nu)) for nu in row] for row in moments])
    if kept is None:
        return edited
    # Its root has the same order, and does not underflow where both factors are small.
    saliency = [
        jnp.sqrt(widened(jnp.stack(row))) * jnp.abs(widened(v))
        for v, row in zip(vectors, moments, strict=True)
    ]
    return [
        jnp.where(s >= least, v, 0)
        for s, least, v in zip(saliency, thresholds(saliency, kept), edited, strict=True)
    ]


@jit
def _weigh(vectors: list[Array], weights: list[list[Array]]) -> list[Array]:
    return [
        (widened(v) * _shares(jnp.stack([widened(w) for w in row]))).astype(v.dtype)
        for v, row in zip(vectors, weights, strict=True)
    ]


def _shares(w: Float[Array, "tasks ..."]) -> Float[Array, "tasks ..."]:
    # Divided by the largest first: sums of tiny weights would be subnormal, and flushed.
    top = jnp.max(w, 0)
    w = jnp.where(top > 0, w / jnp.where(top > 0, top, 1), 1)
    return w / jnp.sum(w, 0)
