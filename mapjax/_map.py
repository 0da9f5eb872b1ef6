"""MAP: sample, evaluate, fit a surrogate, search it, verify."""

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
from mapjax._result import RESULTS, Front, Samples
from mapjax._solution import Solution
from mapjax._types import PRNGKey
from mapjax.design import make_design
from mapjax.evaluation import Recorder, describe_problem
from mapjax.surrogate import Quadratic, fit_quadratic


def map_front(
    evaluate: Any,
    *,
    budget: int,
    key: Any,
    num_coefficients: int | None = None,
    bounds: tuple[Any, Any] = (0.0, 1.0),
    directions: str | Sequence[str] | None = None,
    design: str = "multiscale",
    link: str | Sequence[str] | None = None,
    link_bounds: tuple[Any, Any] | None = None,
    ridge: float | str | None = "auto",
    num_points: int = 100,
    num_generations: int = 150,
    verify: int = 0,
    task_names: Sequence[str] | None = None,
    save_to: str | os.PathLike | None = None,
    throw: bool = True,
    progress: bool | None = None,
) -> Solution:
    r"""Find the Pareto front of merges from a handful of evaluations (MAP).

    Evaluates `budget` merges, fits a quadratic of the coefficients to every task's
    score, $s_t(c) \approx g(e + b \cdot c + \tfrac12 c^\top A c)$ with a link $g$, and
    traces the front of the fitted scores by NSGA-III and a gradient polish.

    Args:
        evaluate: An `Evaluator`, or any function from `[candidates, coefficients]` to
            scores `[candidates, tasks]`.
        budget: How many merges to evaluate, at least one more than there are
            coefficients. The paper's advice is about `(N + 1) * (N + 2)`; below half of
            that a ridge fit is made and a warning says so.
        key: A typed key. The same key gives the same solution.
        num_coefficients: How many coefficients a function takes; an `Evaluator` knows.
        bounds: The box that is sampled and searched: two numbers, or two arrays
            `[coefficients]`.
        directions: "maximize" or "minimize", for all tasks or for each. An `Evaluator`
            knows; for a function the default is to maximise.
        design: Where to sample; a name from `mapjax.design`. The base and the experts
            come first, the uniform merge next.
        link: "identity", "sigmoid" or "softplus", for all tasks or for each. By default
            what the metrics' bounds call for, and the identity for a function.
        link_bounds: The lowest and the highest possible score, each a number or one per
            task; by default the metrics' bounds, and the link's own for a function.
        ridge: Strength of the ridge penalty; "auto" chooses it by leave-one-out error,
            None uses one only where samples are too few.
        num_points: About how many points to trace.
        num_generations: Generations of the search.
        verify: How many points, spread over the front, to evaluate on top of the budget;
            one that is a sample already is not evaluated again.
        task_names: Names for the tasks of a function.
        save_to: A file to which every sample is appended as it arrives. A run that finds
            it goes on from there and evaluates nothing twice.
        throw: Raise an error if no front can be made; otherwise say so in `result`.
        progress: True or False to insist on a progress bar or on none.

    Returns:
        The solution, with the front as predicted.

    Raises:
        ValueError: Before any evaluation, if an argument is wrong; after it, if scores
            have the wrong shape, lie outside the link's range, or, with `throw`, if a
            task has no finite score. What was evaluated is in the exception's `samples`.

    Example:
        >>> import jax, jax.numpy as jnp, mapjax as mj
        >>> def evaluate(c):  # two tasks that want opposite corners
        ...     return jnp.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)
        >>> solution = mj.map_front(
        ...     evaluate, num_coefficients=2, budget=12, key=jax.random.key(0)
        ... )
        >>> bool(solution.stats["r2"].min() > 0.999)
        True

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via
        Quadratic Approximation*, ICLR 2025, arXiv 2406.07529, Algorithm 1.
    """
    problem = describe_problem(
        evaluate,
        num_coefficients=num_coefficients,
        directions=directions,
        task_names=task_names,
        link=link,
        link_bounds=link_bounds,
    )
    n = problem.num_coefficients
    box = _box(bounds, n)
    _check_key(key)
    if budget < n + 1:
        raise ValueError(
            f"`budget` is {budget}, but the base and {n} experts alone take {n + 1} "
            f"evaluations. Pass at least that; {2 * _num_unknowns(n)} make a good fit."
        )
    for name, value, least in [
        ("verify", verify, 0),
        ("num_points", num_points, 2),
        ("num_generations", num_generations, 1),
    ]:
        if value < least:
            raise ValueError(f"`{name}` is {value}, but must be at least {least}.")
    design_key, search_key = jax.random.split(key)
    sampled = make_design(design, budget, n, bounds=box, key=design_key)
    recorder, clock = Recorder(problem, save_to, progress=progress), _Clock()
    fitted, front, verified = None, None, None
    with _keep_samples(recorder):
        scores = recorder(sampled)
        clock.stop("evaluate")
        problem = recorder.problem
        result = _judge(np.asarray(scores), n)
        if result != RESULTS.no_finite_scores:
            fitted = fit_quadratic(
                sampled,
                scores,
                link=problem.link,
                bounds=problem.link_bounds,
                num_examples=problem.num_examples,
                ridge=ridge,
            )
            clock.stop("fit")
            objective = Minimised(fitted, jnp.asarray(problem.signs))
            front = _trace(objective, box, num_points, num_generations, search_key)
            clock.stop("search")
        elif throw:
            raise ValueError(RESULTS[result])
        if verify and front is not None:
            chosen = pareto.spread_subset(front.scores * problem.signs, verify)
            recorder(front.coefficients[chosen])
            verified = _best(recorder.samples, problem.signs)
            clock.stop("verify")
    if result != RESULTS.successful:
        warnings.warn(_words(result, np.asarray(scores), n), stacklevel=2)
    samples = recorder.samples
    return Solution(
        front=front or Front(sampled[:0], scores[:0]),
        samples=samples,
        verified=verified,
        surrogate=fitted,
        result=result,
        stats=_stats(fitted, samples, recorder.num_new, clock.seconds, key),
        num_verified=len(samples) - budget,
        task_names=problem.task_names or (),
        coefficient_names=problem.coefficient_names,
        directions=problem.directions,
    )


