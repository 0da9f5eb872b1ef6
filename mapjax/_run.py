"""One run of a driver: what is evaluated, fitted, traced and handed back."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from mapjax import pareto
from mapjax._arguments import check_budget, read_surrogate
from mapjax._checks import check_count, check_least
from mapjax._domain import Domain, read_domain
from mapjax._keys import check_key, generator
from mapjax._picking import to_verify
from mapjax._progress import timed
from mapjax._result import RESULTS, Front, Samples, explain, judge, provenance
from mapjax._sizes import USUAL_POINTS, padded
from mapjax._solution import Solution
from mapjax._tracing import (
    NUM_DRAWS,
    importance,
    inflation,
    predicted_front,
    trace,
    with_doubt,
)
from mapjax._types import PRNGKey
from mapjax.evaluation import Recorder, describe_problem
from mapjax.surrogate import Outputs, fit_outputs, fit_quadratic, hessian_rank, num_unknowns

GRADIENT_COST = 3
"""How many evaluations a merge counts as that is differentiated too."""


class Run:
    """What every driver goes through; the driver decides where to evaluate.

    Attributes:
        recorder: What was evaluated so far.
        domain: The coefficients that may be searched.
        family: `Outputs`, "quadratic" or "gradient".
        budget: How many evaluations may be made.
        fitted: The last surrogate, if any.
        front: The last front, if any.
        result: How it went so far.
    """

    def __init__(
        self,
        evaluate: Any,
        *,
        budget: int,
        key: Any,
        num_coefficients: int | None = None,
        bounds: Any = None,
        directions: str | Sequence[str] | None = None,
        surrogate: Any = None,
        link: str | Sequence[str] | None = None,
        link_bounds: tuple[Any, Any] | None = None,
        ridge: float | str | None = "auto",
        num_points: int = 100,
        num_generations: int | None = None,
        task_names: Sequence[str] | None = None,
        save_to: str | os.PathLike | None = None,
        throw: bool = True,
        progress: bool | None = None,
        design: str | None = None,
        plan: tuple = (),
    ):
        """Check the arguments, which are those of `map_front`; nothing is evaluated yet.

        `plan` is what else decides where the driver evaluates.
        """
        problem = describe_problem(
            evaluate,
            num_coefficients=num_coefficients,
            directions=directions,
            task_names=task_names,
            link=link,
            link_bounds=link_bounds,
            ridge=ridge,
        )
        self.domain = read_domain(bounds, problem, design)
        check_key(key)
        check_count("num_points", num_points, 2)
        check_least("num_generations", num_generations, 1)
        check_count("budget", budget, 1)
        self.family = read_surrogate(surrogate, evaluate, budget)
        by_outputs = isinstance(self.family, Outputs)
        check_budget(budget, self.cost, self.domain.first, problem.num_experts)
        ends = [np.asarray(end).tolist() for end in self.domain.box]
        plan = (*plan, self.domain.design)
        options = (self.family, link, link_bounds, ridge, num_points, num_generations, plan)
        kind = ("simplex",) * bool(self.domain.num_tied)
        words = repr((jax.random.key_data(key).tolist(), ends, budget, options, *kind))
        self.recorder = Recorder(
            problem,
            save_to,
            run=hashlib.sha256(words.encode()).hexdigest()[:16],
            keep_outputs=by_outputs,
            keep_jacobian=self.family == "gradient",
            progress=progress,
        )
        self.budget, self.num_points, self.ridge = budget, num_points, ridge
        # A step of the output-space surrogate costs more, and its searches start warm.
        self.num_generations = num_generations or (40 if by_outputs else 150)
        self.key, self.throw, self.inflation = key, throw, 1.0
        self.fitted: Any = None
        self.correction: Any = None
        self.front: Front | None = None
        self.result = RESULTS.successful
        self.num_verified, self.verified = 0, None
        self.rounds: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}

    @property
    def num_coefficients(self) -> int:
        """How many columns candidates have."""
        return self.recorder.problem.num_coefficients

    @property
    def num_unknowns(self) -> int:
        """How many numbers a quadratic of the scores has to learn."""
        return num_unknowns(self.num_coefficients, self.low_rank, self.domain.num_tied)

    @property
    def cost(self) -> int:
        """How many evaluations one merge counts as."""
        return GRADIENT_COST if self.family == "gradient" else 1

    @property
    def capacity(self) -> int:
        """The most samples that a surrogate is fitted to."""
        return self.budget // self.cost + self.recorder.num_given

    @property
    def low_rank(self) -> int | None:
        """Rank of a quadratic's Hessian beside its diagonal; None for a full one."""
        return hessian_rank(self.num_coefficients, self.domain.num_experts, self.capacity)

    @property
    def searched(self) -> Domain:
        """Where to search: groups go together while there are few samples for each."""
        few = len(self.recorder.samples) <= self.num_coefficients
        derived = self.family == "gradient"  # of each group
        return self.domain.whole_experts() if few and not derived else self.domain

    @property
    def num_start(self) -> int:
        """How many merges come first: one more than there are experts."""
        return 1 + self.domain.num_experts

    @property
    def signs(self) -> np.ndarray:
        """What makes every score one to minimise."""
        return self.recorder.problem.signs

    @property
    def preferences(self) -> np.ndarray:
        """Weights over the tasks, spread evenly: what is averaged over."""
        weights = np.asarray(pareto.reference_directions(len(self.signs), self.num_points))
        return weights / weights.sum(axis=1, keepdims=True)

    @property
    def num_left(self) -> int:
        """How many merges the budget leaves, those at the start included.

        What other runs have saved was paid for, and what of the start is there is free.
        """
        left, given = self.budget // self.cost, self.recorder.num_given
        if given:
            start = self.domain.sample(self.num_start, self.key)  # the same for any key
            left -= given - int(self.recorder.is_given(start).sum())
        return max(left, self.num_start)

    @contextmanager
    def keeping_samples(self) -> Iterator[None]:
        """Hand what was evaluated to whoever catches an error, Ctrl-C included."""
        try:
            yield
        except BaseException as error:
            if self.recorder.num_new:
                vars(error)["samples"] = self.recorder.samples
                error.add_note(
                    f"The {self.recorder.num_new} evaluations made are in `samples` of this "
                    "exception."
                )
            raise

    def evaluate(self, coefficients: Any) -> Float[Array, "candidates tasks"]:
        """Evaluate merges, or take them from the record."""
        with timed(self.seconds, "evaluate"):
            return self.recorder(coefficients)

    def evaluate_proposals(self, coefficients: Any) -> None:
        """Evaluate points of the front, and see how far the predictions were off.

        These were chosen for being predicted to be good, which leave-one-out errors do not
        know of: later standard deviations are scaled up towards what was seen here.
        """
        room, points = padded(coefficients, USUAL_POINTS), len(coefficients)
        predicted, std = (
            np.asarray(f(room))[:points] for f in (self.fitted, self.fitted.std)
        )
        missed = np.asarray(self.evaluate(coefficients)) - predicted
        self.inflation = inflation(missed, std, self.inflation)

    def fit(self) -> bool:
        """Fit a surrogate to all samples; False if there is nothing to fit.

        Raises:
            ValueError: If a task has no finite score and the run shall throw.
        """
        samples, problem = self.recorder.samples, self.recorder.problem
        needed = self.num_unknowns if self.family == "quadratic" else 1
        self.result = judge(np.asarray(samples.scores), needed)
        if self.result == RESULTS.no_finite_scores:
            if self.throw:
                raise ValueError(self._words(samples.scores))
            return False
        with timed(self.seconds, "fit"):
            if not isinstance(self.family, Outputs):
                self.fitted = self._fit_scalar(samples, self.ridge)
                usable = self.result in (RESULTS.successful, RESULTS.nonfinite_scores)
                if usable and (self.fitted.rank < needed).any():
                    self.result = RESULTS.rank_deficient
            else:
                few = len(samples) < self.num_unknowns
                correct = self.family.correct and self.capacity >= self.num_unknowns
                # From the first, so that what is compiled with it serves later fits.
                if correct and not (few and self.correction is not None):
                    ridge = "auto" if few else self.ridge
                    self.correction = self._fit_scalar(samples, ridge)
                self.fitted = fit_outputs(
                    samples.coefficients,
                    self.recorder.outputs(),
                    [task.targets for task in problem.evaluate.tasks],
                    [task.metric for task in problem.evaluate.tasks],
                    scores=samples.scores,
                    degree=self.family.degree,
                    ridge=self.family.ridge,
                    scalar=self.correction,
                    num_unknowns=self.num_unknowns,
                    importance=importance(self._worth(samples.scores)),
                    capacity=self.capacity,
                    num_experts=self.domain.num_experts,
                )
            self.fitted = self.fitted.with_noise(self.inflation)
        return True

    def trace(self, key: PRNGKey, *, rough: bool = False) -> Front:
        """Trace the front of the last surrogate; roughly, where it only leads to the next."""
        with timed(self.seconds, "search"):
            self.front = trace(
                *(self.fitted, self.signs, self.searched),
                num_points=self.num_points,
                num_generations=self.num_generations,
                rough=rough,
                start=self._start(key),
                key=key,
            )
        return self.front

    def predict(self, coefficients: Any) -> None:
        """Take the front from merges that a driver found by itself."""
        with timed(self.seconds, "search"):
            self.front = predicted_front(self.fitted, self.signs, coefficients)

    def propose(self, count: int, key: PRNGKey) -> np.ndarray:
        """Choose new points of the front, spread over preferences, and else of the design."""
        from mapjax import search

        assert self.front is not None
        with timed(self.seconds, "search"):
            preference_key, draw_key = jax.random.split(key)
            random = generator(preference_key)
            preferences = random.dirichlet(np.ones(len(self.signs)), count)
            # Of a large front some points are enough, and no more is compiled for them.
            some = np.sort(random.permutation(len(self.front))[:USUAL_POINTS])
            both = (self.front.coefficients, self.front.scores)
            candidates, scores = (np.asarray(x)[some] for x in both)
            most = max(count, NUM_DRAWS)  # one number of draws, so that one is compiled
            room = padded(candidates, USUAL_POINTS)
            errors = np.nan_to_num(self.fitted.errors(room, most, key=draw_key))
            draws = scores + errors[:count, : len(candidates)]
            new = self.domain.is_new(candidates, self.recorder.samples.coefficients)
            chosen = candidates[search.propose(draws * self.signs, preferences, new)]
            missing = count - len(chosen)
            more = self.domain.fresh(missing, preference_key, self.recorder.is_known)
        return np.concatenate([chosen, more.astype(chosen.dtype)])

    def expected_gain(self) -> float:
        """Say by how much the front is predicted to beat every sample, in units of scores.

        On average over preferences; also notes it for `stats`.
        """
        assert self.front is not None
        samples = self.recorder.samples
        values = (self._worth(x.scores) for x in (samples, self.front))
        reached, hoped = (np.where(np.isnan(v), np.inf, v).min(axis=0) for v in values)
        gain = float(np.mean(np.maximum(reached - hoped, 0.0)))
        spent = {"num_evaluations": self.cost * len(samples)}
        self.rounds.append(spent | {"expected_gain": gain})
        return gain

    def verify(self, count: int) -> None:
        """Evaluate some of what may be picked, and keep the best of all samples."""
        before, key = len(self.recorder.samples), jax.random.fold_in(self.key, 2)
        with timed(self.seconds, "verify"):
            self.recorder(to_verify(self._solution(), count, self.domain, key))
        samples = self.recorder.samples
        self.num_verified = len(samples) - before
        scores = np.asarray(samples.scores)
        finite = np.where(np.isfinite(scores), scores, np.nan)
        kept = np.asarray(pareto.non_dominated(finite * self.signs))
        self.verified = Front(samples.coefficients[kept], samples.scores[kept])

    def solution(self) -> Solution:
        """Hand back what was found, with a warning if something is amiss."""
        if self.front is not None and self.front.std is None and len(self.front):
            with timed(self.seconds, "search"):
                draw_key = jax.random.fold_in(self.key, 1)
                self.front = with_doubt(self.front, self.fitted, self.signs, draw_key)
        if self.result != RESULTS.successful:
            warnings.warn(self._words(self.recorder.samples.scores), stacklevel=3)
        return self._solution()

    def _solution(self) -> Solution:
        samples, problem = self.recorder.samples, self.recorder.problem
        return Solution(
            front=self.front or Front(samples.coefficients[:0], samples.scores[:0]),
            samples=samples,
            verified=self.verified,
            surrogate=self.fitted,
            result=self.result,
            stats=self._stats(samples),
            num_verified=self.num_verified,
            task_names=problem.task_names or (),
            coefficient_names=problem.coefficient_names,
            directions=problem.directions,
            experts=problem.expert_names,
            by_preference=self.domain.by_preference,
        )

    def _fit_scalar(self, samples: Samples, ridge: float | str | None) -> Any:
        problem = self.recorder.problem
        # Rows without a score, up to the capacity, so that one compilation serves all fits.
        missing = self.capacity - len(samples)
        jacobian = None
        if self.family == "gradient":
            rows = ((0, missing), (0, 0), (0, 0))
            jacobian = np.pad(self.recorder.jacobian(), rows, constant_values=np.nan)
        return fit_quadratic(
            np.pad(samples.coefficients, ((0, missing), (0, 0))),
            np.pad(samples.scores, ((0, missing), (0, 0)), constant_values=np.nan),
            link=problem.link,
            bounds=problem.link_bounds,
            num_examples=problem.num_examples,
            ridge=ridge,
            jacobian=jacobian,
            num_experts=self.low_rank,
            num_tied=self.domain.num_tied,
        )

    def _start(self, key: PRNGKey) -> np.ndarray:
        """Give points to begin from: of the last front, or samples, half a generation first."""
        drawn = self.searched.start(self.num_points, jax.random.fold_in(key, 1))
        known: Any = self.front or self.recorder.samples
        scores = np.asarray(known.scores) * self.signs
        kept = pareto.spread_subset(scores, self.num_points // 2)
        best = np.asarray(known.coefficients)[np.asarray(kept), :: self.searched.repeats]
        return np.concatenate([best, drawn])

    def _worth(self, scores: Any) -> np.ndarray:
        """Weigh scores by each preference, minimised; NaN where one is not finite."""
        scores = np.where(np.isfinite(scores), scores, np.nan) * self.signs
        return scores @ self.preferences.T

    def _words(self, scores: Any) -> str:
        names = self.recorder.problem.task_names or ()
        return explain(self.result, np.asarray(scores), names, self.num_unknowns)

    def _stats(self, samples: Samples) -> dict[str, Any]:
        """Collect what a reader needs to trust and repeat a result."""
        names = ("r2", "loo_r2", "condition_number", "rank", "ridge")
        fit = {n: getattr(self.fitted, n) for n in names} if self.fitted else {}
        return fit | {
            "surrogate": type(self.fitted).__name__,
            "num_evaluations": self.cost * len(samples),
            "num_reused": len(samples) - self.recorder.num_new,
            "num_failed": int((~np.isfinite(np.asarray(samples.scores)).all(axis=1)).sum()),
            "rounds": self.rounds,
            "seconds": self.seconds,
            **provenance(self.key),
        }
