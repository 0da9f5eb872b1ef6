"""Which merge is taken: a point of a front, or what a rule makes of the preference."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mapjax import pareto
from mapjax._domain import Domain
from mapjax._keys import generator
from mapjax._result import Front
from mapjax._sizes import padded, usual
from mapjax._types import PRNGKey
from mapjax.design import corners
from mapjax.evaluation import minimising_signs

_NUM_COMPARED = 64
_NUM_DRAWS = 128


def per_task(
    given: Any, names: Sequence[str], argument: str, missing: float = 0.0
) -> Float[np.ndarray, " tasks"]:
    """Return one number per task, of those given in order or by name.

    Args:
        given: A mapping from tasks to numbers, or numbers in the order of the tasks.
        names: The tasks.
        argument: What it is called, for messages.
        missing: What a task has that is not named.

    Raises:
        ValueError: If a name is unknown, or there is not one number for each task.
    """
    values = given
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ValueError(f"`{argument}` names {unknown}; the tasks are {names}.")
        values = [given.get(name, missing) for name in names]
    try:
        return np.array([float(x) for _, x in zip(names, values, strict=True)])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{argument}` is {given!r}: pass a number for each of the tasks {names}."
        ) from error


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
    scores = usual(np.asarray(front.scores) * signs)
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
        solution: With `by_preference`.
        weights: One per task.
        wishes: The most that each minimised score may be.

    Returns:
        Coefficients; None if the own merge is predicted to miss the wishes, or nothing
        predicts it.
    """
    names, front, surrogate = solution.expert_names, solution.front, solution.surrogate
    size, signs = len(solution.coefficient_names), minimising_signs(solution.directions)
    experts = np.asarray(corners(size, len(names)))[1:]
    own = weights / weights.sum() @ experts[[names.index(t) for t in solution.task_names]]
    if not hasattr(surrogate, "errors"):
        return own if wishes is None else None
    scores = np.asarray(front.scores) * signs
    met = np.ones(len(scores), bool) if wishes is None else np.all(scores <= wishes, axis=1)
    # What is not wished for may have no errors, or be infinite.
    counts = weights > 0
    weights, scores = weights[counts], scores[:, counts]
    best = np.flatnonzero(met)[np.argsort(scores[met] @ weights)[: _NUM_COMPARED - 1]]
    rows = np.concatenate([own[None], np.asarray(front.coefficients)[best]])
    room = padded(rows, _NUM_COMPARED)
    predicted = np.asarray(surrogate(room))[: len(rows)] * signs
    if wishes is not None and not np.all(predicted[0] <= wishes):
        return None
    errors = surrogate.errors(room, _NUM_DRAWS, key=jax.random.key(0), noise=False)
    errors = (np.asarray(errors)[:, : len(rows)] * signs)[..., counts] @ weights
    values = predicted[:, counts] @ weights
    luck = _largest_of(size - size // len(names)) * np.std(errors[:, :1] - errors, axis=0)
    sure = np.nan_to_num(values[0] - values - luck, nan=-np.inf)
    return rows[np.argmax(sure)] if sure.max() > 0 else own


def to_verify(solution: Any, count: int, domain: Domain, key: PRNGKey) -> np.ndarray:
    """Choose merges to evaluate that are no samples, at most `count`: far apart on the front.

    Where each preference has a merge of its own, what would be picked comes before: for
    equal weights of the tasks, and for others drawn evenly.
    """
    signs = minimising_signs(solution.directions)
    spread = pareto.spread_subset(np.asarray(solution.front.scores) * signs, count)
    points = np.asarray(solution.front.coefficients)[np.asarray(spread)]
    if solution.by_preference:
        drawn = generator(key).dirichlet(np.ones(len(signs)), count)
        drawn[0] = 1 / len(signs)
        picks = [np.asarray(solution.pick(weights)) for weights in drawn]
        points = np.concatenate([picks, points])
    new = domain.is_new(points, solution.samples.coefficients)
    return points[new][:count]


def _largest_of(count: int) -> float:
    """Expect the largest of so many standard normal numbers, two at least (Blom, 1958).

    Where there is one direction to go in, it goes both ways.
    """
    count = max(count, 2)
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
