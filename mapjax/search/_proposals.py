"""Which points to evaluate next."""

import numpy as np
from jaxtyping import Float, Int

from mapjax._types import ArrayLike


def propose(
    draws: Float[ArrayLike, "draws points objectives"],
    preferences: Float[ArrayLike, "draws objectives"],
    allowed: ArrayLike,
) -> Int[np.ndarray, " proposals"]:
    """Choose points by Thompson sampling: one preference and one posterior draw for each.

    The point that is best for the preference in its draw is taken, or the best that was
    not taken before: spread comes from the preferences, exploration from the draws.

    Args:
        draws: Objectives, minimised, drawn jointly for all points.
        preferences: Non-negative weights, one row per draw.
        allowed: Which points may be chosen, `[points]`.

    Returns:
        Distinct indices, one per draw or as many as are allowed.
    """
    values = np.einsum("dpm,dm->dp", np.asarray(draws), np.asarray(preferences))
    open_ = np.array(allowed, bool)
    chosen = []
    for row in np.where(np.isnan(values), np.inf, values):
        if not open_.any():
            break
        index = int(np.argmin(np.where(open_, row, np.inf)))
        if not open_[index]:  # all that is allowed is infinite
            index = int(np.flatnonzero(open_)[0])
        open_[index] = False
        chosen.append(index)
    return np.array(chosen, int)
