"""Finding the second moments in an optimizer's state."""

from typing import Any

import jax
from jaxtyping import PyTree


def second_moments(state: PyTree) -> PyTree:
    r"""Take the second moments $\nu$ out of the state of Adam or a relative.

    Looks for what optax calls `nu`, at any depth: alone, in a chain, inside
    `inject_hyperparams` or `multi_steps`, or in `nnx.Optimizer.opt_state`. Moments are
    taken as they are: at step $t$ they are short of $1 - \beta_2^t$, which matters only
    between experts of which one took fewer than some thousand steps.

    Args:
        state: The state of an optimizer at the end of an expert's training.

    Returns:
        A tree like the parameters, for `ota` or `fisher_weighted`.

    Raises:
        ValueError: If there is no such state, or more than one.

    References:
        Mahdavinia et al., 2025, arXiv 2509.11167.
    """

    def is_adam(node: Any) -> bool:
        return "nu" in getattr(node, "_fields", ()) or hasattr(type(node), "nu")

    found = [node.nu for node in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(node)]
    if len(found) != 1:
        kind = type(state).__name__
        raise ValueError(
            f"`state` ({kind}) holds {len(found) or 'no'} second moments `nu`. "
            + (
                "Pass the part of the state that belongs to the merged parameters."
                if found
                else "Pass the state of an optax optimizer that keeps them, such as "
                "`optax.adam` or `optax.adamw`, as it was at the end of training."
            )
        )
    return found[0]
