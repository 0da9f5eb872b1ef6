"""Which merge is taken: a point of a front, or what a rule makes of the preference."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from mapjax import pareto
from mapjax._result import Front
from mapjax._sizes import USUAL_POINTS, padded
from mapjax.design import corners
from mapjax.evaluation import minimising_signs

_NUM_COMPARED = 64
_NUM_DRAWS = 128


def own_experts(task_names: Sequence[str], expert_names: Sequence[str]) -> list[int | None]:
    """Say which expert is each task's own: that of its name, or if none has one by order."""
    own = [expert_names.index(t) if t in expert_names else None for t in task_names]
    by_order = own == [None] * len(expert_names)
    return list(range(len(own))) if by_order else own


def choose(
    front: Front,
    signs: np.ndarray,
    weights: np.ndarray,
    method: str | None,
    wishes: np.ndarray | None,
) -> np.ndarray:
    """Take a point of a front.

    Args:
        front: Not empty.
        signs: What makes every score one to minimise.
        weights: One per task.
        method: That of `Solution.pick`; None for what comes nearest to the wishes.
        wishes: The most that each minimised score may be.
    """
    c = np.asarray(front.coefficients)
    # Of equal rows the first is picked, and none of NaN. One size is compiled for once.
    scores = padded(np.asarray(front.scores) * signs, USUAL_POINTS)
    if wishes is not None:
        met = np.all(scores <= wishes, axis=1)
        if not met.any() or method is None:
            return c[int(pareto.pick_achievement(scores, wishes))]
        scores = np.where(met[:, None], scores, np.nan)
    if method == "knee":
        return c[int(pareto.pick_knee(scores))]
    pick = pareto.pick_tchebycheff if method == "tchebycheff" else pareto.pick_weighted_sum
    return c[int(pick(scores, weights))]


def own_or_better(
    solution: Any, weights: np.ndarray, wishes: np.ndarray | None
) -> np.ndarray | None:
    """Take a preference's own merge, or what is predicted to be better by more than luck.

    The best of a hundred predictions is mostly the luckiest. A point's gain in the weighted
    sum has to exceed its standard deviation times the expected largest of as many normal
    errors as there are directions to go in. Errors of neighbours are correlated, so that
    the gain's is smaller than those of the scores.

    Args:
        solution: With a surrogate that has joint draws.
        weights: One per task.
        wishes: The most that each minimised score may be.

    Returns:
        Coefficients; None if the own merge is predicted to miss the wishes, or a task has
        no expert.
    """
    names, front, surrogate = solution.expert_names, solution.front, solution.surrogate
    size, signs = len(solution.coefficient_names), minimising_signs(solution.directions)
    owners = own_experts(solution.task_names, names)
    if None in owners:
        return None
    experts = np.asarray(corners(size, len(names)))[1:]
    own = weights / weights.sum() @ experts[np.array(owners)]
    scores = np.asarray(front.scores) * signs
    met = np.ones(len(scores), bool) if wishes is None else np.all(scores <= wishes, axis=1)
    best = np.flatnonzero(met)[np.argsort(scores[met] @ weights)[: _NUM_COMPARED - 1]]
    rows = np.concatenate([own[None], np.asarray(front.coefficients)[best]])
    room = padded(rows, _NUM_COMPARED)
    predicted = np.asarray(surrogate(room))[: len(rows)] * signs
    if wishes is not None and not np.all(predicted[0] <= wishes):
        return None
    draws = surrogate.draw(room, _NUM_DRAWS, key=jax.random.key(0), noise=False)
    values = (np.asarray(draws)[:, : len(rows)] * signs) @ weights
    gains = (predicted[0] - predicted) @ weights
    luck = _largest_of(size - size // len(names)) * np.std(values[:, :1] - values, axis=0)
    sure = np.nan_to_num(gains - luck, nan=-np.inf)
    return rows[np.argmax(sure)] if sure.max() > 0 else own


def _largest_of(count: int) -> float:
    """Expect the largest of so many standard normal numbers (Blom, 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
