"""Designs that fill the box evenly."""

import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import check_least
from mapjax._keys import generator
from mapjax.design._box import Bounds, as_points, from_base, read_box


def sobol(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    key: Array,
) -> Float[Array, "points coefficients"]:
    """Draw the first points of a scrambled Sobol sequence.

    Args:
        num_points: How many; any number, though powers of two are balanced best.
        num_coefficients: Dimensions of the box.
        bounds: Its ends, each a number or one per coefficient.
        key: A typed key, for the scrambling.

    Raises:
        ValueError: If a number is below 1, bounds are reversed or the key is not typed.

    Example:
        >>> import jax
        >>> sobol(5, 2, bounds=(0.0, 0.5), key=jax.random.key(0)).shape
        (5, 2)

    References:
        Sobol, *On the distribution of points in a cube and the approximate evaluation of
        integrals*, USSR Computational Mathematics 7(4), 1967.
    """
    lower, upper = read_box(num_points, num_coefficients, bounds)
    unit = _unit_sobol(num_points, num_coefficients, generator(key))
    return as_points(lower + (upper - lower) * unit)


def multiscale(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    num_experts: int | None = None,
    key: Array,
) -> Float[Array, "points coefficients"]:
    r"""Fill the box, densest near the base: Sobol points, each shrunk by its own factor.

    With many experts, most of a box are merges whose coefficients sum to far too much. A
    point of the box is moved towards the base by a factor of $N^{-v}$ with $v$ even
    between 0 and 1, which reaches from the whole box down to the scale of the uniform
    merge of $N$ experts, $1/N$.

    Args:
        num_points: How many.
        num_coefficients: Dimensions of the box.
        bounds: Its ends, each a number or one per coefficient; points move towards that of
            the box which is nearest to the base.
        num_experts: N; by default as many as coefficients.
        key: A typed key, for the scrambling.

    Raises:
        ValueError: If a number is below 1, bounds are reversed or the key is not typed.

    Example:
        >>> import jax
        >>> points = multiscale(64, 8, key=jax.random.key(0))
        >>> bool(points.sum(1).mean() < sobol(64, 8, key=jax.random.key(0)).sum(1).mean())
        True
    """
    lower, upper = read_box(num_points, num_coefficients, bounds)
    check_least("num_experts", num_experts, 1)
    unit = _unit_sobol(num_points, num_coefficients + 1, generator(key))
    origin, _ = from_base(lower, upper)
    shrink = (num_experts or num_coefficients) ** -unit[:, -1:]
    point = lower + (upper - lower) * unit[:, :-1]
    return as_points(origin + shrink * (point - origin))


def latin_hypercube(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    key: Array,
) -> Float[Array, "points coefficients"]:
    """Draw points that fall into every one of `num_points` slices of each coefficient.

    Args:
        num_points: How many.
        num_coefficients: Dimensions of the box.
        bounds: Its ends, each a number or one per coefficient.
        key: A typed key.

    Raises:
        ValueError: If a number is below 1, bounds are reversed or the key is not typed.

    Example:
        >>> import jax
        >>> points = latin_hypercube(4, 2, key=jax.random.key(0))
        >>> sorted((points[:, 0] * 4).astype(int).tolist())
        [0, 1, 2, 3]

    References:
        McKay, Beckman, Conover, *A comparison of three methods for selecting values of
        input variables*, Technometrics 21(2), 1979.
    """
    from scipy.stats import qmc  # slow to import

    lower, upper = read_box(num_points, num_coefficients, bounds)
    unit = qmc.LatinHypercube(num_coefficients, rng=generator(key)).random(num_points)
    return as_points(lower + (upper - lower) * unit)


def _unit_sobol(num_points: int, dimensions: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.stats import qmc  # slow to import

    # A whole power of two, of which a part is kept: SciPy warns of anything else.
    power = int(np.ceil(np.log2(num_points)))
    return qmc.Sobol(dimensions, rng=rng).random_base2(power)[:num_points]
