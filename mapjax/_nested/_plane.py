"""The plane of two merges: where it meets the box, and its best point."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from mapjax._result import Samples
from mapjax._sizes import room_for
from mapjax.evaluation import Problem
from mapjax.surrogate import Quadratic, fit_quadratic

_GRID = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 6)]), axis=-1).reshape(-1, 2)
_ZOOM = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 3)]), axis=-1).reshape(-1, 2)
_NUM_ZOOMS = 6
_IN_PLANE = 1e-5
_NUM_UNKNOWNS = 6

Values = Callable[[np.ndarray], np.ndarray]
"""From points `[planes, points, 2]` to what is to be large, `[planes, points]`."""


def reach(
    rows: Float[np.ndarray, "preferences coefficients"],
    lower: np.ndarray,
    upper: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Say by what factors merges can be multiplied without leaving the box.

    A single expert may go wherever its coefficient may; a merge only shrinks, since its
    size was chosen.
    """
    single = (rows != 0).sum(axis=1) == 1
    expert = single & (rows.max(axis=1) == 1)
    safe = np.where(rows == 0, 1.0, rows)
    ends = np.sort(np.stack([lower / safe, upper / safe]), axis=0)
    low, high = np.where(rows == 0, [[[-np.inf]], [[np.inf]]], ends)
    low, high = low.max(axis=1), high.min(axis=1)
    low, high = (
        np.where(expert, low, np.maximum(low, 0)),
        np.where(expert, high, np.minimum(high, 1)),
    )
    return np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 1.0)


def maximise(values: Values, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Find the best point of each plane on a grid that zooms in.

    Metrics such as accuracy are steps: there is no gradient to follow.

    Args:
        values: What is to be large; NaN is never chosen.
        lower: Lower ends of the box, `[planes, 2]`.
        upper: Upper ends.
    """
    centre, half = (lower + upper) / 2, (upper - lower) / 2
    for zoom in range(1 + _NUM_ZOOMS):
        grid = _ZOOM if zoom else _GRID
        points = centre[:, None] + half[:, None] * grid
        points = np.clip(points, lower[:, None], upper[:, None])
        found = np.asarray(values(points), float)
        best = np.argmax(np.where(np.isnan(found), -np.inf, found), axis=1)
        centre = points[np.arange(len(points)), best]
        half = half / (2 if zoom else 5)
    return centre


def fit_plane(
    samples: Samples,
    first: Float[np.ndarray, " coefficients"],
    second: Float[np.ndarray, " coefficients"],
    problem: Problem,
    ridge: Any,
) -> Quadratic:
    """Fit a quadratic of two coefficients to the samples that lie in a plane.

    The base lies in every plane, and a merge that two planes share is evaluated once.
    """
    c, scores = np.asarray(samples.coefficients, float), np.asarray(samples.scores, float)
    basis = np.stack([first, second], axis=1)
    xy = np.linalg.lstsq(basis, c.T, rcond=None)[0].T
    near = np.abs(c - xy @ basis.T).max(axis=1) < _IN_PLANE
    places = np.flatnonzero(near)
    # Rows without a score, up to a power of two, so that few sizes are compiled.
    capacity = room_for(len(places), 32)
    points, values = np.zeros((capacity, 2)), np.full((capacity, scores.shape[1]), np.nan)
    points[: len(places)], values[: len(places)] = xy[places], scores[places]
    # A task that failed everywhere in the plane says nothing about it.
    for task in np.flatnonzero(~np.isfinite(values).any(axis=0)):
        values[: len(places), task] = scores[np.isfinite(scores[:, task]), task][0]
    if ridge in (None, "auto"):  # the experts lie too far out to be left out in turn
        determined = np.isfinite(values).sum(axis=0).min() >= _NUM_UNKNOWNS
        ridge = None if determined else "auto"
    return fit_quadratic(
        points.astype(np.asarray(samples.coefficients).dtype),
        values.astype(np.asarray(samples.scores).dtype),
        link=problem.link,
        bounds=problem.link_bounds,
        num_examples=problem.num_examples,
        ridge=ridge,
    )
