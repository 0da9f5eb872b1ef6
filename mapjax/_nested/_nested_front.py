"""Nested MAP: a tree of merges of two, composed back to the original task vectors."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mapjax import pareto
from mapjax._checks import check_choice, check_count, check_least
from mapjax._keys import generator
from mapjax._nested._groups import draw_preferences, read_owners, read_preference
from mapjax._nested._pairing import gram_matrix, read_pairing
from mapjax._nested._tree import Tree
from mapjax._result import Front, judge
from mapjax._run import Run
from mapjax._solution import Solution

METHODS = ("composed", "paper")
_PER_PLANE = 5
_PAPER_PER_PLANE = 20


def nested_front(
    evaluate: Any,
    *,
    key: Any,
    budget: int | None = None,
    preference: Any = None,
    pairing: Any = "scores",
    method: str = "composed",
    owners: Mapping[str, str] | None = None,
    num_coefficients: int | None = None,
    bounds: tuple[Any, Any] | str = (0.0, 1.0),
    directions: str | Sequence[str] | None = None,
    surrogate: Any = None,
    link: str | Sequence[str] | None = None,
    link_bounds: tuple[Any, Any] | None = None,
    ridge: float | str | None = "auto",
    num_points: int = 100,
    verify: int = 0,
    task_names: Sequence[str] | None = None,
    save_to: str | os.PathLike | None = None,
    throw: bool = True,
    progress: bool | None = None,
) -> Solution:
    r"""Merge many experts two by two, each time in the best way for a preference.

    A search of N coefficients becomes N - 1 searches of two, in about $\log_2 N$ levels:
    a pair is merged in the way that is best for the preference among its own tasks, and
    goes on as one expert. Merging is linear, so that every merge is a row of coefficients
    of the original task vectors: its evaluation counts for all preferences, and the
    result is $\theta_0 + \sum_i c_i v_i$ with the factors multiplied along the path.

    Worth it for many experts, and most of all where only scores are known: a quadratic of
    two coefficients takes six evaluations and one of sixteen takes 153. With outputs or
    few experts `map_front` finds about as good a front. A pair is merged without regard to
    the tasks of the others, so that a tree can miss merges of which all experts are part.

    Args:
        evaluate: An `Evaluator`, or any function from `[candidates, coefficients]` to
            scores `[candidates, tasks]`.
        key: A typed key. The same key gives the same solution.
        budget: How many merges to evaluate at most. With outputs at least the base and
            the experts, and by default $N + 1 + 2 N \lceil\log_2 N\rceil$. Without, every
            plane of two merges takes at least 5, and every merge that goes on 1: about
            7 N for a preference, and nearly as many for each further one. The default is
            the same for a preference, $N + 1 + 6 N \lceil\log_2 N\rceil$ for a front, and
            in the paper's way 20 for each plane.
        preference: Non-negative weights over the tasks, in order or by name. The front is
            then one point, the merge for it. By default a front over many preferences.
        pairing: Who is merged first: "scores", those whose weighted scores on their own
            tasks are closest, as in the paper; "cosine", those whose task vectors are;
            or nested pairs of experts, by name or index: `(("a", "b"), ("c", "d"))`, where
            longer sequences are paired in their order.
        method: "composed"; or "paper": for one preference, with all evaluations of a pair
            spread over its plane at once and a quadratic of two coefficients.
        owners: Which expert each task belongs to, `{task: expert}`; a task left out counts
            everywhere. By default the expert of the same name, else of the same place;
            needed where tasks are not as many as experts.
        num_coefficients: As for `map_front`, and so are all arguments below.
        bounds: The box of the coefficients; merges that were merged only shrink.
        directions: "maximize" or "minimize", for all tasks or for each.
        surrogate: "outputs" or `surrogate.Outputs`: of all samples, restricted to a plane;
            or "quadratic": of a plane's own samples, in its two coefficients. By default
            the first for an `Evaluator`, the second for a function.
        link: Of a quadratic: "identity", "sigmoid" or "softplus", for all tasks or for each.
        link_bounds: The lowest and the highest possible score.
        ridge: Strength of the ridge penalty of the quadratics; "auto" and None penalise
            that of a plane only where its samples do not determine it.
        num_points: The most preferences that are composed, with outputs; else as many as
            the budget has evaluations for.
        verify: How many points, spread over the front, to evaluate on top of the budget.
        task_names: Names for the tasks of a function.
        save_to: A file to which every sample is appended as it arrives. A run that finds
            it goes on from there and evaluates nothing twice, but for one merge, by an
            `Evaluator`, to see that its scores are still the same.
        throw: Raise an error if no front can be made; otherwise say so in `result`.
        progress: True or False to insist on a progress bar or on none.

    Returns:
        The solution, with the front as predicted: by the last plane's quadratics where
        there are no outputs (its `surrogate` is then a ridge fit over all samples, and
        rougher). Its `stats` have also the `tree` of experts, `num_task_scores` (what was
        needed if each merge is evaluated only on the tasks below its node), and with a
        preference the `path`: every merge as both trees and both factors.

    Raises:
        ValueError: Before any evaluation, if an argument is wrong; after it, if scores
            have the wrong shape, lie outside the link's range, or, with `throw`, if a
            task has no finite score. What was evaluated is in the exception's `samples`.

    Example:
        >>> import jax, jax.numpy as jnp, mapjax as mj
        >>> def evaluate(c):  # four tasks, each of which wants its own expert alone
        ...     return -((c[:, None] - jnp.eye(4)) ** 2).sum(axis=2)
        >>> solution = mj.nested_front(
        ...     evaluate, num_coefficients=4, preference=[1, 1, 1, 1], key=jax.random.key(0)
        ... )
        >>> bool(jnp.abs(solution.pick() - 0.25).max() < 0.01)
        True

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via
        Quadratic Approximation*, ICLR 2025, arXiv 2406.07529, nested merging.
    """
    check_count("verify", verify, 0)
    check_least("budget", budget, 1)
    check_choice("method", method, METHODS)
    if surrogate == "gradient":
        raise ValueError("`surrogate` is 'gradient'; use 'outputs' or 'quadratic'.")
    if method == "paper":
        if preference is None:
            raise ValueError(
                "`method` is 'paper', which makes one merge for one preference: pass "
                "`preference`, or method='composed' for a front."
            )
        if surrogate not in (None, "quadratic"):
            raise ValueError(
                f"`method` is 'paper', which fits quadratics, but `surrogate` is "
                f"{surrogate!r}: leave it out, or use method='composed'."
            )
        surrogate = "quadratic"
    if isinstance(bounds, str):
        raise ValueError(
            f"`bounds` is {bounds!r}, but a tree chooses the sizes of its merges: pass "
            "(lower, upper), or use `map_front`."
        )
    size = getattr(evaluate, "num_coefficients", None) or num_coefficients
    most = budget or 1 + 20 * (size if isinstance(size, int) else 1)
    plan = ("nested_front", method, repr((preference, pairing, owners)))
    run = Run(
        evaluate,
        budget=most,
        key=key,
        num_coefficients=num_coefficients,
        bounds=bounds,
        directions=directions,
        surrogate=surrogate,
        link=link,
        link_bounds=link_bounds,
        ridge=ridge,
        num_points=num_points,
        task_names=task_names,
        save_to=save_to,
        throw=throw,
        progress=progress,
        plan=plan,
    )
    n, experts = run.num_coefficients, run.recorder.problem.coefficient_names
    if n > run.domain.num_experts:
        raise ValueError(
            f"The {run.domain.num_experts} experts have {n} coefficients in groups, but a tree "
            "merges whole experts. Pass task vectors without groups, or use `map_front`."
        )
    if n < 2:
        raise ValueError("There is 1 expert, but a tree merges at least two. Add one.")
    tasks = run.recorder.problem.task_names
    if tasks is None:
        if owners is not None:
            raise ValueError(
                "`owners` names tasks, but the function's have no names yet: pass "
                "`task_names`."
            )
        tasks = tuple(f"task_{t}" for t in range(n))
        run.recorder.problem = run.recorder.problem.with_tasks(tasks)
    owned = read_owners(owners, experts, tasks)
    wanted = read_preference(preference, tasks)
    pairs = read_pairing(pairing, experts)
    gram = gram_matrix(evaluate) if pairs == "cosine" else None
    by_outputs = run.family != "quadratic"
    budget = _read_budget(budget, n, method, by_outputs, wanted is None)
    run.budget = budget
    random = generator(key)
    count = _num_preferences(budget, n, num_points, by_outputs)
    preferences = draw_preferences(count, len(tasks), random) if wanted is None else wanted
    tree = Tree(run, owned, pairs, gram, random)
    with run.keeping_samples():
        last = tree.grow(preferences, budget, rounds=1 if method == "paper" else 2)
        if run.fitted is not None:
            if not by_outputs:
                run.fit()
            # The front is not that surrogate's, which may lack samples.
            run.result = judge(np.asarray(run.recorder.samples.scores), needed=1)
            if by_outputs and wanted is None:
                last = tree.compose(draw_preferences(num_points, len(tasks), random))
            _set_front(run, tree, last.rows, by_outputs)
            if verify:
                run.verify(verify)
    solution = run.solution()
    solution.stats["tree"] = _named(last.tree, experts)
    solution.stats["num_task_scores"] = tree.task_evaluations
    if wanted is not None:
        solution.stats["path"] = [
            (_named(a, experts), _named(b, experts), tuple(factors[0].tolist()))
            for a, b, factors in tree.path
        ]
    return solution


def _read_budget(
    budget: int | None, n: int, method: str, by_outputs: bool, many: bool
) -> int:
    """Return the budget, by default what grows as N log N, or say what is too little."""
    start, least = n + 1, n + 1
    if not by_outputs:
        least = start + _num_evaluations(n, 2 if many else 1)
    if budget is None:
        each = 2 if by_outputs or not many else 6
        usual = start + each * n * math.ceil(math.log2(n))
        if method == "paper":
            usual = start + _PAPER_PER_PLANE * (n - 1) + n - 2
        return max(usual, least)
    if budget < least:
        planes = "" if by_outputs else f", and {_PER_PLANE} in each plane of two merges"
        kind = "a front of two preferences" if many and not by_outputs else "one merge"
        raise ValueError(
            f"`budget` is {budget}, but the base and {n} experts{planes} take at least "
            f"{least} evaluations for {kind}. Pass at least that, or leave it out."
        )
    return budget


def _num_preferences(budget: int, n: int, num_points: int, by_outputs: bool) -> int:
    """Say for how many preferences evaluations are made."""
    rest = budget - n - 1
    if by_outputs:  # as many as the last level has evaluations
        return max(1, min(num_points, rest // math.ceil(math.log2(n))))
    if n == 2:  # one plane, the same for all preferences
        return num_points
    most = [k for k in range(1, num_points + 1) if _num_evaluations(n, k) <= rest]
    return max(most, default=1)


def _num_evaluations(n: int, num_preferences: int) -> int:
    """Count what the planes of so many preferences take at least.

    Pairs of experts have the same plane for all preferences; a merge that goes on is
    evaluated too.
    """
    inner = n - 1 - n // 2
    planes = n // 2 + inner * num_preferences
    return _PER_PLANE * planes + (n - 2) * num_preferences


def _set_front(run: Run, tree: Tree, rows: np.ndarray, by_outputs: bool) -> None:
    """Predict the scores of merges and keep those that none dominates."""
    dtype = run.domain.lower.dtype
    rows, index = np.unique(rows.astype(dtype), axis=0, return_index=True)
    if by_outputs:
        run.predict(rows)
        return
    scores, std = (x[index] for x in tree.scores())
    kept = np.asarray(pareto.non_dominated(scores * run.signs))
    run.front = Front(*(jax.device_put(x[kept]) for x in (rows, scores, std)))


def _named(tree: Any, names: Sequence[str]) -> Any:
    if isinstance(tree, tuple):
        return tuple(_named(child, names) for child in tree)
    return names[tree]
