"""The front of what a search found, on the host."""

import jax
import numpy as np

from mapjax._result import Front


def distinct_front(coefficients: np.ndarray, scores: np.ndarray) -> Front:
    """Keep the distinct, finite, non-dominated points, sorted by the first objective.

    In NumPy: how many there are is not known beforehand, and each number of points would
    be compiled anew. Time and memory are quadratic in the number of points.

    Args:
        coefficients: One point per row.
        scores: Their objectives, minimised.
    """
    finite = np.isfinite(scores).all(axis=1)
    scores, first = np.unique(scores[finite], axis=0, return_index=True)
    no_worse = np.ones((len(scores), len(scores)), bool)
    for column in scores.T:
        no_worse &= column[:, None] <= column
    # No worse and distinct is better: only the point itself may be no worse.
    kept = no_worse.sum(axis=0) == 1
    # Not by `jnp.asarray`, which compiles a copy for each number of points.
    return Front(
        jax.device_put(coefficients[finite][first][kept]), jax.device_put(scores[kept])
    )
