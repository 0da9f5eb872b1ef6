"""What is recorded of a run of a method, and the figures that are computed from it."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import mapjax as mj
from benchmarks._memory import watch_peak
from benchmarks._truth import Truth
from benchmarks.methods import METHODS, Found
from benchmarks.suites import with_rule
from mapjax import io, pareto
from mapjax.design import make_design


class Record(NamedTuple):
    """A run of a method, with the true scores of what it proposes.

    Attributes:
        evaluated: Coefficients `[k, C]`, in the order in which they were evaluated.
        scores: Their scores `[k, T]` on the validation examples.
        coefficients: Points `[P, C]` of the proposed front, those that are judged.
        predicted: What the method takes their scores to be, `[P, T]`; NaN where it does not
            say.
        std: Standard deviations of these; NaN where the method has none.
        picked: Which of them the method picks for equal weights, and then for the first of
            the preferences that figures are averaged over.
        validation: Their true scores on the validation examples.
        test: The same on the test examples.
        held_out: The same `[P, 2]` on two tasks that no expert was trained on.
        guess: What the surrogate says of `design_points`; NaN where the method has none.
        seconds: How long the method ran, evaluations and compiling included; NaN where
            others ran beside it.
        peak_memory: By how many bytes the process grew meanwhile, at most.
        is_linear: Whether the coefficients are those of the suite's own task vectors.
    """

    evaluated: np.ndarray
    scores: np.ndarray
    coefficients: np.ndarray
    predicted: np.ndarray
    std: np.ndarray
    picked: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    held_out: np.ndarray
    guess: np.ndarray
    seconds: np.ndarray
    peak_memory: np.ndarray
    is_linear: np.ndarray

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        io.save(path, self._asdict())

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read what `save` wrote."""
        return cls(**io.load(path))


def record(truth: Truth, method: str, budget: int, *, verify: int = 100) -> Record:
    """Run a method and evaluate the front that it proposes.

    Args:
        truth: Of the suite.
        method: One of `METHODS`.
        budget: The most evaluations.
        verify: Points spread over a front that are judged, besides what the method picks for
            equal weights and twice as many preferences; of a method that evaluates no
            front, these alone.

    Raises:
        RuntimeError: If the method evaluates more merges than it may.
    """
    suite = truth.suite
    peak, begun = watch_peak(), time.perf_counter()
    found = METHODS[method].run(suite, budget)
    seconds, peak_memory = time.perf_counter() - begun, peak()
    if len(found.evaluated) > budget:
        raise RuntimeError(f"{method} made {len(found.evaluated)} of {budget} evaluations.")
    n = len(suite.names)
    asked = np.concatenate([np.full((1, n), 1 / n), truth.preferences[: 2 * verify]])
    proposed = _proposed(found, asked, verify)
    kept = proposed.coefficients

    def on(evaluator: mj.Evaluator) -> np.ndarray:
        evaluator = with_rule(evaluator, found.rule, kept.shape[1])
        return np.asarray(evaluator(kept, progress=False), float)

    answers = truth.answers.get((method, kept.tobytes()))
    if answers is None:
        answers = [truth(kept, found.rule), on(suite.test), on(suite.held_out)]
        if found.pick is not None and found.surrogate is None:
            truth.answers[method, kept.tobytes()] = answers
    guess = np.full((1, n), np.nan)
    # A surrogate over another rule's coefficients has another box.
    if found.surrogate is not None and found.rule is None:
        guess = np.asarray(found.surrogate(design_points(truth)), float)
    validation, test, held_out = answers
    return Record(
        evaluated=found.evaluated,
        scores=found.scores,
        **proposed._asdict(),
        validation=validation,
        test=test,
        held_out=held_out,
        guess=guess,
        seconds=np.asarray(seconds),
        peak_memory=np.asarray(peak_memory),
        is_linear=np.asarray(found.rule is None),
    )


class _Proposed(NamedTuple):
    """The fields of the same names of a `Record`."""

    coefficients: np.ndarray
    predicted: np.ndarray
    std: np.ndarray
    picked: np.ndarray