class Minimised(eqx.Module):
    """A surrogate whose scores all want to be small: what the search sees."""

    surrogate: Quadratic
    signs: Float[Array, " tasks"]

    def __call__(
        self, coefficients: Float[Array, " coefficients"]
    ) -> Float[Array, " tasks"]:
        """Predict the scores of one merge, negated where they are to be maximised."""
        return self.surrogate(coefficients) * self.signs


def _trace(
    objective: Minimised,
    box: tuple[Array, Array],
    num_points: int,
    num_generations: int,
    key: PRNGKey,
) -> Front:
    """Trace the front of a surrogate: evolve, then follow its gradient."""
    from mapjax import search  # evosax and flax behind it load only when needed

    towards = pareto.reference_directions(len(objective.signs), num_points)
    algorithm = search.NSGA3(
        population_size=num_points,
        num_coefficients=len(box[0]),
        num_objectives=len(objective.signs),
        reference_directions=towards,
    )
    found = search.evolve(objective, algorithm, num_generations, bounds=box, key=key)
    front = search.polish(objective, found.coefficients, towards, bounds=box)
    # A number of points that is known only now: padded, so that few sizes are compiled.
    coefficients, scores = np.asarray(front.coefficients), np.asarray(front.scores)
    room = 2 ** int(np.ceil(np.log2(len(coefficients))))
    padded = np.concatenate(
        [coefficients, np.repeat(coefficients[:1], room - len(scores), 0)]
    )
    std = np.asarray(objective.surrogate.std(padded))[: len(scores)]
    signs = np.asarray(objective.signs)
    return Front(*map(jax.device_put, (coefficients, scores * signs, std)))


def _best(samples: Samples, signs: np.ndarray) -> Front:
    """Keep the samples that no other sample dominates."""
    kept = np.asarray(pareto.non_dominated(samples.scores * signs))
    return Front(samples.coefficients[kept], samples.scores[kept])


def _judge(scores: np.ndarray, num_coefficients: int) -> RESULTS:
    """Say what is wrong with the scores, the worst first."""
    finite = np.isfinite(scores)
    least = np.where(finite, scores, np.inf).min(axis=0)
    most = np.where(finite, scores, -np.inf).max(axis=0)
    if not finite.any(axis=0).all():
        return RESULTS.no_finite_scores
    if (least == most).any():
        return RESULTS.constant_metric
    if (finite.sum(axis=0) < _num_unknowns(num_coefficients)).any():
        return RESULTS.few_samples
    return RESULTS.successful if finite.all() else RESULTS.nonfinite_scores


def _words(result: RESULTS, scores: np.ndarray, num_coefficients: int) -> str:
    if result == RESULTS.few_samples:
        usable = np.isfinite(scores).sum(axis=0).min()
        missing = _num_unknowns(num_coefficients) - usable
        return f"{RESULTS[result]} {missing} more evaluations would determine it."
    return RESULTS[result]


def _num_unknowns(num_coefficients: int) -> int:
    return (num_coefficients + 1) * (num_coefficients + 2) // 2


def _box(bounds: tuple[Any, Any], num_coefficients: int) -> tuple[Array, Array]:
    try:
        lower, upper = (
            jnp.broadcast_to(jnp.asarray(b, jnp.zeros(()).dtype), (num_coefficients,))
            for b in bounds
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`bounds` is {bounds}, but must be (lower, upper): two numbers, or two arrays "
            f"of {num_coefficients}."
        ) from error
    if not bool(jnp.all(lower < upper)) or not bool(jnp.all(jnp.isfinite(upper - lower))):
        raise ValueError(
            f"`bounds` is {bounds}, but every lower bound must be below its upper bound, and "
            "both finite."
        )
    return lower, upper


def _check_key(key: Any) -> None:
    if not (eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(
            f"`key` is {key!r}, but must be a typed key: pass `key=jax.random.key(0)`, not a "
            "number and not `jax.random.PRNGKey`."
        )


@contextmanager
def _keep_samples(recorder: Recorder) -> Iterator[None]:
    """Hand what was evaluated to whoever catches an error, Ctrl-C included."""
    try:
        yield
    except BaseException as error:
        if recorder.num_new:
            vars(error)["samples"] = recorder.samples
            error.add_note(
                f"The {recorder.num_new} evaluations made are in `samples` of this exception."
            )
        raise


class _Clock:
    """Seconds between stops."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def _stats(
    fitted: Any, samples: Samples, num_new: int, seconds: dict[str, float], key: PRNGKey
) -> dict[str, Any]:
    """Collect what a reader needs to trust and repeat a result."""
    names = ("r2", "loo_r2", "condition_number", "rank", "ridge")
    fit = {} if fitted is None else {name: getattr(fitted, name) for name in names}
    return fit | {
        "num_evaluations": len(samples),
        "num_reused": len(samples) - num_new,
        "num_failed": int(np.sum(~np.isfinite(np.asarray(samples.scores)).all(axis=1))),
        "seconds": seconds,
        "key": str(jax.random.key_data(key).tolist()),
        "versions": {name: metadata.version(name) for name in ("mapjax", "jax", "evosax")},
        "device": jax.devices()[0].device_kind,
    }
