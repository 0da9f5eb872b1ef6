"""Reference directions: well-spaced points on the unit simplex."""

from functools import lru_cache
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import check_count
from mapjax._keys import check_key

_MOST = 10_000_000
"""Numbers a lattice may hold: a typo in `partitions` should not fill the memory."""


def das_dennis(num_objectives: int, partitions: int) -> Float[Array, "points objectives"]:
    """Make the simplex lattice: all vectors of multiples of 1/partitions that sum to one.

    Args:
        num_objectives: How many objectives, at least 2.
        partitions: Steps along each edge of the simplex, at least 1.

    Returns:
        `comb(num_objectives + partitions - 1, partitions)` directions.

    Raises:
        ValueError: If an argument is too small, or the lattice too large for memory.

    Example:
        >>> das_dennis(2, 2).tolist()
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]

    References:
        Das and Dennis, *Normal-boundary intersection*, SIAM J. Optimization, 1998.
    """
    check_count("num_objectives", num_objectives, 2)
    check_count("partitions", partitions, 1)
    return jnp.asarray(_lattice(num_objectives, partitions))


def two_layer(
    num_objectives: int, outer: int, inner: int, *, shrink: float = 0.5
) -> Float[Array, "points objectives"]:
    """Make two simplex lattices, the second drawn in towards the centre.

    With many objectives, a lattice of a reasonable size has all its points on the boundary
    of the simplex; the inner layer fills the middle.

    Args:
        num_objectives: How many objectives, at least 2.
        outer: Partitions of the outer lattice, at least 1.
        inner: Partitions of the inner lattice, at least 1.
        shrink: Size of the inner lattice relative to the outer one, inside (0, 1).

    Returns:
        The outer directions, then the inner ones.

    Raises:
        ValueError: If an argument is out of its range, or a lattice too large for memory.

    Example:
        >>> two_layer(2, 1, 1).tolist()
        [[0.0, 1.0], [1.0, 0.0], [0.25, 0.75], [0.75, 0.25]]

    References:
        Deb and Jain, *An evolutionary many-objective optimization algorithm using
        reference-point-based nondominated sorting approach, part I*, 2014 (section V-A).
    """
    check_count("num_objectives", num_objectives, 2)
    check_count("outer", outer, 1)
    check_count("inner", inner, 1)
    if not 0 < shrink < 1:
        raise ValueError(f"`shrink` is {shrink}, but must lie inside (0, 1); try 0.5.")
    return jnp.asarray(_two_lattices(num_objectives, outer, inner, shrink))


def riesz_energy(
    num_objectives: int, num_points: int, *, key: Any
) -> Float[Array, "points objectives"]:
    """Spread any number of points over the simplex by their mutual repulsion.

    Minimises the Riesz energy `sum_{i<j} |x_i - x_j|^-s`, s = num_objectives^2, by a
    projected gradient from a well-spread random start. The corners are points and stay.
    Runs on the host in float64; time grows with the square of `num_points` (0.2 s for 100
    points, 8 objectives), so make directions once and not inside a jitted function.

    Args:
        num_objectives: How many objectives, at least 2.
        num_points: How many directions, at least 1. With fewer than `num_objectives`
            there is no room for the corners.
        key: A typed key, for the start.

    Returns:
        Exactly `num_points` directions, the corners first.

    Raises:
        ValueError: If a count is too small, or the key is not typed.

    Example:
        >>> import jax
        >>> riesz_energy(3, 10, key=jax.random.key(0)).shape
        (10, 3)

    References:
        Blank, Deb, Dhebar, Bandaru and Seada, *Generating well-spaced points on a unit
        simplex for evolutionary many-objective optimization*, 2021.
    """
    check_count("num_objectives", num_objectives, 2)
    check_count("num_points", num_points, 1)
    check_key(key)
    seed = np.asarray(jax.random.bits(key, (4,))).tolist()
    return jnp.asarray(_repel(num_objectives, num_points, tuple(seed)))


def reference_directions(
    num_objectives: int, num_points: int
) -> Float[Array, "points objectives"]:
    """Make exactly `num_points` well-spaced directions, whatever the number.

    A Das-Dennis lattice where one has that many points (with 2 objectives always), the
    two-layer set of Deb and Jain where that has (8 objectives and 156 points, ...), and
    points of least Riesz energy otherwise. Deterministic, and cached.

    Args:
        num_objectives: How many objectives, at least 2.
        num_points: How many directions, at least 1.

    Returns:
        Directions: non-negative, each summing to one; the corners of the simplex are among
        them wherever there are at least `num_objectives`.

    Raises:
        ValueError: If a count is too small.

    Example:
        >>> reference_directions(2, 3).tolist()
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
        >>> reference_directions(8, 100).shape
        (100, 8)
    """
    check_count("num_objectives", num_objectives, 2)
    check_count("num_points", num_points, 1)
    return jnp.asarray(_choose(num_objectives, num_points))


