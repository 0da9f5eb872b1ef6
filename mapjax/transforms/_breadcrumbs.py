"""Model Breadcrumbs: neither the largest nor the smallest entries."""

import jax.numpy as jnp
from jaxtyping import Array

from mapjax._jit import jit
from mapjax._tensors import edit_each, edit_tensors
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_number
from mapjax.transforms._order_statistics import counts, thresholds


def breadcrumbs(
    task_vectors: TaskVectors, *, beta: float = 0.85, gamma: float = 0.007
) -> TaskVectors:
    r"""Drop the smallest entries of each tensor, and the few largest ones (Breadcrumbs).

    Task $i$ keeps the entries of $\tau_i$ whose magnitude is above the share `beta` and not
    within the share `gamma` of outliers; nothing is rescaled.

    Needs nothing but the vectors. Costs a few passes over their magnitudes, and no sort. Made
    for many experts, whose outliers and noise would add up. Coefficients of one give the
    sum of the masked vectors; the paper scales that by 0.3.

    Args:
        task_vectors: The base and the vectors.
        beta: The share of smallest entries to drop, in [0, 1).
        gamma: The share of largest entries to drop, in [0, 1), with `beta + gamma < 1`. The
            paper writes percentiles: its 85 and 99.3 are the defaults. Entries equal to the
            smallest or the largest one kept are kept as well, and at least one entry is.

    Returns:
        Task vectors whose sum is the published merge with a scale of one.

    Raises:
        ValueError: If a share is outside [0, 1) or both together leave nothing.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> expert = jnp.array([9.0, 0.1, -2.0, 3.0])
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(4), [expert])
        >>> mj.transforms.breadcrumbs(tv, beta=0.25, gamma=0.25).vectors
        Array([[ 0.,  0., -2.,  3.]], dtype=float32)

    References:
        Davari and Belilovsky, *Model Breadcrumbs: Scaling Multi-Task Model Merging with
        Sparse Masks*, ECCV 2024, arXiv 2312.06795.
    """
    for name, share in (("beta", beta), ("gamma", gamma)):
        check_number(name, share)
        if not 0 <= share < 1:
            raise ValueError(
                f"`{name}` is {share}, but must be in [0, 1): it is the share to drop."
            )
    if beta + gamma >= 1:
        raise ValueError(
            f"`beta` is {beta} and `gamma` is {gamma}, which drop every entry: choose two "
            "shares whose sum is below 1."
        )

    def edit(vectors: list[Array]) -> list[Array]:
        kept = counts(vectors, 1 - beta, "tensor")
        return _breadcrumbs(vectors, kept, counts(vectors, gamma, "tensor", least=0))

    return edit_tensors(task_vectors, edit)


@jit
def _breadcrumbs(
    vectors: list[Array], kept: list[Array], outliers: list[Array]
) -> list[Array]:
    # In a small tensor the two shares, rounded, could leave nothing: one entry stays.
    below = [jnp.minimum(d + 1, k) for d, k in zip(outliers, kept, strict=True)]

    def edit(v: Array, least: Array, most: Array) -> Array:
        return jnp.where((jnp.abs(v) >= least) & (jnp.abs(v) <= most), v, 0)

    return edit_each(vectors, edit, thresholds(vectors, kept), thresholds(vectors, below))
