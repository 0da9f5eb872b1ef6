"""Designs on and around the simplex of the base and the experts."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import check_shares
from mapjax._keys import generator
from mapjax._types import ArrayLike
from mapjax.design._box import Bounds, as_points, distinct, from_base, read_box


def simplex_lattice(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    key: Array,
) -> Float[Array, "points coefficients"]:
    r"""List simplex lattices of the base and N experts, of ever higher degree.

    The lattice $\{N+1, m\}$ holds the mixtures whose parts are multiples of $1/m$; the
    base takes what the coefficients leave, so that $c \ge 0$ and $\sum_i c_i \le 1$.
    First come the corners ($m = 1$), then the midpoints of two ($m = 2$), which together
    are the $p = (N+1)(N+2)/2$ points that determine a quadratic, then $m = 3, 4, \dots$.
    Each lattice is shuffled.

    Args:
        num_points: How many; $p$ or more determine a quadratic.
        num_coefficients: How many experts there are.
        bounds: The simplex is shrunk to fit into this box, from its point nearest to the
            base.
        key: A typed key, for the order.

    Raises:
        ValueError: If a number is below 1, bounds are reversed or the key is not typed.

    Example:
        >>> import jax
        >>> points = simplex_lattice(6, 2, key=jax.random.key(0))
        >>> sorted(points.tolist())
        [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0], [0.5, 0.0], [0.5, 0.5], [1.0, 0.0]]

    References:
        Scheffé, *Experiments with mixtures*, Journal of the Royal Statistical Society B
        20(2), 1958.
    """
    box = read_box(num_points, num_coefficients, bounds)
    rng, unit, degree = generator(key), np.zeros((0, num_coefficients)), 0
    while len(unit) < num_points:
        degree += 1
        layer = _lattice(num_coefficients, degree) / degree
        unit = distinct(np.concatenate([unit, rng.permutation(layer)]))
    return as_points(_shrink(unit[:num_points], *box))


def dirichlet(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    key: Array,
) -> Float[Array, "points coefficients"]:
    r"""Draw evenly from the simplex of the base and N experts.

    The base takes what the coefficients leave, so that $c \ge 0$ and
    $\sum_i c_i \le 1$.

    Args:
        num_points: How many.
        num_coefficients: How many experts there are.
        bounds: The simplex is shrunk to fit into this box, from its point nearest to the
            base.
        key: A typed key.

    Raises:
        ValueError: If a number is below 1, bounds are reversed or the key is not typed.

    Example:
        >>> import jax
        >>> points = dirichlet(100, 3, key=jax.random.key(0))
        >>> bool((points.min() >= 0) & (points.sum(1).max() <= 1))
        True
    """
    box = read_box(num_points, num_coefficients, bounds)
    unit = generator(key).dirichlet(np.ones(num_coefficients + 1), num_points)[:, 1:]
    return as_points(_shrink(unit, *box))


def axial(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    key: Array,
) -> Float[Array, "points coefficients"]:
    r"""Go from the centre of the simplex towards and away from each of its corners.

    The parts are N experts and the base, which takes what they leave. First comes their
    centre; then, for each part, a mixture with a fifth of its share; then, for each expert,
    the mixture half-way to it alone; then points of `dirichlet`. Near the centre is what
    most preferences want, and corners say little of it.

    Args:
        num_points: How many; after $2 (N + 1)$ they are random.
        num_coefficients: How many experts there are.
        bounds: The simplex is shrunk to fit into this box, from its point nearest to the
            base.
        key: A typed key.

    Raises:
        ValueError: If a number is below 1, bounds are reversed or the key is not typed.

    Example:
        >>> import jax
        >>> (40 * axial(4, 1, key=jax.random.key(0))).ravel().round().tolist()
        [20.0, 4.0, 36.0, 30.0]

    References:
        Cornell, *Some comments on designs for Cox's mixture polynomial*, Technometrics
        17(1), 1975. Snee, Marquardt, *Screening concepts and designs for experiments with
        mixtures*, Technometrics 18(1), 1976, whose end-effect blends leave a part out.
    """
    box = read_box(num_points, num_coefficients, bounds)
    # Half-way to the base, the last part, would be one more on the axes than a quadratic
    # has unknowns there.
    first = _shrink(along_axes(num_coefficients + 1)[:-1, :-1], *box)
    rest = dirichlet(num_points, num_coefficients, bounds=bounds, key=key)
    return as_points(np.concatenate([first, rest])[:num_points])


def along_axes(num_parts: int) -> np.ndarray:
    """List the centre of a simplex, points away from each corner, and towards each."""
    centre = np.full((1, num_parts), 1 / num_parts)
    corners = np.eye(num_parts)
    # A part's share goes to this much of the way to zero, where little is left to lose.
    without = centre - 0.8 / (num_parts - 1) * (corners - centre)
    return np.concatenate([centre, without, (centre + corners) / 2])


def mixture_amount(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    amounts: tuple[float, float] | None = None,
    key: Array,
) -> Float[Array, "points coefficients"]:
    r"""Draw the proportions of the experts and the total amount apart.

    Points spread evenly over a box have $\sum_i c_i$ near $N/2$, where a merge has
    forgotten everything. Here the proportions are even on the simplex, and the amount
    $\sum_i c_i$ is even between two numbers. For orthogonal task vectors of one length,
    an amount of $\sqrt N$ takes the uniform merge as far from the base as an expert is.

    Args:
        num_points: How many.
        num_coefficients: How many experts there are.
        bounds: Coefficients are cut off at the ends of this box; those that may be zero
            are never negative, unless they may not be positive.
        amounts: Least and largest sum of the coefficients, before the cut; by default
            0.3 and the larger of 1.5 and $\sqrt N$.
        key: A typed key.

    Raises:
        ValueError: If a number is below 1, bounds or amounts are reversed or the key is
            not typed.

    Example:
        >>> import jax
        >>> points = mixture_amount(100, 3, amounts=(0.5, 1.0), key=jax.random.key(0))
        >>> bool((points.sum(1).min() >= 0.5) & (points.sum(1).max() <= 1.0))
        True

    References:
        Piepel, Cornell, *Models for mixture experiments when the response depends on the
        total amount*, Technometrics 27(3), 1985.
    """
    lower, upper = read_box(num_points, num_coefficients, bounds)
    least, most = amounts or (0.3, max(1.5, num_coefficients**0.5))
    if not 0 <= least < most:
        raise ValueError(
            f"`amounts` are {least} and {most}, expected 0 <= least < largest. Swap or "
            "correct them."
        )
    origin, reach = from_base(lower, upper)
    # A box that is smaller than the amounts is filled to its far corner.
    room = np.sum(np.abs(reach))
    if amounts is None or least >= room:
        least = min(least, room / 4)
    most = min(most, room)
    rng = generator(key)
    proportions = rng.dirichlet(np.ones(num_coefficients), num_points)
    amount = rng.uniform(least, most, (num_points, 1))
    return as_points(np.clip(origin + np.sign(reach) * amount * proportions, lower, upper))


def to_simplex(
    coefficients: Float[ArrayLike, "*batch coefficients"], num_experts: int | None = None
) -> Float[Array, "*batch coefficients"]:
    """Divide coefficients by their sum over experts, so that they sum to one.

    Args:
        coefficients: Negative ones count as zero. Where all are zero, all become equal;
            where one is NaN, all become NaN.
        num_experts: How many experts share them out, each a run with one for every group;
            those of a group sum to one. By default each is an expert's only one.

    Raises:
        ValueError: If the experts cannot share the coefficients evenly.

    Example:
        >>> import numpy as np
        >>> to_simplex(np.array([1.0, 3.0])).tolist()
        [0.25, 0.75]
        >>> to_simplex(np.array([1.0, 0.0, 3.0, 0.0]), num_experts=2).tolist()
        [0.25, 0.5, 0.75, 0.5]
    """
    c = jnp.asarray(coefficients, jnp.zeros(()).dtype)
    n = c.shape[-1] if num_experts is None else num_experts
    check_shares(n, c.shape[-1])
    each = c.reshape(*c.shape[:-1], n, -1)
    each = jnp.where(each < 0, 0, each)  # unlike a maximum, has its slope at zero
    total = jnp.sum(each, axis=-2, keepdims=True)
    shares = jnp.where(total == 0, 1 / n, each / jnp.where(total == 0, 1, total))
    return shares.reshape(c.shape)


def _lattice(num_coefficients: int, degree: int) -> np.ndarray:
    """List non-negative integers whose sum is at most `degree`."""
    # Stars and bars: which of degree + N places hold the N bars.
    bars = list(combinations(range(degree + num_coefficients), num_coefficients))
    return np.diff(np.array(bars), axis=1, prepend=-1) - 1


def _shrink(unit: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Map the unit simplex into the box, onto itself where it fits."""
    origin, reach = from_base(lower, upper)
    return origin + np.clip(reach, -1.0, 1.0) * unit
