"""What each group of experts is for: tasks, preferences and their weights."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mapjax._picking import per_task
from mapjax.pareto._checks import as_preference


class Group(NamedTuple):
    """Experts that were merged, with one merge for each preference.

    Attributes:
        tree: An expert's index, or the two trees that it was merged from.
        tasks: Which tasks it is chosen for.
        rows: Coefficients of the original task vectors, one row per preference.
    """

    tree: Any
    tasks: Bool[np.ndarray, " tasks"]
    rows: Float[np.ndarray, "preferences coefficients"]


def single_experts(owned: np.ndarray, num_preferences: int) -> list[Group]:
    """Start with each expert for itself, given its tasks `[experts, tasks]`."""
    rows = np.broadcast_to(
        np.eye(len(owned))[:, None], (len(owned), num_preferences, len(owned))
    )
    return [Group(i, owned[i], rows[i]) for i in range(len(owned))]


def weights_in(
    tasks: Bool[np.ndarray, " tasks"], preferences: Float[np.ndarray, "preferences tasks"]
) -> Float[np.ndarray, "preferences tasks"]:
    """Restrict preferences to the tasks of a group.

    A group of which nothing is wanted is chosen for all its tasks alike, and one without
    tasks for all tasks there are.
    """
    tasks = tasks if tasks.any() else np.ones_like(tasks)
    weights = preferences * tasks
    total = weights.sum(axis=1, keepdims=True)
    return np.where(
        total > 0, weights / np.where(total > 0, total, 1.0), tasks / tasks.sum()
    )


def read_owners(
    owners: Mapping[str, str] | None, experts: Sequence[str], tasks: Sequence[str]
) -> Bool[np.ndarray, "experts tasks"]:
    """Say which tasks each expert is for.

    Raises:
        ValueError: If it cannot be told, or a name is unknown.
    """
    if owners is None:
        if set(experts) == set(tasks):
            owners = {name: name for name in tasks}
        elif len(experts) == len(tasks):
            owners = dict(zip(tasks, experts, strict=True))
        else:
            raise ValueError(
                f"There are {len(tasks)} tasks for {len(experts)} experts, so that it is "
                "not known which expert each task belongs to: pass `owners`, such as "
                f"{{{tasks[0]!r}: {experts[0]!r}, ...}}. Tasks left out count everywhere."
            )
    for name, known in ((set(owners), tasks), (set(owners.values()), experts)):
        if not name <= set(known):
            raise ValueError(
                f"`owners` names {sorted(name - set(known))}, expected tasks as keys "
                f"{list(tasks)} and experts as values {list(experts)}."
            )
    owned = [[owners.get(task, expert) == expert for task in tasks] for expert in experts]
    return np.array(owned)


def read_preference(
    preference: Any, tasks: Sequence[str]
) -> Float[np.ndarray, "1 tasks"] | None:
    """Return weights that sum to 1, or None where there is no preference.

    Raises:
        ValueError: As `Solution.pick`.
    """
    if preference is None:
        return None
    weights = per_task(preference, tasks, "preference")
    as_preference(weights, len(weights))
    return weights[None] / weights.sum()


def draw_preferences(
    count: int, num_tasks: int, random: np.random.Generator
) -> Float[np.ndarray, "preferences tasks"]:
    """List equal weights, then each task alone, then uniform points of the simplex."""
    known = np.concatenate([np.full((1, num_tasks), 1 / num_tasks), np.eye(num_tasks)])
    drawn = random.dirichlet(np.ones(num_tasks), max(count - len(known), 0))
    return np.concatenate([known, drawn])[:count]
