"""MAP: sample, evaluate, fit a surrogate, search it, verify."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mapjax._arguments import check_tolerance
from mapjax._checks import check_count, check_least
from mapjax._run import Run
from mapjax._solution import Solution
from mapjax.surrogate import Outputs

_MOST_ROUNDS = 10


def map_front(
    evaluate: Any,
    *,
    budget: int,
    key: Any,
    num_coefficients: int | None = None,
    bounds: tuple[Any, Any] | str | None = None,
    directions: str | Sequence[str] | None = None,
    surrogate: Any = None,
    rounds: int | None = None,
    tolerance: float = 0.0,
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
    r"""Find the Pareto front of merges from a handful of evaluations (MAP).

    Evaluates some merges, fits a surrogate of every task's score, traces the front of the
    surrogate by NSGA-III (and a gradient polish where scores are differentiable), and
    spends the rest of the budget on points of that front, round by round. With groups
    (`mapjax.group`), fronts are of merges with one coefficient per expert until more
    merges are evaluated than there are coefficients, but not where groups have bounds of
    their own, nor for "gradient".

    Args:
        evaluate: An `Evaluator`, or any function from `[candidates, coefficients]` to
            scores `[candidates, tasks]`.
        budget: How many merges to evaluate, at least one more than there are
            experts: as a rule the base and the experts. With an `Evaluator` that is enough
            for a good front, and two to four times that for a very good one. With a function
            the paper's advice is about `(N + 1) * (N + 2)`.
        key: A typed key. The same key gives the same solution.
        num_coefficients: How many coefficients a function takes; an `Evaluator` knows.
        bounds: The box that is sampled and searched: two numbers, or two arrays
            `[coefficients]`; or "simplex", for mixtures of the experts, whose coefficients
            are not negative and sum to one (in each group). By default the rule's own:
            "simplex" for those of `mapjax.rules`, and else from 0 to 1.
        directions: "maximize" or "minimize", for all tasks or for each. An `Evaluator`
            knows; for a function the default is to maximise.
        surrogate: "outputs", to predict the outputs of every example and score them by
            the true metric, or "quadratic", $s_t(c) \approx g(e + b \cdot c + \tfrac12
            c^\top A c)$ with a link $g$, as the paper does; or `surrogate.Outputs` with
            its options. By default the first for an `Evaluator`, the second for a
            function. "gradient" fits the quadratic to the derivatives too, of an
            `Evaluator` with differentiable metrics; each merge then counts as three
            evaluations, in `budget` and in `stats`.
        rounds: How often a front is traced. 1 spends the whole budget on a design; by
            default enough that a round evaluates about as many merges as there are
            experts, but at most 11.
        tolerance: Stop before the budget is spent once the front is predicted to be
            better than the best sample by less than this, in units of the scores and on
            average over preferences; not while groups go together.
        design: Where to sample at first; a name from `mapjax.design`, by default
            "multiscale", or on the simplex "dirichlet". The base and the experts come
            first, and are all of it where outputs are predicted, but for `rounds=1`; the
            uniform merge comes next. On the simplex there is no base, and for "axial",
            the default for `rules.react`, there are no experts, but mixtures around the
            uniform one.
        link: "identity", "sigmoid" or "softplus", for all tasks or for each. By default
            what the metrics' bounds call for, and the identity for a function.
        link_bounds: The lowest and the highest possible score, each a number or one per
            task; by default the metrics' bounds, and the link's own for a function.
        ridge: Strength of the ridge penalty of the quadratic; "auto" chooses it by
            leave-one-out error, None uses one only where samples are too few.
        num_points: How many points a search moves. The front also holds the best that it
            came by, in all up to about three times as many.
        num_generations: Generations of each search; by default 150, and 40 with outputs.
        verify: How many points to evaluate on top of the budget, less those that are
            samples already. They are spread over the front; where a rule has a merge of
            its own for each preference, what `Solution.pick` takes for as many
            preferences, equal weights first, goes before.
        task_names: Names for the tasks of a function.
        save_to: A file to which every sample is appended as it arrives. A run that finds
            it goes on from there and evaluates nothing twice, but for one merge, by an
            `Evaluator`, to see that its scores are still the same. Samples that are there
            from a run with other arguments count towards the budget.
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
    check_count("verify", verify, 0)
    check_least("rounds", rounds, 1)
    check_tolerance(tolerance, "units of the scores")
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
        plan=("map_front", rounds, tolerance),
    )
    batches = _batches(run, rounds)
    design_key, key = jax.random.split(key)
    first = run.domain.design_beside(batches[0], design_key, run.recorder.is_given)
    with run.keeping_samples():
        run.evaluate(first)
        for count in [*batches[1:], 0]:
            trace_key, propose_key, key = jax.random.split(key, 3)
            if not run.fit():
                break
            run.trace(trace_key, rough=count > 0)
            if count == 0:
                break
            if run.expected_gain() < tolerance and run.searched.repeats == 1:
                run.trace(propose_key)  # the last was rough, and is now to be kept
                break
            run.evaluate_proposals(run.propose(count, propose_key))
        if verify and run.front is not None:
            run.verify(verify)
    return run.solution()


def _batches(run: Run, rounds: int | None) -> list[int]:
    """Share the budget out: what is evaluated at first, and then in each round."""
    left = run.num_left
    first = min(run.domain.num_first, left)
    if not isinstance(run.family, Outputs):
        first = max(first + 1, left // 2)
    rest = left - first
    if rounds == 1 or rest <= 0:
        return [left]
    if rounds is None:
        rounds = 1 + min(_MOST_ROUNDS, math.ceil(rest / run.num_start))
    parts = np.array_split(np.arange(rest), min(rounds - 1, rest))
    return [first, *(len(part) for part in parts)]
