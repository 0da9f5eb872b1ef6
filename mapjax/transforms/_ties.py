"""TIES: trim each task, elect signs, average what agrees."""

import jax.numpy as jnp
from jaxtyping import Array

from mapjax._jit import jit
from mapjax._tensors import edit_each, edit_tensors
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_density, check_real, check_scope
from mapjax.transforms._elect import disjoint_mean
from mapjax.transforms._order_statistics import Scope, counts, thresholds


def ties(
    task_vectors: TaskVectors, *, density: float = 0.2, scope: Scope = "tensor"
) -> TaskVectors:
    r"""Trim, elect a sign for every entry, and average the entries that agree (TIES).

    Of $\tau_i$ the share `density` with the largest magnitude is kept. The elected sign is
    that of the sum of what is kept; task $i$ keeps the entries $m_i$ that have it, divided
    by how many tasks do: $\tau'_i = m_i \tau_i / \sum_j m_j$.

    Needs nothing but the vectors. Costs a few passes over their magnitudes, and no sort. The
    first rule to try on experts that conflict. Coefficients of one give TIES with a scale
    of one; the paper tunes the scale, which coefficients above one do.

    Args:
        task_vectors: The base and the vectors.
        density: The share of entries to keep, in (0, 1]; at least one entry is kept, and
            all that equal the smallest one kept.
        scope: Trim within each `"tensor"`, or over the whole model, `"global"`, as the
            paper's code does.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If `density` is outside (0, 1], `scope` unknown, or a tensor complex.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> experts = [jnp.array([3.0, 2.0, 0.1]), jnp.array([1.0, -4.0, 0.2])]
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(3), experts)
        >>> mj.merge(mj.transforms.ties(tv, density=2 / 3), [1.0, 1.0])
        Array([ 2., -4.,  0.], dtype=float32)

    References:
        Yadav et al., *TIES-Merging: Resolving Interference When Merging Models*, NeurIPS
        2023, arXiv 2306.01708, Algorithm 1.
    """
    check_density(density)
    check_scope(scope)
    check_real(task_vectors, "ties")
    return edit_tensors(task_vectors, lambda v: _ties(v, counts(v, density, scope)))


@jit
def _ties(vectors: list[Array], kept: list[Array]) -> list[Array]:
    def edit(v: Array, least: Array) -> Array:
        return disjoint_mean(jnp.where(jnp.abs(v) >= least, v, 0))

    return edit_each(vectors, edit, thresholds(vectors, kept))
