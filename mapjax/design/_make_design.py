"""Designs by name, with the base and the experts at their start."""

import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import check_choice
from mapjax.design._box import Bounds, as_points, distinct, read_box
from mapjax.design._corners import starting_points
from mapjax.design._d_optimal import d_optimal, keep_determined
from mapjax.design._mixture import mixture
from mapjax.design._simplex import (
    along_axes,
    axial,
    dirichlet,
    mixture_amount,
    simplex_lattice,
)
from mapjax.design._space_filling import latin_hypercube, multiscale, sobol

DESIGNS = {
    "axial": axial,
    "d_optimal": d_optimal,
    "dirichlet": dirichlet,
    "latin_hypercube": latin_hypercube,
    "mixture": mixture,
    "mixture_amount": mixture_amount,
    "multiscale": multiscale,
    "simplex_lattice": simplex_lattice,
    "sobol": sobol,
}
"""Every design by its name."""

_BY_EXPERT = ("d_optimal", "multiscale")
_ROUNDING = 1e-5
_ON_SIMPLEX = ("axial", "dirichlet", "simplex_lattice")


def make_design(
    name: str,
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds | str = (0.0, 1.0),
    num_experts: int | None = None,
    key: Array,
) -> Float[Array, "points coefficients"]:
    r"""Make a design that starts with the base, the experts and the uniform merge.

    These come first, in this order and even where they lie outside the box, since every
    result is read beside them; then come points of the design `name`. Mixtures start with
    the experts and the uniform merge; those of "axial" with that merge and mixtures around
    it. No point comes twice. With $(N+1)(N+2)/2$ points or more, a design determines a
    quadratic.

    Args:
        name: One of `DESIGNS`.
        num_points: How many points, those at the start included.
        num_coefficients: How many coefficients there are, N.
        bounds: Ends of the box, each a number or one per coefficient; or "simplex", for
            mixtures of the experts: coefficients that sum to one, in each group. The base
            is none, and the designs are "axial", "dirichlet" and "simplex_lattice".
        num_experts: How many experts share the coefficients out, as `corners` takes it. A
            design on the simplex has one for all of them, and so stays near the base.
        key: A typed key.

    Raises:
        ValueError: If the name is unknown or no design of the simplex that is asked for,
            a number is below 1, bounds are reversed, the experts cannot share the
            coefficients evenly or are fewer than a mixture needs, or the key is not typed.

    Example:
        >>> import jax
        >>> make_design("sobol", 6, 2, key=jax.random.key(0))[:4].tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    """
    check_choice("design", name, tuple(DESIGNS))
    if isinstance(bounds, str) and bounds == "simplex":
        read_box(num_points, num_coefficients, (0.0, 1.0))
        return _mixtures(name, num_points, num_coefficients, num_experts, key)
    read_box(num_points, num_coefficients, bounds, simplex=True)
    first = starting_points(num_coefficients, num_experts)
    # As many as all, so that enough are left when those at the start are among them.
    options = {"num_experts": num_experts} if name in _BY_EXPERT else {}
    points = DESIGNS[name](num_points, num_coefficients, bounds=bounds, key=key, **options)
    rows = distinct(np.concatenate([first, np.asarray(points, np.float64)]))
    return as_points(keep_determined(rows, num_points, given=len(first)))


def _mixtures(
    name: str,
    num_points: int,
    num_coefficients: int,
    num_experts: int | None,
    key: Array,
) -> Float[Array, "points coefficients"]:
    if name not in _ON_SIMPLEX:
        raise ValueError(
            f"`design` is {name!r}, whose points do not sum to one; with `bounds` 'simplex' "
            f"choose from {_ON_SIMPLEX}."
        )
    experts = num_experts or num_coefficients
    first = starting_points(num_coefficients, num_experts)[1:]
    if experts < 2:
        raise ValueError(
            "`bounds` is 'simplex', but a mixture needs two experts or more. Pass (lower, "
            "upper), such as (0, 1)."
        )
    # One expert fewer: what these leave to the base is the last one's.
    count, groups = num_points + len(first), num_coefficients // experts
    if name == "axial":  # in all groups alike, and then each for itself
        first, name = np.repeat(along_axes(experts), groups, axis=1), "dirichlet"
    drawn = np.asarray(DESIGNS[name](count * groups, experts - 1, key=key), np.float64)
    last = 1 - drawn.sum(axis=1, keepdims=True)
    rows = np.concatenate([drawn, np.where(last > _ROUNDING, last, 0)], axis=1)
    rows = rows.reshape(count, groups, experts).swapaxes(1, 2).reshape(count, -1)
    rows = np.concatenate([first, rows])
    # What differs by rounding alone is the same merge.
    _, kept = np.unique(np.round(rows / _ROUNDING), axis=0, return_index=True)
    return as_points(rows[np.sort(kept)[:num_points]])
