"""Bayesian MAP: the posterior of the surrogate says what to evaluate next."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mapjax import pareto
from mapjax._arguments import check_tolerance
from mapjax._checks import check_choice, check_count, check_least
from mapjax._keys import generator
from mapjax._run import Run
from mapjax._solution import Solution
from mapjax._types import PRNGKey
from mapjax.surrogate import Outputs

_MOST_ROUNDS = 10
_NUM_DRAWS = 64
_NUM_CANDIDATES = 256
_MARGIN = 0.1
_LEAST_STEP = 0.02
_SMALLEST = 1e-12
_ROUNDING = 8
ACQUISITIONS = ("hypervolume", "cells")


def bayesian_front(
    evaluate: Any,
    *,
    budget: int,
    key: Any,
    acquisition: str = "hypervolume",
    batch_size: int | None = None,
    tolerance: float = 0.0,
    num_coefficients: int | None = None,
    bounds: tuple[Any, Any] | str | None = None,
    directions: str | Sequence[str] | None = None,
    surrogate: Any = None,
    design: str | None = None,
    link: str | Sequence[str] | None = None,
    link_bounds: tuple[Any, Any] | None = None,
    ridge: float | str | None = "auto",
    num_points: int = 100,
    num_generations: int | None = None,
    verify: int = 0,
    task_names: Sequence[str] | None = None,
    save_to: str | os.PathLike | None = None,
    throw: bool = True,
    progress: bool | None = None,
) -> Solution:
    r"""Find the Pareto front of merges, letting the posterior choose each evaluation.

    Starts as `map_front` does. Then, batch by batch, fits the surrogate to all samples,
    traces its front, and evaluates the merges that are expected to add most to the
    hypervolume of what was evaluated (Bayesian MAP). Where `map_front` looks for the best
    merge of random preferences, this looks for whole fronts, and knows when to stop. With
    groups, the traced front is of whole experts at first, as there, and points around it
    are not.

    Args:
        evaluate: An `Evaluator`, or any function from `[candidates, coefficients]` to
            scores `[candidates, tasks]`.
        budget: How many merges to evaluate at most, at least one more than there are
            experts: the base and the experts.
        key: A typed key. The same key gives the same solution.
        acquisition: "hypervolume", the noisy expected hypervolume improvement of joint
            draws from the posterior, over the traced front, points around it and new points
            of the design; or "cells", as in the MAP paper: random points of those cells of
            directions in which the surrogate errs most.
        batch_size: How many merges to choose at once, before the next fit; by default a
            tenth of what the base and the experts leave of the budget. At most 256.
        tolerance: Stop before the budget is spent once the next batch is expected to raise
            the hypervolume by less than this share of it, such as 0.01. The hypervolume is
            measured from the worst scores on the predicted front and among the best
            samples, and a tenth of the way beyond.
        num_coefficients: As for `map_front`, and so are all arguments below.
        bounds: The box that is sampled and searched, or "simplex"; by default the rule's.
        directions: "maximize" or "minimize", for all tasks or for each.
        surrogate: "outputs", "quadratic" or `surrogate.Outputs`.
        design: Where to sample at first; a name from `mapjax.design`, by default the rule's
            own or what is usual, as in `map_front`.
        link: Of a quadratic: "identity", "sigmoid" or "softplus", for all tasks or for each.
        link_bounds: The lowest and the highest possible score.
        ridge: Strength of the ridge penalty of the quadratic, "auto" or None.
        num_points: How many points a search moves. The front also holds the best that it
            came by, in all up to about three times as many.
        num_generations: Generations of each search.
        verify: How many points to evaluate on top of the budget, as by `map_front`.
        task_names: Names for the tasks of a function.
        save_to: A file to which every sample is appended as it arrives. A run that finds
            it goes on from there and evaluates nothing twice, but for one merge, by an
            `Evaluator`, to see that its scores are still the same.
        throw: Raise an error if no front can be made; otherwise say so in `result`.
        progress: True or False to insist on a progress bar or on none.

    Returns:
        The solution, with the front as predicted. `stats["rounds"]` has the
        `expected_improvement` of every batch that was proposed, as a share of the
        hypervolume.

    Raises:
        ValueError: Before any evaluation, if an argument is wrong; after it, if scores
            have the wrong shape, lie outside the link's range, or, with `throw`, if a
            task has no finite score. What was evaluated is in the exception's `samples`.

    Example:
        >>> import jax, jax.numpy as jnp, mapjax as mj
        >>> def evaluate(c):  # two tasks that want opposite corners
        ...     return jnp.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)
        >>> solution = mj.bayesian_front(
        ...     evaluate, num_coefficients=2, budget=40, tolerance=0.01, key=jax.random.key(0)
        ... )
        >>> solution.stats["num_evaluations"] < 40
        True

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via
        Quadratic Approximation*, ICLR 2025, arXiv 2406.07529, Bayesian MAP.
        Daulton, Balandat and Bakshy, *Parallel Bayesian Optimization of Multiple Noisy
        Objectives with Expected Hypervolume Improvement*, NeurIPS 2021.
    """
    check_count("verify", verify, 0)
    check_least("batch_size", batch_size, 1)
    check_choice("acquisition", acquisition, ACQUISITIONS)
    check_tolerance(tolerance, "a share of the hypervolume")
    run = Run(
        evaluate,
        budget=budget,
        key=key,
        num_coefficients=num_coefficients,
        bounds=bounds,
        directions=directions,
        surrogate=surrogate,
        link=link,
        link_bounds=link_bounds,
        ridge=ridge,
        num_points=num_points,
        num_generations=num_generations,
        task_names=task_names,
        save_to=save_to,
        throw=throw,
        progress=progress,
        design=design,
        plan=("bayesian_front", acquisition, batch_size, tolerance),
    )
    budget = run.num_left
    design_key, key = jax.random.split(key)
    # A quadratic needs to see a merge, too.
    first = min(budget, run.domain.num_first + (not isinstance(run.family, Outputs)))
    size = batch_size or max(1, math.ceil((budget - first) / _MOST_ROUNDS))
    size = min(size, _NUM_CANDIDATES)
    start = run.domain.design_beside(first, design_key, run.recorder.is_given)
    with run.keeping_samples():
        run.evaluate(start)
        for done in [*range(first, budget, size), budget]:
            trace_key, propose_key, key = jax.random.split(key, 3)
            if not run.fit():
                break
            run.trace(trace_key)
            if done == budget:
                break
            points, gains = _propose(run, acquisition, size, propose_key)
            batch = min(size, budget - done)
            run.expected_gain()
            run.rounds[-1]["expected_improvement"] = float(gains[:batch].sum())
            if gains[:batch].sum() < tolerance:
                break
            run.evaluate(points[:batch])
        if verify and run.front is not None:
            run.verify(verify)
    return run.solution()


def _propose(
    run: Run, acquisition: str, count: int, key: PRNGKey
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a batch, and say by which share each should raise the hypervolume."""
    from mapjax import search  # evosax and flax behind it load only when needed

    fitted: Any = run.fitted
    candidate_key, draw_key, ray_key = jax.random.split(key, 3)
    samples = run.recorder.samples
    # Rows of the base, without a score, so that one compilation serves all batches.
    room = ((0, run.capacity - len(samples)), (0, 0))
    known = np.pad(samples.coefficients, room)
    scores = np.pad(samples.scores, room, constant_values=np.nan)
    if acquisition == "cells":
        candidates = _from_cells(run, count, candidate_key)
    else:
        candidates = _near_front(run, candidate_key)
    points = np.concatenate([candidates, known])
    errors = fitted.errors(points, _NUM_DRAWS, key=draw_key, noise=False)
    # With too few samples to tell the noise there is nothing but the mean.
    draws = np.asarray(fitted(points)) + np.nan_to_num(errors)
    draws = np.clip(draws, *_limits(run)) * run.signs
    usable = np.all(np.isfinite(scores), axis=1)
    reference, ideal = _corners(run, scores * run.signs)
    found = search.propose_improving(
        draws[:, : len(candidates)],
        np.where(usable[:, None], draws[:, len(candidates) :], np.nan),
        reference=reference,
        ideal=ideal,
        count=count,
        allowed=run.domain.is_new(candidates, samples.coefficients),
        key=ray_key,
    )
    gains = np.asarray(found.gain) / max(float(found.hypervolume), _SMALLEST)
    return candidates[np.asarray(found.chosen)], gains