def _proposed(found: Found, asked: np.ndarray, verify: int) -> _Proposed:
    """Collect what a method picks for preferences, and points spread over its front."""
    nothing = np.full_like(found.predicted, np.nan)
    std = nothing if found.std is None else found.std
    spread = np.asarray(pareto.spread_subset(-found.predicted, verify))
    if found.pick is None:
        best = np.nanargmax(asked @ found.predicted.T, axis=1)
        rows, places = np.unique(np.concatenate([best, spread]), return_inverse=True)
        picked = places[: len(best)]
        return _Proposed(found.coefficients[rows], found.predicted[rows], std[rows], picked)
    picks = np.stack([np.asarray(found.pick(one), np.float32) for one in asked])
    picks, picked = np.unique(picks, axis=0, return_inverse=True)
    picked = picked.reshape(-1)
    if found.surrogate is None:
        nothing = np.full((len(picks), asked.shape[1]), np.nan)
        return _Proposed(picks, nothing, nothing, picked)
    said = [np.asarray(f(picks), float) for f in (found.surrogate, found.surrogate.std)]
    known = {row.tobytes() for row in picks}
    rows = [i for i in spread if found.coefficients[i].tobytes() not in known]
    front = found.coefficients, found.predicted, std
    both = zip((picks, *said), front, strict=True)
    c, predicted, std = (np.concatenate([new, old[rows]]) for new, old in both)
    return _Proposed(c, predicted, std, picked)


def design_points(truth: Truth) -> np.ndarray:
    """Draw merges of the default design that no method has seen."""
    n = truth.suite.task_vectors.num_tasks
    key = jax.random.key(1_000_000 + truth.suite.seed)
    # The base, the experts and the uniform merge come first in every design.
    points = make_design("multiscale", n + 2 + 128, n, key=key)
    return np.asarray(points, np.float32)[n + 2 :]


def judge(
    run: Record, truth: Truth, at_home: np.ndarray, paper: Record | None
) -> dict[str, Any]:
    """Compute the figures of a run, when all runs have told what is reachable.

    Args:
        run: The run.
        truth: Of the suite; it should know of all runs.
        at_home: What each expert scores on its own task's test examples.
        paper: The paper's protocol with 2p evaluations, to take the win rate against.
    """
    suite = truth.suite
    together = np.concatenate([run.scores, run.validation])
    equal, picks = run.picked[0], run.picked[1:]
    gap = truth.preferences[: len(picks)] * (run.validation - run.test)[picks]
    figures: dict[str, Any] = {
        "hypervolume": truth.hypervolume(together),
        "hypervolume_evaluated": truth.hypervolume(run.scores),
        "igd_plus": truth.igd_plus(together),
        "regret": truth.regret(run.validation, picks),
        "regret_evaluated": truth.regret(run.scores),
        "normalized_average": 100 * float(np.mean(run.test[equal] / at_home)),
        "generalization_gap": 100 * float(np.mean(gap.sum(axis=1))),
        "held_out": 100 * float(np.mean(run.held_out[equal])),
        "evaluations": len(run.evaluated),
        "examples": len(run.evaluated) * sum(_size(t) for t in suite.validation.tasks),
        "peak_megabytes": float(run.peak_memory) / 1e6,
        "points": len(run.predicted),
    }
    if np.isfinite(run.seconds):
        figures["seconds"] = float(run.seconds)
    if run.is_linear:
        figures["regret_linear"] = truth.regret(run.validation, picks, linear=True)
    if paper is not None:
        wins = pareto.win_rate(-run.validation, -paper.validation)
        figures["win_rate"] = 100 * float(np.mean(wins))
    if np.isfinite(run.std).all():
        error = np.abs(run.validation - run.predicted)
        figures["coverage"] = 100 * float(np.mean(error <= 1.645 * run.std))
    if np.isfinite(run.guess).all():
        scores = truth(design_points(truth))
        residual = np.sum((scores - run.guess) ** 2, axis=0)
        r2 = 1 - residual / np.sum((scores - scores.mean(axis=0)) ** 2, axis=0)
        figures["least_r2"] = float(r2.min())
    return figures


def _size(task: mj.Task) -> int:
    return len(jax.tree.leaves(task.inputs)[0])
