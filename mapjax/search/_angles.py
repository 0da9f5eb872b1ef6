"""Cells of directions, and which of them to sample: the scheme of Bayesian MAP."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import betainc, betaincinv

from mapjax._checks import check_count
from mapjax._keys import generator
from mapjax._types import ArrayLike

_TEMPERATURE = 0.07
_RADII = (0.2, 0.8)


def propose_cells(
    coefficients: ArrayLike, losses: ArrayLike, count: int, *, key: Any
) -> Float[np.ndarray, "proposals coefficients"]:
    r"""Draw points of the unit box from cells of directions where a surrogate errs most.

    As in Bayesian MAP, directions are told apart by their hyperspherical angles, each cut
    into four parts, or two from four coefficients on; a cell's score is the mean loss of
    its points plus half the standard deviation of that mean when a fifth of them are
    dropped, and cells are drawn with probabilities softmax(score / 0.07). A point is
    uniform within its cell, at a distance from 0.2 to 0.8 from the origin.

    Repaired: angles are counted by the share of directions below them, so that cells are
    equally wide and the last coefficients are not always small. Cells are never enumerated:
    those with points compete with as many without, drawn at random, which score like a
    single point with the mean loss. The deviation is in closed form, from all points where
    a cell has one.

    Args:
        coefficients: Evaluated points of the unit box, `[points, coefficients]`. One at the
            origin is in no cell, but counts for the mean.
        losses: Squared errors of the surrogate there, in units where 1 is the whole range
            of scores; NaN where unknown.
        count: How many points to draw, at least 1.
        key: A typed key.

    Raises:
        ValueError: If a shape is wrong, `count` is too small, or the key is not typed.

    Example:
        >>> import jax, numpy as np
        >>> c = np.eye(3)
        >>> points = propose_cells(c, np.array([0.0, 0.0, 9.0]), 4, key=jax.random.key(0))
        >>> bool(np.all(points.argmax(axis=1) == 2))  # where the loss is
        True

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via
        Quadratic Approximation*, ICLR 2025, arXiv 2406.07529, Bayesian MAP.
    """
    c, loss = np.asarray(coefficients, float), np.asarray(losses, float)
    if c.ndim != 2 or 0 in c.shape or loss.shape != c.shape[:1]:
        raise ValueError(
            f"`coefficients` has shape {c.shape} and `losses` {loss.shape}, but they must be "
            "[points, coefficients] and [points], with at least one of each."
        )
    check_count("count", count, 1)
    rng = generator(key)
    parts = 4 if c.shape[1] < 4 else 2
    placed = (c > 0).any(axis=1)
    cells = np.minimum(np.floor(parts * shares_of(c[placed])), parts - 1).astype(int)
    occupied, where = np.unique(cells, axis=0, return_inverse=True)
    others = rng.integers(0, parts, (len(occupied), c.shape[1] - 1))
    others = np.unique(others, axis=0)
    fresh = ~(others[:, None] == occupied).all(axis=2).any(axis=1)
    pool = np.concatenate([occupied, others[fresh]])

    finite = np.isfinite(loss)
    known = loss[finite] if finite.any() else np.zeros(1)
    average = _score(known.mean(), known.std(), 1)
    scores = np.full(len(pool), average)
    for i in range(len(occupied)):
        own = loss[placed][where.ravel() == i]
        own = own[np.isfinite(own)]
        if len(own):
            spread = own.std(ddof=1) if len(own) > 1 else known.std()
            scores[i] = _score(own.mean(), spread, len(own))
    chance = np.exp((scores - scores.max()) / _TEMPERATURE)
    drawn = pool[rng.choice(len(pool), count, p=chance / chance.sum())]
    directions = directions_of((drawn + rng.random(drawn.shape)) / parts)
    return directions * rng.uniform(*_RADII, (count, 1))


def shares_of(
    points: Float[np.ndarray, "points coefficients"],
) -> Float[np.ndarray, "points angles"]:
    """Say for each angle of a direction which share of all directions lies below it.

    Uniform in [0, 1], and independent, for directions uniform on the positive part of the
    sphere: of squared coordinates, each is distributed as a beta of what is left.

    Args:
        points: Non-negative, none of them at the origin.
    """
    squares = np.asarray(points, float) ** 2
    left = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
    share = np.where(left > 0, squares / np.where(left > 0, left, 1), 0.0)[:, :-1]
    after = np.arange(squares.shape[1] - 1, 0, -1)
    return betainc(0.5, after / 2, share)


def directions_of(
    shares: Float[np.ndarray, "points angles"],
) -> Float[np.ndarray, "points coefficients"]:
    """Give the unit directions of some shares: the inverse of `shares_of`."""
    after = np.arange(shares.shape[1], 0, -1)
    taken = betaincinv(0.5, after / 2, shares)
    ones = np.ones((len(shares), 1))
    left = np.concatenate([ones, np.cumprod(1 - taken, axis=1)], axis=1)
    return np.sqrt(left * np.concatenate([taken, ones], axis=1))


def _score(mean: float, spread: float, count: int) -> float:
    # A mean of 80 % of n values, drawn without replacement, varies by spread^2 / (4 n).
    return mean + 0.5 * spread / (2 * np.sqrt(count))
