"""A choice of points that pins the quadratic down best."""

import numpy as np
from jaxtyping import Array, Float

from mapjax._keys import generator
from mapjax._types import ArrayLike
from mapjax.design._box import Bounds, as_points, distinct, quadratic_basis, read_box
from mapjax.design._corners import starting_points


def d_optimal(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    candidates: ArrayLike | None = None,
    num_experts: int | None = None,
    key: Array,
) -> Float[Array, "points coefficients"]:
    r"""Choose points that maximise the determinant of the quadratic's information.

    Takes one candidate after the other, each the one whose prediction the others leave
    most uncertain, $\phi(c)^\top (\Phi^\top \Phi)^{-1} \phi(c)$, which is the one that
    raises $\det \Phi^\top \Phi$ most. Any part of the design from its start is therefore
    a design of the same kind. The base, the experts and the uniform merge come first,
    where they lie in the box.

    Args:
        num_points: How many; $(N+1)(N+2)/2$ or more determine a quadratic.
        num_coefficients: How many there are.
        bounds: Ends of the box, each a number or one per coefficient.
        candidates: Points to choose from, one per row, at least `num_points` distinct
            ones; by default a Sobol sequence and points at the ends and the middle of
            the box.
        num_experts: How many experts share the coefficients out, as `corners` takes it.
        key: A typed key, for the candidates.

    Raises:
        ValueError: If a number is below 1, bounds are reversed, the experts cannot share
            the coefficients evenly, the key is not typed, or candidates are too few, of
            another length or outside the bounds.

    Example:
        >>> import jax
        >>> d_optimal(9, 2, key=jax.random.key(0)).shape
        (9, 2)

    References:
        Wynn, *The sequential generation of D-optimum experimental designs*, Annals of
        Mathematical Statistics 41(5), 1970.
    """
    lower, upper = read_box(num_points, num_coefficients, bounds)
    rng = generator(key)
    first = starting_points(lower.size, num_experts)
    first = first[((lower <= first) & (first <= upper)).all(axis=1)]
    if candidates is None:
        pool = lower + (upper - lower) * _default_candidates(num_points, lower.size, rng)
    else:
        pool = _read_candidates(candidates, lower, upper)
    pool = distinct(np.concatenate([first, pool]))
    if len(pool) < num_points:
        raise ValueError(
            f"`candidates` and the corners make {len(pool)} distinct points, fewer than "
            f"`num_points`={num_points}. Pass more candidates."
        )
    basis = quadratic_basis(2 * (pool - lower) / (upper - lower) - 1)
    chosen = _choose(basis, num_points, given=min(len(first), num_points))
    return as_points(pool[chosen])


def keep_determined(pool: np.ndarray, num_points: int, *, given: int) -> np.ndarray:
    """Keep the first points of a pool, or better ones if those determine no quadratic.

    Then the `given` first ones stay, and the rest is chosen as by `d_optimal`.
    """
    kept, basis = pool[:num_points], quadratic_basis(pool)
    if np.linalg.matrix_rank(basis[:num_points]) < min(basis.shape[1], num_points):
        kept = pool[_choose(basis, num_points, given=min(given, num_points))]
    return kept


def _choose(basis: np.ndarray, num_points: int, *, given: int) -> np.ndarray:
    """Return rows in the order in which they are taken, the `given` ones first."""
    # A vanishing prior lets the choice begin before there are as many points as unknowns.
    covariance = 1e6 * np.eye(basis.shape[1])
    uncertainty = 1e6 * np.sum(basis**2, axis=1)
    chosen = np.zeros(num_points, int)
    for k in range(num_points):
        row = k if k < given else int(np.argmax(uncertainty))
        chosen[k] = row
        gain = covariance @ basis[row]
        total = 1 + basis[row] @ gain
        covariance -= np.outer(gain, gain) / total
        uncertainty -= (basis @ gain) ** 2 / total
        # Merges are evaluated without noise: a second look at one would tell nothing.
        uncertainty[chosen[: k + 1]] = -np.inf
    return chosen


def _default_candidates(
    num_points: int, num_coefficients: int, rng: np.random.Generator
) -> np.ndarray:
    """Points of the unit cube: a Sobol sequence, and ends and middles drawn at random."""
    from scipy.stats import qmc  # slow to import

    power = int(np.ceil(np.log2(max(512, 2 * num_points))))
    inside = qmc.Sobol(num_coefficients, rng=rng).random_base2(power)
    levels = rng.integers(0, 3, (2 * len(inside), num_coefficients)) / 2
    return np.concatenate([levels, inside])


def _read_candidates(
    candidates: ArrayLike, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    pool = np.asarray(candidates, np.float64)
    if pool.ndim != 2 or pool.shape[1] != len(lower):
        raise ValueError(
            f"`candidates` has shape {pool.shape}, expected one row per point and "
            f"{len(lower)} columns."
        )
    # Bounds may have been rounded to the precision of the candidates.
    slack = 1e-6 * (upper - lower)
    # A comparison with NaN is false, so that NaN is not inside.
    outside = ~((pool >= lower - slack) & (pool <= upper + slack)).all(axis=1)
    if outside.any():
        raise ValueError(
            f"`candidates[{int(np.argmax(outside))}]` lies outside `bounds`. Drop it, or "
            "widen the bounds."
        )
    return pool
