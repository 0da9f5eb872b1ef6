"""Host-side checks of what the Pareto tools are given, before anything is traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from mapjax._types import widened


def is_concrete(*arrays: Any) -> bool:
    """Tell whether values can be looked at, which under a JAX transform they cannot."""
    return not any(isinstance(array, Tracer) for array in arrays)


def to_device(values: Any) -> Array:
    """Make an array; one of NumPy's without compiling a copy for each new shape."""
    return jax.device_put(values) if isinstance(values, np.ndarray) else jnp.asarray(values)


def as_float(values: Any) -> Array:
    """Make an array of floats in single precision at least: what is counted needs it."""
    array = to_device(values)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array if array.dtype.itemsize >= 4 else widened(array)
    return array.astype(jnp.result_type(float))


def as_points(points: Any, name: str = "scores") -> Float[Array, "points objectives"]:
    """Make `[points, objectives]` floats, or say what is wrong with them.

    Raises:
        ValueError: If the shape is not that of at least one point, or the dtype is
            complex.
    """
    shape = np.shape(points)
    if len(shape) != 2 or 0 in shape:
        hint = "; pass one point as `x[None]`" if len(shape) == 1 else ""
        raise ValueError(
            f"`{name}` has shape {shape}, but must be [points, objectives] with at least "
            f"one of each{hint}."
        )
    array = to_device(points)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(
            f"`{name}` has dtype {array.dtype}, which has no order; pass real numbers."
        )
    return as_float(array)


def as_pair(
    first: Any, second: Any, names: tuple[str, str]
) -> tuple[Float[Array, "points objectives"], Float[Array, "others objectives"]]:
    """Make two sets of points with the same objectives, or say how they differ.

    Raises:
        ValueError: If either is no set of points or their objectives differ in number.
    """
    a, b = as_points(first, names[0]), as_points(second, names[1])
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"`{names[0]}` has {a.shape[1]} objectives and `{names[1]}` has {b.shape[1]}; "
            "pass two sets scored on the same objectives."
        )
    return a, b


def as_vector(
    vector: Any, num_objectives: int, name: str, *, infinite: bool = False
) -> Float[Array, " objectives"]:
    """Make one number per objective, or say what is wrong with them.

    Args:
        vector: The numbers.
        num_objectives: How many there must be.
        name: What to call them in messages.
        infinite: Whether plus infinity is allowed.

    Raises:
        ValueError: If the length is wrong, or a value is NaN or not allowed to be
            infinite. Values are checked where they are known, outside of transforms.
    """
    array = as_float(vector)
    if array.shape != (num_objectives,):
        raise ValueError(
            f"`{name}` has shape {array.shape}, but there are {num_objectives} objectives; "
            f"pass an array of shape ({num_objectives},)."
        )
    if is_concrete(array):
        values = np.asarray(array)
        wrong = np.isnan(values) | (np.isneginf(values) if infinite else np.isinf(values))
        if wrong.any():
            allowed = "numbers or plus infinity" if infinite else "finite numbers"
            raise ValueError(
                f"`{name}` holds {values[wrong][0]} at position {int(np.argmax(wrong))}; "
                f"pass {allowed}, one per objective."
            )
    return array


def as_preference(preference: Any, num_objectives: int) -> Float[Array, " objectives"]:
    """Make non-negative weights, one per objective, or say what is wrong with them.

    Raises:
        ValueError: If the length is wrong, a weight is negative, NaN or infinite, or all
            are 0. Values are checked where they are known, outside of transforms.
    """
    weights = as_vector(preference, num_objectives, "preference")
    if is_concrete(weights):
        values = np.asarray(weights)
        if (values < 0).any():
            raise ValueError(
                f"`preference` holds {values.min()} at position {values.argmin()}; weights "
                "say how much each objective matters, so pass 0 or more."
            )
        if not values.any():
            raise ValueError(
                "`preference` is 0 for every objective, so nothing is preferred; pass a "
                "positive weight for at least one."
            )
    return weights


def check_pickable(scores: Float[Array, "points objectives"]) -> None:
    """Refuse points of which none can be picked, where their values are known.

    Raises:
        ValueError: If every row has a NaN.
    """
    if is_concrete(scores) and np.isnan(np.asarray(scores)).any(axis=1).all():
        raise ValueError(
            "Every row of `scores` has a NaN, so no point can be picked; pass at least one "
            "row without."
        )
