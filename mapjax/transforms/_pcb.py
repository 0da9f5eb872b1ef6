"""PCB-Merging: weigh every entry by what it is to its task and to the others."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

from mapjax._jit import jit
from mapjax._tensors import edit_each, edit_tensors, per_task, sum_tasks
from mapjax._types import widened
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_density, check_real, check_scope
from mapjax.transforms._order_statistics import Scope, counts, thresholds


def pcb(
    task_vectors: TaskVectors, *, density: float = 0.1, scope: Scope = "tensor"
) -> TaskVectors:
    r"""Average every entry over the tasks that compete best for it (PCB-Merging).

    The score of an entry is
    $\beta_i = \exp(N \, \mathrm{norm}(|\tau_i|)^2) \, \tanh(\tau_i \sum_j \tau_j)$, large
    where the entry is large in its task and agrees with the others; norm maps a task's
    magnitudes onto [0, 1]. The share `density` of a task's entries with the largest scores
    is kept, with weights $w_i$ that grow linearly from 0 at the smallest score kept to 1,
    and $\tau'_i = w_i \tau_i / \sum_j w_j$.

    Needs nothing but the vectors. Costs a few passes over the scores, and no sort. Where TIES
    is good and tasks differ in size. Coefficients of one give PCB-Merging with a scale of
    one; the paper tunes the scale. The formula is the one of the authors' program, whose
    rescaling cancels the denominator of the softmax in the paper; it also clips the largest
    0.01 % of the magnitudes, which is left out here.

    Args:
        task_vectors: The base and the vectors.
        density: The share of entries to keep, in (0, 1].
        scope: Compare entries within each `"tensor"`, or over the whole model, `"global"`,
            as the authors' program does.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If `density` is outside (0, 1], `scope` unknown, or a tensor complex.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> experts = [jnp.array([3.0, 2.0, 0.1]), jnp.array([1.0, -4.0, 0.2])]
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(3), experts)
        >>> mj.merge(mj.transforms.pcb(tv, density=2 / 3), [1.0, 1.0])
        Array([ 3., -4.,  0.], dtype=float32)

    References:
        Du et al., *Parameter Competition Balancing for Model Merging*, NeurIPS 2024, arXiv
        2410.02396.
    """
    check_density(density)
    check_scope(scope)
    check_real(task_vectors, "pcb")
    return edit_tensors(task_vectors, lambda v: _pcb(v, counts(v, density, scope)))


@jit
def _pcb(vectors: list[Array], kept: list[Array]) -> list[Array]:
    numbers = [widened(v) for v in vectors]
    together = len(kept) < len(vectors)
    ranges = _ranges([jnp.abs(v) for v in numbers], together)
    scores = [_score(v, *ends) for v, ends in zip(numbers, ranges, strict=True)]
    tops = [most for _, most in _ranges(scores, together)]

    def edit(v: Array, score: Array, least: Array, most: Array) -> Array:
        spread = jnp.where(most > least, most - least, 1)
        # Where all that is kept scores the same, it weighs the same, or nothing if it is 0.
        equal = ((score >= least) & (score > 0)).astype(v.dtype)
        w = jnp.where(most > least, jnp.maximum(score - least, 0) / spread, equal)
        total = sum_tasks(w)
        return v * w / jnp.where(total > 0, total, 1)

    return edit_each(vectors, edit, scores, thresholds(scores, kept, lambda s: s), tops)


def _score(v: Array, least: Array, most: Array) -> Array:
    spread = jnp.where(most > least, most - least, 1)
    norm = (jnp.abs(v) - least) / spread
    # With the exponent at most 0 nothing overflows; a factor of each task is rescaled away.
    intra = jnp.exp(v.shape[0] * (norm**2 - 1))
    return intra * jnp.tanh(v * sum_tasks(v))


def _ranges(values: Sequence[Array], together: bool) -> list[tuple[Array, Array]]:
    """Find the smallest and the largest value of each task, of each tensor or of all."""
    ends = [
        (
            jnp.min(v, axis=range(1, v.ndim), initial=jnp.inf),
            jnp.max(v, axis=range(1, v.ndim), initial=-jnp.inf),
        )
        for v in values
    ]
    if together:
        least, most = zip(*ends, strict=True)
        overall = functools.reduce(jnp.minimum, least), functools.reduce(jnp.maximum, most)
        ends = [overall] * len(values)
    return [
        (per_task(a, v), per_task(b, v)) for (a, b), v in zip(ends, values, strict=True)
    ]
