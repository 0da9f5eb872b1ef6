"""What the solvers return: fronts, samples and result codes."""

from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float


class RESULTS(eqx.Enumeration):
    """How a run ended. Anything but `successful` comes with a sentence that says why."""

    successful = ""
    few_samples = (
        "There were fewer usable samples than the quadratic has unknowns, so a ridge fit "
        "was made: the front is a rough one. Raise `budget`."
    )
    rank_deficient = (
        "The sampled coefficients do not determine the quadratic (its design matrix lacks "
        "full column rank). Use another `design`, or raise `budget`."
    )
    constant_metric = (
        "A task's score was the same for every sample, so the task cannot shape the "
        "front. Check its metric and its data."
    )
    nonfinite_scores = (
        "Some scores were NaN or infinite. They were left out of the fit and are kept in "
        "`solution.samples`."
    )
    no_finite_scores = (
        "A task has no finite score at all, so nothing could be fitted. Evaluate the base "
        "alone and check the metric."
    )


def judge(scores: np.ndarray, needed: int) -> RESULTS:
    """Say what is wrong with the scores `[samples, tasks]`, the worst first.

    Args:
        scores: All of them.
        needed: How many finite scores of each task a fit asks for.
    """
    finite = np.isfinite(scores)
    least = np.where(finite, scores, np.inf).min(axis=0)
    most = np.where(finite, scores, -np.inf).max(axis=0)
    if not finite.any(axis=0).all():
        return RESULTS.no_finite_scores
    if (least == most).any():
        return RESULTS.constant_metric
    if (finite.sum(axis=0) < needed).any():
        return RESULTS.few_samples
    return RESULTS.successful if finite.all() else RESULTS.nonfinite_scores


class Front(eqx.Module):
    """Points of which none dominates another.

    Attributes:
        coefficients: One merge per row.
        scores: Their scores, in the direction of whoever made the front: the user's own
            for drivers, minimised for `mapjax.search`.
        std: Standard deviations of predicted scores, or `None` where there are none.
        probability: How probable it is that no other point of the front dominates this
            one, given how sure the scores are; `None` where they are measured.
    """

    coefficients: Float[Array, "points coefficients"]
    scores: Float[Array, "points tasks"]
    std: Float[Array, "points tasks"] | None = None
    probability: Float[Array, " points"] | None = None

    def __len__(self) -> int:
        return self.coefficients.shape[0]


class Samples(eqx.Module):
    """Real evaluations, in the order in which they were made.

    Attributes:
        coefficients: One evaluated merge per row.
        scores: What was measured, failures (NaN, infinite) included.
    """

    coefficients: Float[Array, "samples coefficients"]
    scores: Float[Array, "samples tasks"]

    def __len__(self) -> int:
        return self.coefficients.shape[0]


class Point(NamedTuple):
    """One merge in a table: what was measured next to what had been predicted.

    Attributes:
        name: What it is, such as "base" or "verified 1".
        coefficients: `[coefficients]`.
        measured: Scores of a real evaluation `[tasks]`.
        predicted: Scores of the surrogate `[tasks]`, NaN without one.
        std: Standard deviations of these, NaN where unknown.
        normalized: Measured scores relative to those of the tasks' own experts; see
            `Solution.normalized`.
    """

    name: str
    coefficients: np.ndarray
    measured: np.ndarray
    predicted: np.ndarray
    std: np.ndarray
    normalized: np.ndarray
