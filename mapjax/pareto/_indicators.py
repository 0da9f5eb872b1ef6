"""Indicators: how close, how even and how much better one set of points is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mapjax._jit import jit
from mapjax._types import ArrayLike
from mapjax.pareto._checks import as_pair, as_points

_BLOCK = 256
"""Points compared with all others at a time: bounds memory at `_BLOCK x points`."""


def gd(scores: ArrayLike, front: ArrayLike) -> Float[Array, ""]:
    """Measure the generational distance: how far the points are from the front.

    The mean over `scores` of the Euclidean distance to the nearest point of `front`.

    Args:
        scores: `[points, objectives]`, what was found.
        front: `[points, objectives]`, what should be found.

    Returns:
        The mean distance, at least 0, smaller is better. Rows that are not finite are left
        out; infinite if a set has no others.

    Raises:
        ValueError: If a set is not `[points, objectives]` or their objectives differ.

    Example:
        >>> import jax.numpy as jnp
        >>> front = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> float(gd(jnp.array([[0.0, 3.0]]), front))
        2.0

    References:
        Van Veldhuizen, *Multiobjective evolutionary algorithms: classifications, analyses,
        and new innovations*, 1999.
    """
    return _mean_to_nearest(*as_pair(scores, front, ("scores", "front")), _difference)


def gd_plus(scores: ArrayLike, front: ArrayLike) -> Float[Array, ""]:
    """Measure the generational distance by what the points lack, not by what they exceed.

    As `gd`, with the distance `|max(point - target, 0)|` of a point to a target.

    Args:
        scores: `[points, objectives]`, what was found, minimised.
        front: `[points, objectives]`, what should be found, minimised.

    Returns:
        The mean distance, at least 0, smaller is better. Rows that are not finite are left
        out; infinite if a set has no others.

    Raises:
        ValueError: If a set is not `[points, objectives]` or their objectives differ.

    Example:
        >>> import jax.numpy as jnp
        >>> float(gd_plus(jnp.array([[-5.0, 3.0]]), jnp.array([[0.0, 1.0]])))
        2.0

    References:
        Ishibuchi, Masuda, Tanigaki and Nojima, *Modified distance calculation in
        generational distance and inverted generational distance*, EMO 2015.
    """
    return _mean_to_nearest(*as_pair(scores, front, ("scores", "front")), _excess)


def igd(scores: ArrayLike, front: ArrayLike) -> Float[Array, ""]:
    """Measure the inverted generational distance: how far the front is from the points.

    The mean over `front` of the Euclidean distance to the nearest point of `scores`, so
    that parts of the front that were not found count.

    Args:
        scores: `[points, objectives]`, what was found.
        front: `[points, objectives]`, what should be found.

    Returns:
        The mean distance, at least 0, smaller is better. Rows that are not finite are left
        out; infinite if a set has no others.

    Raises:
        ValueError: If a set is not `[points, objectives]` or their objectives differ.

    Example:
        >>> import jax.numpy as jnp
        >>> front = jnp.array([[0.0, 4.0], [3.0, 0.0]])
        >>> float(igd(jnp.array([[0.0, 4.0]]), front))
        2.5

    References:
        Coello Coello and Reyes Sierra, *A study of the parallelization of a coevolutionary
        multi-objective evolutionary algorithm*, MICAI 2004.
    """
    points, targets = as_pair(scores, front, ("scores", "front"))
    return _mean_to_nearest(targets, points, _difference)


def igd_plus(scores: ArrayLike, front: ArrayLike) -> Float[Array, ""]:
    """Measure the inverted generational distance by what the points lack.

    As `igd`, with the distance `|max(point - target, 0)|`, which makes it weakly Pareto
    compliant: a set that dominates another is never worse.

    Args:
        scores: `[points, objectives]`, what was found, minimised.
        front: `[points, objectives]`, what should be found, minimised.

    Returns:
        The mean distance, at least 0, smaller is better. Rows that are not finite are left
        out; infinite if a set has no others.

    Raises:
        ValueError: If a set is not `[points, objectives]` or their objectives differ.

    Example:
        >>> import jax.numpy as jnp
        >>> front = jnp.array([[0.0, 4.0], [3.0, 0.0]])
        >>> float(igd_plus(jnp.array([[0.0, 4.0]]), front))
        2.0

    References:
        Ishibuchi, Masuda, Tanigaki and Nojima, *Modified distance calculation in
        generational distance and inverted generational distance*, EMO 2015.
    """
    points, targets = as_pair(scores, front, ("scores", "front"))
    return _mean_to_nearest(targets, points, _shortfall)


def _difference(point: Array, target: Array) -> Array:
    return point - target


def _excess(point: Array, target: Array) -> Array:
    return jnp.maximum(point - target, 0)


def _shortfall(target: Array, point: Array) -> Array:
    return jnp.maximum(point - target, 0)


def _finite(scores: Float[Array, "points objectives"]) -> Bool[Array, " points"]:
    return jnp.all(jnp.isfinite(scores), axis=-1)


@jit
def _mean_to_nearest(
    origins: Float[Array, "origins objectives"],
    targets: Float[Array, "targets objectives"],
    gap: Callable[[Array, Array], Array],
) -> Float[Array, ""]:
    reachable = _finite(targets)

    counted = _finite(origins)
    # Rows left out are set to 0 before anything is computed: a NaN would spread to every
    # gradient.
    origins = jnp.where(counted[:, None], origins, 0)
    targets = jnp.where(reachable[:, None], targets, 0)

    def to_nearest(origin):
        square = jnp.sum(gap(origin, targets) ** 2, axis=-1)
        return jnp.min(jnp.where(reachable, square, jnp.inf))

    squares = jax.lax.map(to_nearest, origins, batch_size=_BLOCK)
    # The root has no slope at 0, where points meet: 0 is its subgradient there.
    apart = squares > 0
    distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
    num_counted = jnp.sum(counted)
    mean = jnp.sum(jnp.where(counted, distances, 0)) / jnp.maximum(num_counted, 1)
    return jnp.where(num_counted > 0, mean, jnp.inf)


def spacing(scores: ArrayLike) -> Float[Array, ""]:
    """Measure how unevenly points are spaced (Schott).

    The standard deviation, `1 / (points - 1)`, of the Manhattan distance of each point to
    its nearest neighbour.

    Args:
        scores: `[points, objectives]`.

    Returns:
        At least 0, and 0 for evenly spaced points or fewer than two. Rows that are not
        finite are left out.

    Raises:
        ValueError: If `scores` is not `[points, objectives]`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(spacing(jnp.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])))
        0.0

    References:
        Schott, *Fault tolerant design using single and multicriteria genetic algorithm
        optimization*, 1995.
    """
    return _spacing(as_points(scores))


@jit
def _spacing(scores: Float[Array, "points objectives"]) -> Float[Array, ""]:
    counted = _finite(scores)
    index = jnp.arange(len(scores))

    def to_nearest(own):
        point, own_index = own
        distance = jnp.sum(jnp.abs(point - scores), axis=-1)
        return jnp.min(jnp.where(counted & (index != own_index), distance, jnp.inf))

    distances = jax.lax.map(to_nearest, (scores, index), batch_size=_BLOCK)
    # A point without a neighbour is infinitely far from it: it has no spacing.
    counted &= jnp.isfinite(distances)
    num_counted = jnp.sum(counted)
    mean = jnp.sum(jnp.where(counted, distances, 0)) / jnp.maximum(num_counted, 1)
    squares = jnp.sum(jnp.where(counted, (distances - mean) ** 2, 0))
    return jnp.sqrt(squares / jnp.maximum(num_counted - 1, 1))


def coverage(a: ArrayLike, b: ArrayLike) -> Float[Array, ""]:
    """Measure the share of `b` that some point of `a` weakly dominates (Zitzler's C).

    Args:
        a: `[points, objectives]`, minimised.
        b: `[points, objectives]`, minimised.

    Returns:
        A share in [0, 1]; `coverage(b, a)` is not its complement. Rows with a NaN are left
        out; 0 if `b` has no others.

    Raises:
        ValueError: If a set is not `[points, objectives]` or their objectives differ.

    Example:
        >>> import jax.numpy as jnp
        >>> a = jnp.array([[0.0, 1.0]])
        >>> b = jnp.array([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
        >>> float(coverage(a, b))
        0.5

    References:
        Zitzler and Thiele, *Multiobjective evolutionary algorithms: a comparative case
        study and the strength Pareto approach*, 1999.
    """
    return _coverage(*as_pair(a, b, ("a", "b")))


@jit
def _coverage(
    a: Float[Array, "a objectives"], b: Float[Array, "b objectives"]
) -> Float[Array, ""]:
    def is_covered(point):
        # A comparison with NaN is False: such rows neither cover nor are covered.
        return jnp.any(jnp.all(a <= point, axis=-1))

    covered = jax.lax.map(is_covered, b, batch_size=_BLOCK)
    num_counted = jnp.sum(~jnp.any(jnp.isnan(b), axis=-1))
    return jnp.sum(covered).astype(b.dtype) / jnp.maximum(num_counted, 1)


def win_rate(a: ArrayLike, b: ArrayLike) -> Float[Array, " tasks"]:
    """Measure, per task, the share of pairs in which the point of `a` is better.

    Every point of `a` is paired with every point of `b`. A tie is no win for either, so
    that `win_rate(a, b) + win_rate(b, a)` is at most one.

    Args:
        a: `[points, tasks]`, minimised: negate the scores of a task that is maximised.
        b: `[points, tasks]`, minimised.

    Returns:
        One share in [0, 1] per task. Rows with a NaN are left out; 0 if a set has no
        others.

    Raises:
        ValueError: If a set is not `[points, tasks]` or their tasks differ in number.

    Example:
        >>> import jax.numpy as jnp
        >>> win_rate(jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 1.0], [2.0, 0.0]])).tolist()
        [1.0, 0.0]

    References:
        Li et al., *MAP: Low-compute model merging with amortized Pareto fronts via
        quadratic approximation*, ICLR 2025 (section 4).
    """
    return _win_rate(*as_pair(a, b, ("a", "b")))


@jit
def _win_rate(
    a: Float[Array, "a tasks"], b: Float[Array, "b tasks"]
) -> Float[Array, " tasks"]:
    in_a, in_b = (~jnp.any(jnp.isnan(points), axis=-1) for points in (a, b))
    num_pairs = jnp.sum(in_a).astype(a.dtype) * jnp.sum(in_b)
    # Rows of b that are left out beat everything, and so never lose a pair.
    b = jnp.sort(jnp.where(in_b[:, None], b, -jnp.inf), axis=0)

    def one_task(a, b):
        beaten = len(b) - jnp.searchsorted(b, a, side="right")
        return jnp.sum(jnp.where(in_a, beaten, 0).astype(a.dtype))

    wins = jax.vmap(one_task, in_axes=1)(a, b)
    return wins / jnp.maximum(num_pairs, 1)
