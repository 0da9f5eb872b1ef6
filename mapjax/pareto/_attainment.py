"""How sure a front of two objectives is, from draws of its points."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._jit import jit
from mapjax._types import ArrayLike
from mapjax.pareto._checks import as_float


def attainment_band(
    draws: ArrayLike, levels: ArrayLike, *, probability: float = 0.9
) -> tuple[Float[Array, " levels"], Float[Array, " levels"]]:
    """Give the credible band of the front of points whose objectives are uncertain.

    Each draw has a front of its own: at a level of the first objective, the least second
    objective of a point that is not above that level in the first. The band holds the
    middle share of these.

    Args:
        draws: `[draws, points, 2]`, minimised: objectives of all points, drawn jointly from
            what is believed of them: predictions plus a surrogate's `errors`.
        levels: Of the first objective, `[levels]`.
        probability: Share of the draws within the band at a level, above 0 and below 1.

    Returns:
        Lower and upper end `[levels]` of the second objective; infinite where, in so many
        draws, no point comes down to the level. A point with a NaN in a draw is not in it.

    Raises:
        ValueError: If `draws` is not `[draws, points, 2]`, `levels` is not a vector, or
            `probability` is not between 0 and 1.

    Example:
        >>> import jax.numpy as jnp
        >>> draws = jnp.array([[[0.0, 1.0], [1.0, 0.0]], [[0.5, 1.5], [1.5, 0.5]]])
        >>> lower, upper = attainment_band(draws, jnp.array([0.1, 2.0]), probability=0.9)
        >>> lower.tolist(), upper.tolist()
        ([1.0, 0.0], [inf, 0.5])

    References:
        Binois, Ginsbourger and Roustant, *Quantifying uncertainty on Pareto fronts with
        Gaussian process conditional simulations*, European Journal of Operational Research
        243, 2015.
    """
    shape = np.shape(draws)
    if len(shape) != 3 or shape[2] != 2 or 0 in shape:
        raise ValueError(
            f"`draws` has shape {shape}, but must be [draws, points, 2]; choose two "
            "objectives as `draws[..., [0, 1]]`."
        )
    if np.ndim(levels) != 1:
        raise ValueError(f"`levels` has shape {np.shape(levels)}, but must be [levels].")
    if not 0 < probability < 1:
        raise ValueError(
            f"`probability` is {probability}, but must be above 0 and below 1, such as 0.9."
        )
    return _band(as_float(draws), as_float(levels), probability)


@jit
def _band(
    draws: Float[Array, "draws points two"], levels: Array, probability: float
) -> tuple[Float[Array, " levels"], Float[Array, " levels"]]:
    def least(draw):
        first, second = draw.T
        second = jnp.where(jnp.isnan(second), jnp.inf, second)
        # Comparisons with NaN are False: a point without a first objective is nowhere.
        return jnp.min(
            jnp.where(first[:, None] <= levels, second[:, None], jnp.inf), axis=0
        )

    reached = jnp.sort(jax.lax.map(least, draws), axis=0)
    # Not interpolated, as between a number and infinity there is nothing.
    outside = (1 - probability) / 2 * (len(draws) - 1)
    low, high = jnp.floor(outside), jnp.ceil(len(draws) - 1 - outside)
    return reached[low.astype(int)], reached[high.astype(int)]
