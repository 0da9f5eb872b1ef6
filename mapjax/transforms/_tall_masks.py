"""TALL masks: which entries of the sum belong to a task, and which to several."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mapjax._jit import jit
from mapjax._tensors import edit_each, edit_tensors, sum_tasks
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_number


def tall_mask(task_vectors: TaskVectors, *, scale: float = 0.4) -> TaskVectors:
    r"""Keep of each task the entries that belong to it more than to the others (TALL).

    With $\tau = \sum_i \tau_i$, task $i$ keeps the entries
    $m_i = [|\tau_i| \ge \mathrm{scale} \, |\tau - \tau_i|]$ of $\tau_i$.

    Needs nothing but the vectors. Costs two passes over them. To localise tasks, and to
    make vectors that collide less. A single coefficient of one gives that expert with the
    entries that matter to it; the paper's compressed expert takes them from $\tau$ instead.

    Args:
        task_vectors: The base and the vectors.
        scale: $\lambda$, at least 0; larger ones keep fewer entries. The paper chooses it
            for each task from 0.2 to 0.6.

    Returns:
        The masked task vectors.

    Raises:
        ValueError: If `scale` is negative or no finite number.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> experts = [jnp.array([1.0, 0.1, 1.0]), jnp.array([0.1, 1.0, 1.0])]
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(3), experts)
        >>> mj.transforms.tall_mask(tv).vectors
        Array([[1., 0., 1.],
               [0., 1., 1.]], dtype=float32)

    References:
        Wang et al., *Localizing Task Information for Improved Model Merging and
        Compression*, ICML 2024, arXiv 2405.07813.
    """
    _check_scale(scale)
    return edit_tensors(task_vectors, _masked, jnp.asarray(scale, jnp.float32), None)


def consensus(
    task_vectors: TaskVectors, *, scale: float = 0.4, agreement: int = 2
) -> TaskVectors:
    r"""Drop the entries that matter to too few tasks (Consensus).

    Keeps of every task vector the entries that at least `agreement` of the masks of
    `tall_mask` hold, which leaves out what matters to one task alone.

    Needs nothing but the vectors. Costs two passes over them. For many tasks that share
    much; entries of one task only are what other tasks suffer from. Coefficients of one
    give Consensus task arithmetic with a scale of one, and after `ties` Consensus TIES.

    Args:
        task_vectors: The base and the vectors.
        scale: $\lambda$ of the masks, at least 0; larger ones keep fewer entries.
        agreement: How many masks must hold an entry, from 1 to the number of experts.

    Returns:
        Task vectors whose sum is the published merge with a scale of one.

    Raises:
        ValueError: If `scale` is negative, or `agreement` not from 1 to that number.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> experts = [jnp.array([1.0, 0.1, 1.0]), jnp.array([0.1, 1.0, 1.0])]
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(3), experts)
        >>> mj.merge(mj.transforms.consensus(tv), [1.0, 1.0])
        Array([0., 0., 2.], dtype=float32)

    References:
        Wang et al., *Localizing Task Information for Improved Model Merging and
        Compression*, ICML 2024, arXiv 2405.07813.
    """
    _check_scale(scale)
    whole = isinstance(agreement, int | np.integer) and not isinstance(agreement, bool)
    if not whole or not 1 <= agreement <= task_vectors.num_tasks:
        raise ValueError(
            f"`agreement` is {agreement!r}, but must be an int from 1 to the number of "
            f"experts, {task_vectors.num_tasks}: more masks than that never agree."
        )
    how = jnp.asarray(scale, jnp.float32), jnp.asarray(agreement)
    return edit_tensors(task_vectors, _masked, *how)


def _check_scale(scale: float) -> None:
    check_number("scale", scale)
    if scale < 0:
        raise ValueError(
            f"`scale` is {scale}, but must be at least 0: masks compare magnitudes with it."
        )


@jit
def _masked(vectors: list[Array], scale: Array, agreement: Array | None) -> list[Array]:
    def edit(v: Array) -> Array:
        mask = jnp.abs(v) >= scale * jnp.abs(sum_tasks(v) - v)
        if agreement is not None:
            mask = sum_tasks(mask.astype(jnp.int32)) >= agreement
        return jnp.where(mask, v, 0)

    return edit_each(vectors, edit)
