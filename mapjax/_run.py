"""One run of a driver: what is evaluated, fitted, traced and handed back."""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax import pareto
from mapjax._arguments import (
    check_key,
    check_least,
    num_unknowns,
    read_box,
    read_surrogate,
)
from mapjax._result import RESULTS, Front, Samples
from mapjax._solution import Solution
from mapjax._types import PRNGKey
from mapjax.evaluation import Recorder, describe_problem
from mapjax.surrogate import Outputs, fit_outputs, fit_quadratic

GRADIENT_COST = 3
"""How many evaluations a merge counts as that is differentiated too."""

_NUM_DRAWS = 64
_MOST_INFLATION = 3.0
_CAUTION = 1.0
_USUAL_FRONT = 512


class Run:
    """What every driver goes through; the driver decides where to evaluate.

    Attributes:
        recorder: What was evaluated so far.
        box: Lower and upper ends of the coefficients.
        family: `Outputs`, "quadratic" or "gradient".
        fitted: The last surrogate, if any.
        front: The last front, if any.
        result: How it went so far.
    """

    def __init__(
        self,
        evaluate: Any,
        *,
        capacity: int,
        key: Any,
        num_coefficients: int | None = None,
        bounds: tuple[Any, Any] = (0.0, 1.0),
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
        plan: tuple = (),
    ):
        """Check the arguments, which are those of `map_front`; nothing is evaluated yet.

        `capacity` is the most evaluations that a surrogate will be fitted to, and `plan`
        what else decides where the driver evaluates.
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
        self.box = read_box(bounds, problem.num_coefficients)
        check_key(key)
        check_least("num_points", num_points, 2)
        check_least("num_generations", num_generations, 1)
        self.family = read_surrogate(surrogate, evaluate, capacity)
        by_outputs = isinstance(self.family, Outputs)
        ends = [np.asarray(end).tolist() for end in self.box]
        search = (num_points, num_generations, capacity)
        options = (self.family, link, link_bounds, ridge, search, plan)
        words = repr((jax.random.key_data(key).tolist(), ends, options))
        self.recorder = Recorder(
            problem,
            save_to,
            run=hashlib.sha256(words.encode()).hexdigest()[:16],
            keep_outputs=by_outputs,
            keep_jacobian=self.family == "gradient",
            progress=progress,
        )
        capacity = capacity // self.cost + self.recorder.num_given
        self.capacity, self.num_points, self.ridge = capacity, num_points, ridge
        # A step of the output-space surrogate costs more, and its searches start warm.
        self.num_generations = num_generations or (60 if by_outputs else 150)
        self.key, self.throw = key, throw
        self.fitted: Any = None
        self.front: Front | None = None
        self.result = RESULTS.successful
        self.num_verified, self.verified = 0, None
        self.inflation = 1.0
        self.rounds: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}

    @property
    def num_coefficients(self) -> int:
        """How many columns candidates have."""
        return self.recorder.problem.num_coefficients

    @property
    def cost(self) -> int:
        """How many evaluations one merge counts as."""
        return GRADIENT_COST if self.family == "gradient" else 1

    @property
    def num_start(self) -> int:
        """How many merges the base and the experts are."""
        return self.num_coefficients + 1

    @property
    def signs(self) -> np.ndarray:
        """What makes every score one to minimise."""
        return self.recorder.problem.signs

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
        with self._timed("evaluate"):
            return self.recorder(coefficients)

    def evaluate_proposals(self, coefficients: Any) -> None:
        """Evaluate points of the front, and see how far the predictions were off.

        These were chosen for being predicted to be good, which leave-one-out errors do not
        know of: later standard deviations are scaled up to what was seen here.
        """
        predicted = np.asarray(self.fitted(coefficients))
        std = np.asarray(self.fitted.std(coefficients))
        measured = np.asarray(self.evaluate(coefficients))
        surprise = (measured - predicted) / np.where(std > 0, std, np.nan)
        seen = np.nanmean(surprise**2) if np.isfinite(surprise).any() else 1.0
        self.inflation = float(np.clip(np.sqrt(seen), 1.0, _MOST_INFLATION))

    def fit(self) -> bool:
        """Fit a surrogate to all samples; False if there is nothing to fit.

        Raises:
            ValueError: If a task has no finite score and the run shall throw.
        """
        samples, problem = self.recorder.samples, self.recorder.problem
        self.result = self._judge(np.asarray(samples.scores))
        if self.result == RESULTS.no_finite_scores:
            if self.throw:
                raise ValueError(RESULTS[self.result])
            return False
        with self._timed("fit"):
            enough = len(samples) >= num_unknowns(self.num_coefficients)
            if not isinstance(self.family, Outputs):
                self.fitted = self._fit_scalar(samples)
            else:
                tasks = problem.evaluate.tasks
                correct = self.family.correct and enough
                self.fitted = fit_outputs(
                    samples.coefficients,
                    self.recorder.outputs(),
                    [task.targets for task in tasks],
                    [task.metric for task in tasks],
                    scores=samples.scores,
                    degree=self.family.degree,
                    ridge=self.family.ridge,
                    scalar=self._fit_scalar(samples) if correct else None,
                    importance=self._importance(np.asarray(samples.scores)),
                    capacity=self.capacity,
                )
            self.fitted = self.fitted.with_noise(self.inflation)
        return True

    def trace(self, key: PRNGKey) -> Front:
        """Trace the front of the last surrogate: evolve, then follow its gradient."""
        from mapjax import search  # evosax and flax behind it load only when needed

        with self._timed("search"):
            signs = self.signs
            objective = Minimised(
                self.fitted, jnp.asarray(signs), jnp.asarray(_CAUTION, signs.dtype)
            )
            towards = pareto.reference_directions(len(signs), self.num_points)
            algorithm = search.NSGA3(
                population_size=self.num_points,
                num_coefficients=self.num_coefficients,
                num_objectives=len(signs),
                reference_directions=towards,
            )
            found = search.evolve(
                objective,
                algorithm,
                self.num_generations,
                bounds=self.box,
                key=key,
                start=self._start(),
                archive_size=self.num_points * (2 if len(signs) <= 3 else 5),
            )
            if self.fitted.differentiable:
                found = search.polish(
                    objective, found.coefficients, towards, bounds=self.box
                )
            self.front = self._predict(found)
        return self.front

    def propose(self, count: int, key: PRNGKey) -> np.ndarray:
        """Choose points of the front to evaluate, spread over preferences."""
        from mapjax import search

        assert self.front is not None
        with self._timed("search"):
            candidates = np.asarray(self.front.coefficients)
            preference_key, draw_key = jax.random.split(key)
            preferences = jax.random.dirichlet(
                preference_key, jnp.ones(len(self.signs)), (count,)
            )
            padded, points = _padded(candidates)
            draws = np.asarray(self.fitted.draw(padded, count, key=draw_key))[:, :points]
            draws = np.where(np.isnan(draws), np.asarray(self.front.scores), draws)
            known = np.asarray(self.recorder.samples.coefficients)
            gap = np.abs(candidates[:, None] - known).max(axis=2).min(axis=1)
            width = np.asarray(self.box[1] - self.box[0]).max()
            chosen = search.propose(
                draws * self.signs, np.asarray(preferences), gap > 1e-3 * width
            )
        return candidates[chosen]

    def expected_gain(self) -> float:
        """Say how much better than every sample the front is predicted to be.

        In units of the scores, on average over preferences; also notes it for `stats`.
        """
        assert self.front is not None
        samples = self.recorder.samples
        preferences = pareto.reference_directions(len(self.signs), self.num_points)
        preferences = preferences / preferences.sum(axis=1, keepdims=True)
        reached, hoped = (
            np.nanmin(np.asarray(x.scores) * self.signs @ preferences.T, axis=0)
            for x in (samples, self.front)
        )
        gain = float(np.mean(np.maximum(reached - hoped, 0.0)))
        spent = self.cost * len(samples)
        self.rounds.append({"num_evaluations": spent, "expected_gain": gain})
        return gain

    def verify(self, count: int) -> None:
        """Evaluate points spread over the front, and keep the best of all samples."""
        assert self.front is not None
        before = len(self.recorder.samples)
        chosen = pareto.spread_subset(self.front.scores * self.signs, count)
        with self._timed("verify"):
            self.recorder(self.front.coefficients[chosen])
        samples = self.recorder.samples
        self.num_verified = len(samples) - before
        kept = np.asarray(pareto.non_dominated(samples.scores * self.signs))
        self.verified = Front(samples.coefficients[kept], samples.scores[kept])

    def solution(self) -> Solution:
        """Hand back what was found, with a warning if something is amiss."""
        samples, problem = self.recorder.samples, self.recorder.problem
        if self.front is not None and self.front.std is None and len(self.front):
            with self._timed("search"):
                self.front = self._describe(self.front, jax.random.fold_in(self.key, 1))
        if self.result != RESULTS.successful:
            warnings.warn(self._words(np.asarray(samples.scores)), stacklevel=3)
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
        )

    def _importance(self, scores: np.ndarray) -> np.ndarray:
        """Say how much each sample matters: by how near it comes to the best for someone.

        The mean over preferences of exp(-4 gap), with the gap to the best sample for a
        preference in standard deviations of all samples.
        """
        preferences = pareto.reference_directions(len(self.signs), self.num_points)
        values = scores * -self.signs @ np.asarray(preferences).T
        spread = np.nanstd(values, axis=0)
        gap = (np.nanmax(values, axis=0) - values) / np.where(spread > 0, spread, 1.0)
        return np.nan_to_num(np.exp(-4 * gap)).mean(axis=1)

    def _fit_scalar(self, samples: Samples) -> Any:
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
            ridge=self.ridge,
            jacobian=jacobian,
        )

    def _start(self) -> np.ndarray | None:
        """Give half a generation of points to begin from: the last front's."""
        if self.front is None or not len(self.front):
            return None
        kept = pareto.spread_subset(self.front.scores * self.signs, self.num_points // 2)
        return np.asarray(self.front.coefficients)[np.asarray(kept)]

    def _predict(self, found: Front) -> Front:
        """Give the points that no other dominates, with scores in the user's direction.

        The search was cautious; the front is of the scores themselves.
        """
        coefficients = np.asarray(found.coefficients)
        padded, points = _padded(coefficients)
        scores = np.asarray(self.fitted(padded))[:points]
        kept = np.asarray(pareto.non_dominated(scores * self.signs))
        return Front(jax.device_put(coefficients[kept]), jax.device_put(scores[kept]))

    def _describe(self, found: Front, key: PRNGKey) -> Front:
        """Say how sure the points of a predicted front are."""
        front = self._predict(found)
        padded, points = _padded(np.asarray(front.coefficients))
        std = np.asarray(self.fitted.std(padded))[:points]
        draws = self.fitted.draw(padded, _NUM_DRAWS, key=key) * self.signs
        # The rows that pad repeat a point, and equal points do not dominate each other.
        draws = jnp.where(jnp.arange(len(padded))[:, None] < points, draws, jnp.inf)
        probability = np.asarray(pareto.probability_non_dominated(draws))[:points]
        return Front(
            front.coefficients, front.scores, *map(jax.device_put, (std, probability))
        )

    def _judge(self, scores: np.ndarray) -> RESULTS:
        """Say what is wrong with the scores, the worst first."""
        finite = np.isfinite(scores)
        least = np.where(finite, scores, np.inf).min(axis=0)
        most = np.where(finite, scores, -np.inf).max(axis=0)
        if not finite.any(axis=0).all():
            return RESULTS.no_finite_scores
        if (least == most).any():
            return RESULTS.constant_metric
        needed = num_unknowns(self.num_coefficients)
        if self.family == "quadratic" and (finite.sum(axis=0) < needed).any():
            return RESULTS.few_samples
        return RESULTS.successful if finite.all() else RESULTS.nonfinite_scores

    def _words(self, scores: np.ndarray) -> str:
        if self.result == RESULTS.few_samples:
            usable = np.isfinite(scores).sum(axis=0).min()
            missing = num_unknowns(self.num_coefficients) - usable
            return f"{RESULTS[self.result]} {missing} more evaluations would determine it."
        return RESULTS[self.result]

    def _stats(self, samples: Samples) -> dict[str, Any]:
        """Collect what a reader needs to trust and repeat a result."""
        names = ("r2", "loo_r2", "condition_number", "rank", "ridge")
        fit = {n: getattr(self.fitted, n) for n in names} if self.fitted else {}
        finite = np.isfinite(np.asarray(samples.scores)).all(axis=1)
        packages = ("mapjax", "jax", "evosax")
        return fit | {
            "surrogate": type(self.fitted).__name__,
            "num_evaluations": self.cost * len(samples),
            "num_reused": len(samples) - self.recorder.num_new,
            "num_failed": int(np.sum(~finite)),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "key": str(jax.random.key_data(self.key).tolist()),
            "versions": {name: metadata.version(name) for name in packages},
            "device": jax.devices()[0].device_kind,
        }

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


class Minimised(eqx.Module):
    """A surrogate whose scores all want to be small: what the search sees.

    Scores are made worse by `caution` standard deviations. A search for the best predicted
    merges otherwise ends where the surrogate is most wrong, far from all samples.
    """

    surrogate: Any
    signs: Float[Array, " tasks"]
    caution: Float[Array, ""]

    def __call__(
        self, coefficients: Float[Array, " coefficients"]
    ) -> Float[Array, " tasks"]:
        """Predict the scores of one merge, negated where they are to be maximised."""
        doubt = jnp.nan_to_num(self.surrogate.std(coefficients))
        return self.surrogate(coefficients) * self.signs + self.caution * doubt


def _padded(points: np.ndarray) -> tuple[np.ndarray, int]:
    """Repeat the first of a number of points that is known only now.

    Up to a power of two and the usual size of a front, so that little is compiled.
    """
    room = max(_USUAL_FRONT, 2 ** math.ceil(math.log2(max(len(points), 1))))
    return np.concatenate([points, np.repeat(points[:1], room - len(points), 0)]), len(
        points
    )
