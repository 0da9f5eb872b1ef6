"""The design of the MAP paper, with its lack of rank repaired."""

import numpy as np
from jaxtyping import Array, Float

from mapjax._keys import generator
from mapjax.design._box import Bounds, as_points, distinct, read_box
from mapjax.design._d_optimal import keep_determined


def mixture(
    num_points: int,
    num_coefficients: int,
    *,
    bounds: Bounds = (0.0, 1.0),
    key: Array,
) -> Float[Array, "points coefficients"]:
    r"""Draw points of a regular grid, after the base and the experts.

    The grid has $\max(3, \lceil K^{1/N} \rceil)$ levels. With two, which the paper uses
    from N = 7 on, every coefficient equals its square and no number of points determines
    a quadratic.

    Args:
        num_points: How many, K; $(N+1)(N+2)/2$ or more determine a quadratic.
        num_coefficients: How many experts there are, N.
        bounds: The grid reaches from one end of this box to the other; base and experts
            are its corners.
        key: A typed key.

    Raises:
        ValueError: If a number is below 1, bounds are reversed or the key is not typed.

    Example:
        >>> import jax
        >>> mixture(9, 2, key=jax.random.key(0))[:3].tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via
        Quadratic Approximation*, ICLR 2025, arXiv 2406.07529.
    """
    lower, upper = read_box(num_points, num_coefficients, bounds)
    rng = generator(key)
    levels = max(3, int(np.ceil(num_points ** (1 / num_coefficients))))
    first = unit = np.eye(num_coefficients + 1, num_coefficients, k=-1)
    while len(unit) < num_points:
        more = rng.integers(0, levels, (2 * num_points, num_coefficients)) / (levels - 1)
        unit = distinct(np.concatenate([unit, more]))
    unit = keep_determined(unit, num_points, given=len(first))
    return as_points(lower + (upper - lower) * unit)
