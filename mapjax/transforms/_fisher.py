"""Diagonal Fisher information, from gradients of single examples."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from mapjax._types import Params, wide, widened


def fisher(
    loss: Callable[[Any, Any], Array],
    params: Params,
    data: PyTree,
    *,
    batch_size: int = 8,
) -> PyTree:
    r"""Estimate the diagonal of the Fisher information of one expert.

    $F = \frac{1}{n} \sum_x (\partial \ell(\theta, x) / \partial \theta)^2$, with the
    gradient of each example squared before the mean. With the negative log-likelihood of
    the true labels this is the empirical Fisher information; with labels drawn from the
    model's own predictions it is an unbiased estimate of the true one, as in the paper.

    Costs a gradient for each example, and the memory of `batch_size` gradients.

    Args:
        loss: From parameters and one example to a scalar, such as its negative
            log-likelihood.
        params: The expert, as its task vector was made from. Gradients are taken of all
            floating-point leaves.
        data: The examples, a pytree of arrays with one along each first axis, such as
            `(inputs, labels)`.
        batch_size: How many examples to differentiate at once.

    Returns:
        A tree like `params`, in float32 at least, with None for other leaves.

    Raises:
        ValueError: If `data` has no examples or axes of different lengths, the loss is not
            a scalar, or `batch_size` is below 1.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> def loss(w, example):
        ...     return w @ example
        >>> examples = jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> mj.transforms.fisher(loss, jnp.zeros(2), examples)
        Array([5., 2.], dtype=float32)

    References:
        Matena and Raffel, NeurIPS 2022, arXiv 2111.09832, Eq. 6.
    """
    count_examples(data, "data", batch_size)
    given, rest = eqx.partition(
        jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, params),
        eqx.is_inexact_array,
    )
    example = jax.tree.map(lambda x: x[0], data)
    shape = eqx.filter_eval_shape(loss, params, example)
    if getattr(shape, "shape", None) != ():
        raise ValueError(
            f"`loss` gives {shape} for one example, but must give a scalar: leave out the "
            "batch axis and sum what is left."
        )
    return _fisher(loss, given, rest, data, batch_size)


@eqx.filter_jit
def _fisher(
    loss: Callable[..., Array], given: PyTree, rest: PyTree, data: PyTree, batch_size: int
) -> PyTree:
    def squares(example: PyTree) -> PyTree:
        g = jax.grad(lambda p: loss(eqx.combine(p, rest), example))(given)
        return jax.tree.map(lambda x: jnp.abs(widened(x)) ** 2, g)

    def add(total: PyTree, batch: PyTree) -> tuple[PyTree, None]:
        found = jax.vmap(squares)(batch)
        return jax.tree.map(lambda t, x: t + jnp.sum(x, 0), total, found), None

    num_examples = len(jax.tree.leaves(data)[0])
    whole = num_examples // batch_size * batch_size
    total = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.finfo(wide(x.dtype)).dtype), given)
    if whole:
        batches = jax.tree.map(
            lambda x: jnp.asarray(x[:whole]).reshape(-1, batch_size, *x.shape[1:]), data
        )
        total, _ = lax.scan(add, total, batches)
    if whole < num_examples:
        total, _ = add(total, jax.tree.map(lambda x: x[whole:], data))
    return jax.tree.map(lambda x: x / num_examples, total)


def count_examples(data: PyTree, argument: str, batch_size: int) -> int:
    """Count the examples of a pytree, or say what is wrong with it."""
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}: pass at least 1.")
    sizes = {np.shape(x)[:1] for x in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        lengths = sorted({n for size in sizes for n in size})
        raise ValueError(
            f"`{argument}` has first axes of lengths {lengths}: give arrays with the same "
            "number of examples along the first axis, at least one."
        )
    return sizes.pop()[0]
