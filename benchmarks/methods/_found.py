"""What every method returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import mapjax as mj


class NotInstalledError(ImportError):
    """An opponent's library is not here; the error says how to get it."""


class Found(NamedTuple):
    """What a method evaluated, and the front that it proposes.

    Attributes:
        evaluated: Coefficients `[k, C]`, in the order in which they were evaluated.
        scores: Their scores `[k, T]` on the validation examples.
        coefficients: The front `[P, C]` that a user would pick from.
        predicted: What the method takes its scores to be, `[P, T]`.
        std: Standard deviations of these, where the method has any.
        surrogate: From coefficients to predicted scores, where the method has one; with its
            `std`, where it picks by itself.
        rule: What the coefficients go into: task vectors or a function `coefficients ->
            parameters`. None stands for the suite's own task vectors.
        pick: From a preference to the coefficients that the method has for it; None stands
            for the point of the front with the best predicted weighted sum.
    """

    evaluated: np.ndarray
    scores: np.ndarray
    coefficients: np.ndarray
    predicted: np.ndarray
    std: np.ndarray | None = None
    surrogate: Any = None
    rule: Any = None
    pick: Callable[[np.ndarray], Any] | None = None


def best_of(points: np.ndarray, scores: np.ndarray, rule: Any = None) -> Found:
    """Propose the best of what was evaluated."""
    kept = np.asarray(mj.pareto.non_dominated(-scores))
    return Found(points, scores, points[kept], scores[kept], rule=rule)


def base_and_experts(num_coefficients: int) -> np.ndarray:
    """List the merges that every user has: no expert, and each alone."""
    return np.eye(num_coefficients + 1, num_coefficients, k=-1)
