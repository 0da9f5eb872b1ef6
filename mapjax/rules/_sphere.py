"""Rules that interpolate directions along great circles, tensor by tensor."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mapjax._algebra import HIGHEST, largest, matmul
from mapjax._jit import jit
from mapjax._tensors import base_tensors, sum_tasks, tensors
from mapjax._types import widened
from mapjax.rules._rule import MergeRule, dense
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._matrices import (
    InputAxes,
    Shape,
    from_matrices,
    matrix_shapes,
    to_matrices,
)

_NUM_STEPS = 20
_NEAREST = 1e-6
"""Squared sine below which directions count as equal or opposite: there, the great circle
is a line to the precision of float32, or no single one."""


def slerp(task_vectors: TaskVectors) -> MergeRule:
    r"""Interpolate the parameters of two experts spherically (SLERP).

    With $\Omega$ the angle between both experts' parameters of a tensor and $w$ the
    proportions of the coefficients, $\sum_i \theta_i \sin(w_i \Omega) / \sin \Omega$. Linear
    where the angle is below 0.001 or as near to $\pi$, or a tensor is zero.

    Needs nothing but the vectors; costs what `merge` costs.

    Args:
        task_vectors: The base and the vectors of two experts.

    Returns:
        The rule; see `MergeRule` for what coefficients mean.

    Raises:
        ValueError: If there are not two experts.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), list(jnp.eye(2)))
        >>> slerp(tv)([1.0, 1.0])
        Array([0.70710677, 0.70710677], dtype=float32)

    References:
        Shoemake, *Animating Rotation with Quaternion Curves*, SIGGRAPH 1985.
    """
    _check_two(task_vectors, "slerp")
    task_vectors = dense(task_vectors)
    shapes = _whole(task_vectors)
    return _rule(task_vectors, _slerp_parameters, shapes, parameters=True)


def nuslerp(task_vectors: TaskVectors, *, input_axes: InputAxes | None = None) -> MergeRule:
    r"""Interpolate two task vectors spherically, and add that to the base (NuSLERP).

    As `slerp`, with $v_i$ in the place of $\theta_i$: angles between task vectors are wide
    where those between parameters are next to nothing, so that the change keeps its norm.

    Needs nothing but the vectors; costs what `merge` costs.

    Args:
        task_vectors: The base and the vectors of two experts.
        input_axes: None to interpolate each tensor as one vector. Else, each output of a
            matrix is a vector of its own, and this says which axes of a tensor are its
            inputs; see `mapjax.transforms.InputAxes`.

    Returns:
        The rule; see `MergeRule` for what coefficients mean.

    Raises:
        ValueError: If there are not two experts, or `input_axes` finds no matrix.

    References:
        Shoemake, *Animating Rotation with Quaternion Curves*, SIGGRAPH 1985.
    """
    _check_two(task_vectors, "nuslerp")
    task_vectors = dense(task_vectors)
    shapes = _whole(task_vectors)
    if input_axes is not None:
        shapes = tuple(matrix_shapes(task_vectors, input_axes, "nuslerp").values())
    return _rule(task_vectors, _slerp_vectors, shapes, parameters=False)


def multi_slerp(task_vectors: TaskVectors) -> MergeRule:
    r"""Average the parameters of any number of experts on the sphere (Karcher mean).

    The direction of a tensor is the unit vector $x$ with the least weighted sum of squared
    angles $\sum_i w_i \angle(x, \theta_i)^2$, found by 20 steps
    $x \leftarrow \exp_x(\sum_i w_i \log_x \hat\theta_i)$ from the normalised mean. Its norm
    is $\sum_i w_i \|\theta_i\|$. For two experts of one norm this is `slerp`. Linear where
    directions cancel, or those of two experts with a weight are opposite; a tensor that is
    zero has a norm, but no direction.

    Needs nothing but the vectors. Costs what `merge` costs: the steps need no more than the
    angles between experts, which are computed once.

    Args:
        task_vectors: The base and the vectors.

    Returns:
        The rule; see `MergeRule` for what coefficients mean.

    References:
        Buss and Fillmore, *Spherical Averages and Applications to Spherical Splines and
        Interpolation*, ACM Transactions on Graphics 20(2), 2001, Algorithm A1.
    """
    task_vectors = dense(task_vectors)
    shapes = _whole(task_vectors)
    return _rule(task_vectors, _karcher_parameters, shapes, parameters=True)


def _check_two(task_vectors: TaskVectors, rule: str) -> None:
    if task_vectors.num_tasks != 2:
        raise ValueError(
            f"`{rule}` interpolates two experts, but there are {task_vectors.num_tasks}: "
            f"{task_vectors.names}. Use `mapjax.rules.multi_slerp` for any number."
        )


def _whole(task_vectors: TaskVectors) -> tuple[None, ...]:
    """Say of every tensor that it is one vector."""
    return (None,) * len(tensors(task_vectors))


def _rule(
    task_vectors: TaskVectors,
    change: Callable[..., list[Array]],
    shapes: tuple[Shape | None, ...],
    *,
    parameters: bool,
) -> MergeRule:
    bases = base_tensors(task_vectors) if parameters else None
    data = _directions(list(tensors(task_vectors).values()), bases, shapes)
    return MergeRule(task_vectors, data, change, shapes)


@jit
def _directions(
    vectors: list[Array], bases: list[Array] | None, shapes: tuple[Shape | None, ...]
) -> tuple[Float[Array, "tasks directions"], Float[Array, "tasks tasks directions"]]:
    """Compute norms, and cosines between tasks, of all directions of all tensors."""
    norms, cosines = [], []
    for i, (v, shape) in enumerate(zip(vectors, shapes, strict=True)):
        x = widened(v)
        x = x if bases is None else x + bases[i].astype(x.dtype)
        x = _as_columns(x, shape)
        # Divided by the largest first: squares of small numbers would underflow.
        unit = largest(x, 1)
        x = x / unit
        norm = jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axis=1))
        x = x / jnp.where(norm > 0, norm, 1)[:, None]
        cosine = jnp.einsum("aic,bic->abc", x, x.conj(), precision=HIGHEST).real
        same = jnp.eye(len(x), dtype=bool)[:, :, None]
        cosines.append(jnp.where(same & (norm > 0), 1, jnp.clip(cosine, -1, 1)))
        norms.append(unit[:, 0] * norm)
    return jnp.concatenate(norms, axis=-1), jnp.concatenate(cosines, axis=-1)


def _as_columns(x: Array, shape: Shape | None) -> Float[Array, "tasks entries directions"]:
    return to_matrices(x, shape) if shape else x.reshape(len(x), -1, 1)


def _slerp_parameters(
    weights: Any, bases: Any, vectors: Any, data: Any, shapes: Any
) -> Any:
    return _mix(_slerp_weights, weights, vectors, bases, data, shapes)


def _slerp_vectors(weights: Any, bases: Any, vectors: Any, data: Any, shapes: Any) -> Any:
    return _mix(_slerp_weights, weights, vectors, None, data, shapes)


def _karcher_parameters(
    weights: Any, bases: Any, vectors: Any, data: Any, shapes: Any
) -> Any:
    return _mix(_karcher_weights, weights, vectors, bases, data, shapes)


def _mix(
    rule: Callable[..., Array],
    weights: list[Array],
    vectors: list[Array],
    bases: list[Array] | None,
    data: Any,
    shapes: tuple[Shape | None, ...],
) -> list[Array]:
    """Sum the vectors of each tensor with the rule's factors, or the parameters with a base.

    All directions of all tensors find their factors in one batch.
    """
    columns = [_as_columns(v, shape) for v, shape in zip(vectors, shapes, strict=True)]
    each = [
        jnp.repeat(w[:, None], x.shape[2], 1) for w, x in zip(weights, columns, strict=True)
    ]
    factors = jax.vmap(rule, (1, 1, 2), 1)(jnp.concatenate(each, axis=1), *data)
    changes, start = [], 0
    for i, (v, x, shape) in enumerate(zip(vectors, columns, shapes, strict=True)):
        m = factors[:, start : start + x.shape[2]].astype(x.dtype)
        start += x.shape[2]
        mixed = sum_tasks(m[:, None] * x)[None]
        mixed = from_matrices(mixed, v[:1], shape) if shape else mixed
        mixed = mixed.reshape(v.shape[1:])
        if bases is not None:
            # sum m_i (base + v_i) less the base, which is exact where m is a one and zeros.
            mixed = mixed + (jnp.sum(m) - 1) * bases[i]
        changes.append(mixed)
    return changes


def _slerp_weights(
    w: Float[Array, "2"], norms: Float[Array, "2"], cosines: Float[Array, "2 2"]
) -> Float[Array, "2"]:
    cosine = cosines[0, 1]
    curved = jnp.all(norms > 0) & (1 - cosine**2 > _NEAREST)
    omega = jnp.arccos(jnp.where(curved, cosine, 0))
    return jnp.where(curved, jnp.sin(w * omega) / jnp.sin(omega), w)


def _karcher_weights(
    w: Float[Array, " tasks"],
    norms: Float[Array, " tasks"],
    cosines: Float[Array, "tasks tasks"],
) -> Float[Array, " tasks"]:
    """Find the mean as a sum of the experts' unit vectors: it lies in their span."""

    def square(a: Array) -> Array:
        return jnp.sum(a * dot(a))

    def dot(a: Array) -> Array:
        return matmul(cosines, a)

    pull = jnp.where(norms > 0, w, 0)
    # From one of two opposite directions, every way leads to the other.
    pair = (pull[:, None] > 0) & (pull > 0)
    opposite = jnp.any(pair & (cosines < 0) & (1 - cosines**2 <= _NEAREST))
    cosines = jnp.where(opposite, jnp.eye(len(w), dtype=cosines.dtype), cosines)
    total = jnp.sum(pull)
    pull = pull / jnp.where(total > 0, total, 1)
    length = square(pull)
    curved = (length > _NEAREST) & ~opposite

    def step(_: Any, a: Array) -> Array:
        b = dot(a)
        towards = pull * _angle_over_sine(b)
        t = towards - a * jnp.sum(towards * b)
        cosine, sinc = _cosine_and_sinc(square(t))
        a = cosine * a + sinc * t
        size = square(a)
        return a / jnp.sqrt(jnp.where(size > 0, size, 1))

    start = pull / jnp.sqrt(jnp.where(curved, length, 1))
    mean = lax.fori_loop(0, _NUM_STEPS, step, start)
    factors = mean * jnp.sum(w * norms) / jnp.where(norms > 0, norms, 1)
    return jnp.where(curved, factors, w)


def _angle_over_sine(cosine: Array) -> Array:
    """Compute x / sin x from cos x: smooth at x = 0, and bounded towards pi."""
    near = cosine > 1 - 1e-3
    safe = jnp.where(near, 0, jnp.maximum(cosine, -1 + _NEAREST / 2))
    gap = 1 - cosine
    series = 1 + gap / 3 + 2 * gap**2 / 15
    return jnp.where(near, series, jnp.arccos(safe) / jnp.sqrt(1 - safe**2))


def _cosine_and_sinc(square: Array) -> tuple[Array, Array]:
    """Compute cos x and sin x / x from the square of x, which rounding may make negative."""
    near = square < 1e-3
    x = jnp.sqrt(jnp.where(near, 1, square))
    cosine = jnp.where(near, 1 - square / 2 + square**2 / 24, jnp.cos(x))
    return cosine, jnp.where(near, 1 - square / 6 + square**2 / 120, jnp.sin(x) / x)