# The cached functions work in NumPy: a cached JAX array made under a trace would leak it.


@lru_cache(maxsize=64)
def _choose(num_objectives: int, num_points: int) -> np.ndarray:
    partitions = 1
    while (size := comb(num_objectives + partitions - 1, partitions)) <= num_points:
        if size == num_points:
            return _lattice(num_objectives, partitions)
        # A second layer pays where the lattice has no point inside the simplex.
        inner = comb(num_objectives + partitions - 2, partitions - 1)
        if 1 < partitions < num_objectives and size + inner == num_points:
            return _two_lattices(num_objectives, partitions, partitions - 1, 0.5)
        partitions += 1
    return _repel(num_objectives, num_points, (0,))


@lru_cache(maxsize=64)
def _lattice(num_objectives: int, partitions: int) -> np.ndarray:
    size = comb(num_objectives + partitions - 1, partitions)
    if size * num_objectives > _MOST:
        raise ValueError(
            f"A lattice of {num_objectives} objectives and {partitions} partitions has "
            f"{size:,} points; use fewer partitions, `two_layer` or `riesz_energy`."
        )
    # Column by column: each row so far, repeated with every share of what it has left.
    rows, left = np.zeros((1, 0), dtype=np.int64), np.array([partitions])
    for _ in range(num_objectives - 1):
        shares = np.concatenate([np.arange(rest + 1) for rest in left])
        parents = np.repeat(np.arange(len(left)), left + 1)
        rows = np.concatenate([rows[parents], shares[:, None]], axis=1)
        left = left[parents] - shares
    return np.concatenate([rows, left[:, None]], axis=1) / partitions


def _two_lattices(num_objectives: int, outer: int, inner: int, shrink: float) -> np.ndarray:
    centre = (1 - shrink) / num_objectives
    return np.concatenate(
        [_lattice(num_objectives, outer), shrink * _lattice(num_objectives, inner) + centre]
    )


@lru_cache(maxsize=64)
def _repel(num_objectives: int, num_points: int, seed: tuple[int, ...]) -> np.ndarray:
    if num_points == 1:
        return np.full((1, num_objectives), 1 / num_objectives)
    points = _spread_start(num_objectives, num_points, np.random.default_rng(seed))
    num_fixed = num_objectives if num_points >= num_objectives else 0
    exponent = num_objectives**2 / 2 + 1
    spacing = num_points ** (-1 / (num_objectives - 1))
    for step in 0.5 * (1 + np.cos(np.linspace(0, np.pi, 300))):
        difference = _squared_distances(points)
        nearest = difference.min(axis=1, keepdims=True)
        # Forces relative to that of the nearest neighbour: no overflow at a large s.
        weights = np.exp(exponent * np.log(nearest / difference))
        force = weights.sum(axis=1, keepdims=True) * points - weights @ points
        force -= force.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(force, axis=1, keepdims=True)
        move = 0.1 * spacing * step * force / np.maximum(norm, 1e-12)
        points[num_fixed:] = _project(points[num_fixed:] + move[num_fixed:])
    return points


def _spread_start(
    num_objectives: int, num_points: int, rng: np.random.Generator
) -> np.ndarray:
    """Choose the corners and then, of many random points, ever the farthest."""
    corners = np.eye(num_objectives) if num_points >= num_objectives else None
    pool = rng.dirichlet(np.ones(num_objectives), size=10 * num_points)
    chosen = list(corners) if corners is not None else [pool[0]]
    distance = np.full(len(pool), np.inf)
    for point in chosen:
        distance = np.minimum(distance, ((pool - point) ** 2).sum(axis=1))
    while len(chosen) < num_points:
        chosen.append(pool[np.argmax(distance)])
        distance = np.minimum(distance, ((pool - chosen[-1]) ** 2).sum(axis=1))
    return np.array(chosen)


def _squared_distances(points: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist  # slow to import, and often not needed

    distance = cdist(points, points, "sqeuclidean")
    np.fill_diagonal(distance, 1e6)  # no point is its own neighbour
    return np.maximum(distance, 1e-12)


def _project(points: np.ndarray) -> np.ndarray:
    """Find the nearest points of the simplex (Duchi et al., 2008)."""
    descending = -np.sort(-points, axis=1)
    excess = (np.cumsum(descending, axis=1) - 1) / np.arange(1, points.shape[1] + 1)
    kept = (descending > excess).sum(axis=1, keepdims=True)
    return np.maximum(points - np.take_along_axis(excess, kept - 1, axis=1), 0)
