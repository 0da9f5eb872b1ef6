"""MagMax: of every entry, the task with the largest change."""

import jax.numpy as jnp
from jaxtyping import Array

from mapjax._jit import jit
from mapjax._tensors import edit_each, edit_tensors, per_task
from mapjax.task_vectors import TaskVectors


def magmax(task_vectors: TaskVectors) -> TaskVectors:
    r"""Give every entry to the task in which its magnitude is largest (MagMax).

    Task $i$ keeps the entries of $\tau_i$ with $i = \arg\max_j |\tau_j|$; of equal ones the
    first task does.

    Needs nothing but the vectors. Costs two passes over them. Tasks then share no entry, so
    that coefficients move them apart; made for experts fine-tuned one after the other.
    Coefficients of one give MagMax with a scale of one. Applying it twice changes nothing.

    Args:
        task_vectors: The base and the vectors.

    Returns:
        Task vectors whose sum is the published merge with a scale of one.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> experts = [jnp.array([3.0, -1.0]), jnp.array([1.0, 2.0])]
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), experts)
        >>> mj.transforms.magmax(tv).vectors
        Array([[3., 0.],
               [0., 2.]], dtype=float32)

    References:
        Marczak et al., *MagMax: Leveraging Model Merging for Seamless Continual Learning*,
        ECCV 2024, arXiv 2407.06322.
    """
    return edit_tensors(task_vectors, _magmax)


@jit
def _magmax(vectors: list[Array]) -> list[Array]:
    def edit(v: Array) -> Array:
        largest = jnp.argmax(jnp.abs(v), axis=0)
        return jnp.where(per_task(jnp.arange(v.shape[0]), v) == largest, v, 0)

    return edit_each(vectors, edit)
