"""Electing one sign for every entry, and the mean of those that agree with it."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mapjax._tensors import sum_tasks


def disjoint_mean(v: Float[Array, "tasks ..."]) -> Float[Array, "tasks ..."]:
    """Split the mean over the tasks that agree with the sign of the sum among them.

    An entry whose sum is zero elects no sign, and is zero for every task.
    """
    agrees = v * jnp.sign(sum_tasks(v)) > 0
    number = jnp.maximum(
        sum_tasks(agrees.astype(v.dtype)), 1
    )  # nobody agrees where all are zero
    return jnp.where(agrees, v / number, 0)
