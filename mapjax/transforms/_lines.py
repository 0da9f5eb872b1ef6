"""LiNeS: scale vectors linearly with the depth of the layer."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mapjax._jit import jit
from mapjax._layers import layer_numbers
from mapjax._tensors import edit_each, edit_tensors, kept_tensors
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_number


def lines(
    task_vectors: TaskVectors,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    layers: Callable[[str], int | None] | None = None,
) -> TaskVectors:
    r"""Scale vectors by $\alpha + \beta (l - 1) / (L - 1)$ in layer $l$ of $L$ (LiNeS).

    Early layers, which all tasks share, stay close to the base; late ones keep their
    change. Tensors outside the layers, such as embeddings and heads, are scaled by
    $\alpha$.

    Needs nothing but the vectors. Costs one pass over them. To reduce interference and
    forgetting, mostly on top of another rule: `lines(ties(task_vectors), alpha=0.5)`.
    Coefficients of one give LiNeS on the sum of the vectors.

    Args:
        task_vectors: The base and the vectors.
        alpha: The scale of the first layer; by default $1 / N$, which the paper takes for
            the sum of $N$ tasks. Take a larger one after rules whose sum is a mean.
        beta: How much the scale grows up to the last layer; by default $1 - \alpha$, so that
            the last layer is left as it is. The paper tunes it.
        layers: From a key path, as `TaskVectors.left_alone` writes them, to the number of
            its layer, or None for a tensor outside the layers. By default the number is
            read from the path: of `blocks[3].mlp.fc1` it is 3. Give a function where names
            start again at 0, as with `Conv_0`, `Conv_1`, `Dense_0`.

    Returns:
        The scaled task vectors.

    Raises:
        ValueError: If a scale is no finite number, fewer than two layers are found, or
            `layers` gives something else than an int or None.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> base = {f"layer_{i}": jnp.zeros(()) for i in range(3)}
        >>> expert = {f"layer_{i}": jnp.ones(()) for i in range(3)}
        >>> tv = mj.TaskVectors.from_params(base, [expert])
        >>> scaled = mj.transforms.lines(tv, alpha=0.5, beta=0.5)
        >>> [float(x) for x in mj.merge(scaled, [1.0]).values()]
        [0.5, 0.75, 1.0]

    References:
        Wang et al., *LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances
        Model Merging*, ICLR 2025, arXiv 2410.17146.
    """
    alpha = 1 / task_vectors.num_tasks if alpha is None else alpha
    check_number("alpha", alpha)
    beta = 1 - alpha if beta is None else beta
    check_number("beta", beta)
    depths = _depths(list(kept_tensors(task_vectors)), layers)
    scales = [jnp.asarray(alpha + beta * depth, jnp.float32) for depth in depths]
    return edit_tensors(task_vectors, _scale, scales)


@jit
def _scale(vectors: list[Array], scales: list[Array]) -> list[Array]:
    return edit_each(vectors, lambda v, scale: v * scale.astype(v.dtype), scales)


def _depths(paths: list[str], layers: Callable[[str], Any] | None) -> list[float]:
    """Place each tensor between the first layer, 0, and the last, 1."""
    numbers = {p: layers(p) for p in paths} if layers else layer_numbers(paths)
    for path, number in numbers.items():
        if number is not None and not isinstance(number, int | np.integer):
            raise ValueError(
                f"`layers` gave {number!r} for leaf {path}: give the number of its layer, an "
                "int, or None if it is in none."
            )
    found = [number for number in numbers.values() if number is not None]
    if len(set(found)) < 2:
        given = "`layers` gave" if layers else "the key paths show"
        raise ValueError(
            f"`lines` scales by depth, but {given} {sorted(set(found))} as layer numbers for "
            f"the leaves {paths[:4]}{', ...' if len(paths) > 4 else ''}. Pass `layers`, a "
            "function from a key path to the number of its layer, with two layers or more."
        )
    first, last = min(found), max(found)
    return [0.0 if n is None else (n - first) / (last - first) for n in numbers.values()]
