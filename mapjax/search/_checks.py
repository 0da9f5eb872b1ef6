"""Host-side checks of what the search is given, before anything is traced."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import check_count


def check_num_objectives(num_objectives: Any) -> None:
    """Refuse anything but an int of at least 2.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(num_objectives, int | np.integer) and num_objectives == 1:
        raise ValueError(
            "`num_objectives` is 1, but a front needs at least 2; for a single objective, "
            "use an algorithm of evosax as it is."
        )
    check_count("num_objectives", num_objectives, 2)


def check_shape(name: str, value: Any, axes: str, expected: tuple[int, ...]) -> None:
    """Refuse an array of any other shape.

    Raises:
        ValueError: If the shape is another.
    """
    if jnp.shape(value) != expected:
        raise ValueError(
            f"`{name}` has shape {jnp.shape(value)}, but must be {axes} = {expected}."
        )


def read_start(start: Any, num_coefficients: int) -> np.ndarray:
    """Return points to begin from.

    Raises:
        ValueError: If they are not `[points, coefficients]` and finite.
    """
    array = np.asarray(start)
    if (
        array.ndim != 2
        or array.shape[1] != num_coefficients
        or not np.isfinite(array).all()
    ):
        raise ValueError(
            f"`start` has shape {array.shape}, but must be finite points [points, "
            f"{num_coefficients} coefficients]."
        )
    return array


def read_directions(directions: Any, num_objectives: int) -> np.ndarray:
    """Return reference directions as they are.

    Raises:
        ValueError: If they are not `[directions, objectives]`, non-negative, finite and
            without a row of zeros.
    """
    array = np.asarray(directions)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] != num_objectives:
        raise ValueError(
            f"`reference_directions` has shape {array.shape}, but must be [directions, "
            f"objectives] with {num_objectives} objectives; try "
            f"`mapjax.pareto.reference_directions({num_objectives}, 100)`."
        )
    if not np.isfinite(array).all() or (array < 0).any() or (array.sum(axis=1) <= 0).any():
        raise ValueError(
            "`reference_directions` must be finite and non-negative, with something above "
            "zero in each row; take absolute values, or leave such rows out."
        )
    return array


def evaluate_all(
    objective: Callable[[Array], Array],
    coefficients: Float[Array, "points coefficients"],
    num_objectives: int,
) -> Float[Array, "points objectives"]:
    """Apply the objective to every point; while tracing, check what it returns.

    Raises:
        ValueError: If it is not one number per objective.
    """
    scores = jax.vmap(objective)(coefficients)
    if not eqx.is_array(scores) or scores.shape != (len(coefficients), num_objectives):
        raise ValueError(
            f"`objective` returns {eqx.tree_pformat(scores)} for {len(coefficients)} points "
            f"at once, but must return one array [objectives] = ({num_objectives},) for "
            "each of them."
        )
    return scores
