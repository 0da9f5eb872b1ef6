"""What leave-one-out errors say: which fit to take, and how far to trust it."""

import numpy as np

from mapjax.surrogate._kernel import Gram

DEFAULT = (np.inf, 1e-3)
"""Degree and penalty where there is nothing to choose them by."""
POWERS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of the outputs' deviation, that errors of scores may grow with."""
LEAST_JUDGES = 5
_EVIDENCE = 2.0
"""Differences of log-likelihoods below it say nothing."""


def losses(
    options: list[tuple[Gram, float]],
    predicted: np.ndarray,
    measured: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Give the mean squared errors of each option for samples that it was not shown.

    A score that is missing judges nothing. With too few samples, all options but the default
    are infinitely bad.
    """
    seen = np.isfinite(measured)
    shares = seen * weights[:, None]
    total = np.full(len(options), np.inf)
    if len(measured) >= LEAST_JUDGES and shares.any():
        count = np.maximum(seen.sum(axis=0), 1)
        mean = np.where(seen, measured, 0.0).sum(axis=0) / count
        spread = np.where(seen, measured - mean, 0.0)
        spread = np.sum(spread**2, axis=0) / count
        errors = (predicted - measured) ** 2 / np.where(spread > 0, spread, 1.0)
        total = np.where(seen, errors * shares, 0.0).sum(axis=(1, 2)) / shares.sum()
        total = np.where(np.isnan(total), np.inf, total)
    if np.isinf(total).all():
        names = [(gram.degree, penalty) for gram, penalty in options]
        usual = [n for n in (DEFAULT, (2, DEFAULT[1])) if n in names] or names
        total[names.index(usual[0])] = 0.0
    return total


def growth_of_errors(
    squares: np.ndarray, variance: np.ndarray, powers: tuple[float, ...]
) -> tuple[np.ndarray, float]:
    """Say how errors of scores grow with the variance of the outputs.

    Args:
        squares: Squared errors `[samples, tasks]` of scores; NaN where one is missing.
        variance: Of the outputs of each sample.
        powers: To choose from, the highest first.

    Returns:
        The deviation of each task at a variance of one, and the power of the outputs'
        deviation that it grows with: the highest that the errors, if they are normal, do
        not speak against. The front is less certain than the samples, and a lower power
        would say that this does not matter.
    """
    grown = variance ** np.asarray(powers)[:, None]
    known = np.isfinite(squares)
    total = np.where(known, squares / grown[..., None], 0.0).sum(axis=1)
    count = known.sum(axis=0)
    scale = np.where(count, total / np.maximum(count, 1), np.nan)
    seen = (scale > 0).all(axis=0)
    width = np.log(scale[:, seen]).mean(axis=1) if seen.any() else np.zeros(len(powers))
    # Minus the log-likelihood of each power; errors of one merge count as one.
    loss = 0.5 * len(squares) * (width + np.log(grown).mean(axis=1))
    best = int(np.argmax(loss <= loss.min() + _EVIDENCE))
    return np.sqrt(scale[best]), powers[best]


def best_blend(ours: np.ndarray, theirs: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Give the share of the other prediction that leaves the least squared error."""
    known = np.isfinite(measured)
    defined = (np.isfinite(theirs) | ~known).all(axis=0)
    step = np.where(defined & known, theirs - ours, 0.0)
    length = np.sum(step**2, axis=0)
    left = np.where(known, measured - ours, 0.0)
    share = np.sum(step * left, axis=0) / np.where(length > 0, length, 1.0)
    return np.clip(share, 0.0, 1.0)


def explained(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Give the share of each task's variance that is explained; NaN for fewer than two."""
    known = np.isfinite(measured)
    count = known.sum(axis=0)
    mean = np.where(known, measured, 0.0).sum(axis=0) / np.maximum(count, 1)
    total = np.sum(np.where(known, measured - mean, 0.0) ** 2, axis=0)
    error = np.sum(np.where(known, measured - predicted, 0.0) ** 2, axis=0)
    share = np.where(total > 0, 1 - error / np.where(total > 0, total, 1.0), 1.0)
    return np.where(count < 2, np.nan, share)