def _near_front(run: Run, key: PRNGKey) -> np.ndarray:
    """Offer points of the front, points around them, and some of the design."""
    assert run.front is not None
    host_key, design_key = jax.random.split(key)
    rng = generator(host_key)
    lower, upper = (np.asarray(end) for end in run.domain.box)
    # As many of each whatever the size of the front, so that shapes stay the same.
    front = rng.permutation(np.asarray(run.front.coefficients))
    front = front[np.arange(_NUM_CANDIDATES // 2) % len(front)]
    near = front[: 3 * _NUM_CANDIDATES // 8]
    step = _LEAST_STEP * 10 ** rng.random((len(near), 1)) * rng.normal(size=near.shape)
    near = np.clip(near + step * (upper - lower), lower, upper)
    near = np.asarray(run.domain.place(near))
    fresh = run.domain.fresh(_NUM_CANDIDATES // 8, design_key, run.recorder.is_known)
    return np.concatenate([front, near, fresh]).astype(front.dtype)


def _from_cells(run: Run, count: int, key: PRNGKey) -> np.ndarray:
    """Draw points as the paper does, in the box instead of the unit box."""
    from mapjax import search

    fitted: Any = run.fitted
    samples = run.recorder.samples
    lower, upper = (np.asarray(end) for end in run.domain.box)
    unit = np.clip((np.asarray(samples.coefficients) - lower) / (upper - lower), 0, 1)
    scores = np.asarray(samples.scores)
    scores = np.where(np.isfinite(scores), scores, np.nan)
    left_out = np.asarray(fitted.left_out)[: len(scores)]
    # The base and the experts may never be left out: they have a residual still.
    was_left_out = np.isfinite(left_out)
    error = scores - np.where(was_left_out, left_out, fitted(samples.coefficients))
    width = np.nanmax(scores, axis=0) - np.nanmin(scores, axis=0)
    losses = np.mean((error / np.where(width > 0, width, 1)) ** 2, axis=1)
    chosen = lower + search.propose_cells(unit, losses, count, key=key) * (upper - lower)
    return np.asarray(run.domain.place(chosen.astype(lower.dtype)))


def _corners(run: Run, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the box of the hypervolume: from beyond the worst of the fronts to the best.

    Args:
        run: With the predicted front.
        scores: Of the samples, minimised.
    """
    assert run.front is not None
    usable = np.isfinite(scores).all(axis=1)
    reached = scores[usable & np.asarray(pareto.non_dominated(scores))]
    # What was evaluated may not span the front yet, and what is predicted may not either.
    both = np.concatenate([reached, np.asarray(run.front.scores) * run.signs])
    worst, ideal = both.max(axis=0), both.min(axis=0)
    width, size = worst - ideal, np.maximum(np.abs(worst), np.abs(ideal))
    # A task whose scores are all the same, but for rounding, still needs a width.
    rounding = _ROUNDING * np.finfo(run.front.scores.dtype).eps * size
    least = 1e-3 * np.maximum(size, 1e-3)
    return worst + np.where(width > rounding, _MARGIN * width, least), ideal


def _limits(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Give what scores can lie between: a posterior knows no bounds."""
    ends = run.recorder.problem.link_bounds or (None, None)
    lower, upper = (np.asarray(end, float) for end in ends)
    return (
        np.where(np.isnan(lower), -np.inf, lower),
        np.where(np.isnan(upper), np.inf, upper),
    )
