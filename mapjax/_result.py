"""What the solvers return: fronts, samples and result codes."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from mapjax._types import PRNGKey


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
        "front. Check its metric and its data, and that `predict` uses its parameters."
    )
    nonfinite_scores = (
        "Some scores were NaN or infinite. They were left out of the fit and are kept in "
        "`solution.samples`."
    )
    no_finite_scores = (
        "A task has no finite score at all, so nothing could be fitted. Evaluate the base "
        "alone and check the metric: NaN in outputs, and labels that are no class, give NaN."
    )


UNDETERMINED = (RESULTS.few_samples, RESULTS.rank_deficient)
"""With these, a predicted front may lie where the surrogate knows nothing."""


def judge(scores: np.ndarray, needed: int) -> RESULTS:
    """Say what is wrong with the scores `[samples, tasks]`, the worst first.

    Args:
        scores: All of them.
        needed: How many finite scores of each task a fit asks for.
    """
    wrong = [result for result, tasks in _faults(scores, needed) if tasks.any()]
    return wrong[0] if wrong else RESULTS.successful


def explain(
    result: RESULTS, scores: np.ndarray, task_names: Sequence[str], needed: int = 0
) -> str:
    """Say how a run ended, and name the tasks that it is about if these are not all."""
    if result == RESULTS.few_samples:
        missing = needed - np.isfinite(scores).sum(axis=0).min()
        return f"{RESULTS[result]} {missing} more evaluations would determine it."
    concerned = next((t for r, t in _faults(scores, 0) if r == result), np.zeros(0, bool))
    if concerned.all() or not concerned.any():
        return RESULTS[result]
    names = [name for name, is_one in zip(task_names, concerned, strict=True) if is_one]
    return f"{RESULTS[result]} This is so for {', '.join(map(repr, names))}."


def _faults(scores: np.ndarray, needed: int) -> list[tuple[RESULTS, np.ndarray]]:
    """List what can be wrong with the scores, and which tasks it is wrong with."""
    finite = np.isfinite(scores)
    counts = finite.sum(axis=0)
    least = np.where(finite, scores, np.inf).min(axis=0)
    most = np.where(finite, scores, -np.inf).max(axis=0)
    return [
        (RESULTS.no_finite_scores, counts == 0),
        (RESULTS.constant_metric, (least == most) & (counts > 1)),
        (RESULTS.few_samples, counts < needed),
        (RESULTS.nonfinite_scores, counts < len(scores)),
    ]


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


def provenance(key: PRNGKey) -> dict[str, Any]:
    """Say what a run can be repeated with."""
    return {
        "key": str(jax.random.key_data(key).tolist()),
        "versions": {name: version(name) for name in ("mapjax", "jax", "evosax")},
        "device": jax.devices()[0].device_kind,
    }
