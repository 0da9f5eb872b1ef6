"""Adam for parts whose sum is what is being optimised."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def adam(
    gradient: Callable[[Array], Array],
    start: Float[Array, "parts *shape"],
    num_steps: Array,
    learning_rate: Array,
) -> Float[Array, "parts *shape"]:
    r"""Take some steps of Adam on a sum, and book each on the part that asked for it.

    The step is linear in the first moment, so that gradients $g_i$ with $g = \sum_i g_i$
    move the parts by $-\eta \hat m_i / (\sqrt{\hat v} + \epsilon)$, where $\hat v$ belongs
    to $g$: the sum of the parts moves as Adam would move it.

    Args:
        gradient: From parts to the gradients $g_i$, of the same shape.
        start: The first parts.
        num_steps: How many steps.
        learning_rate: $\eta$.
    """

    def step(t: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        parts, m, v = state
        g = gradient(parts)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * jnp.sum(g, 0) ** 2
        count = (t + 1).astype(m.dtype)
        scale = jnp.sqrt(v / (1 - 0.999**count)) + 1e-8
        return parts - learning_rate * m / (1 - 0.9**count) / scale, m, v

    learning_rate = learning_rate.astype(start.dtype)
    zeros = jnp.zeros_like(start)
    return lax.fori_loop(0, num_steps, step, (start, zeros, zeros[0]))[0]
