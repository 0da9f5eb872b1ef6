"""The solution: a front, what it was made from, and how to take a point from it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from mapjax import pareto
from mapjax._result import RESULTS, Front, Samples
from mapjax._types import ArrayLike, Direction
from mapjax.evaluation import minimising_signs


class Solution(eqx.Module):
    """What every driver returns.

    Scores are in the user's own direction throughout.

    Attributes:
        front: The front as predicted by the surrogate.
        samples: Every real evaluation, in order: first the base, then each expert, then
            the uniform merge where the budget allowed it, last those made to verify.
        verified: The best of the samples: those that no other sample dominates. None
            unless verification was asked for.
        surrogate: From `[candidates, coefficients]` to predicted scores
            `[candidates, tasks]`. None if no task could be fitted.
        result: How the run ended; see `RESULTS`.
        stats: For each task `r2`, `loo_r2` (leave one out), `condition_number`, `rank`;
            `num_evaluations` in all, of them `num_failed` not finite, `num_reused` from
            `save_to`; `seconds` by stage; `key`, `versions`, `device`.
        num_verified: How many of the last samples were made to verify.
        task_names: The tasks, in the order of the scores.
        coefficient_names: The experts, in the order of the coefficients.
        directions: "maximize" or "minimize", task by task.
    """

    front: Front
    samples: Samples
    verified: Front | None
    surrogate: Callable[..., Any] | None
    result: RESULTS
    stats: dict[str, Any]
    num_verified: int = eqx.field(static=True)
    task_names: tuple[str, ...] = eqx.field(static=True)
    coefficient_names: tuple[str, ...] = eqx.field(static=True)
    directions: tuple[Direction, ...] = eqx.field(static=True)

    def pick(
        self,
        preference: Mapping[str, float] | Sequence | ArrayLike | None = None,
        *,
        method: str = "weighted_sum",
        at_least: Mapping[str, float] | None = None,
        verified: bool = False,
    ) -> Float[Array, " coefficients"]:
        """Take the point of the front that suits a preference best.

        Args:
            preference: Non-negative weights over the tasks, in order or by name (tasks
                not named weigh nothing); equal weights by default.
            method: "weighted_sum" of the scores as they are; "tchebycheff", the least
                worst weighted distance to the best scores, which reaches concave parts
                too; "knee", where giving up a little of one task stops buying much.
            at_least: Instead of a preference, scores that must be reached, by task, such
                as `{"mnist": 0.9}` (at most, for a task that is minimised). Of the points
                that reach them the best on the other tasks is taken, else the one that
                misses least.
            verified: Choose among measured points instead of predicted ones.

        Returns:
            The coefficients of that merge, for `mapjax.merge`.

        Raises:
            ValueError: If the preference or a name is wrong, both kinds of wish are
                given, or `verified` is asked for and nothing was verified.
        """
        front = self.verified if verified else self.front
        if front is None:
            raise ValueError("Nothing was verified: pass `verify=` to the driver.")
        scores = front.scores * minimising_signs(self.directions)
        if at_least is not None:
            if preference is not None or method == "knee":
                raise ValueError(
                    "Pass `at_least` alone: it takes the place of a preference."
                )
            wishes = self._by_name(at_least, "at_least", missing=np.nan)
            wishes = np.where(
                np.isnan(wishes), np.inf, wishes * minimising_signs(self.directions)
            )
            index = pareto.pick_achievement(scores, wishes)
        elif method == "knee":
            index = pareto.pick_knee(scores)
        elif method in ("weighted_sum", "tchebycheff"):
            if preference is None:
                preference = np.ones(len(self.task_names))
            elif isinstance(preference, Mapping):
                preference = self._by_name(preference, "preference", missing=0.0)
            pick = getattr(pareto, f"pick_{method}")
            index = pick(scores, np.asarray(preference, float))
        else:
            raise ValueError(
                f"`method` is {method!r}; use 'weighted_sum', 'tchebycheff' or 'knee'."
            )
        return front.coefficients[index]

    def references(self) -> dict[str, int]:
        """Say which rows of `samples` are the base, each expert and the uniform merge."""
        n = len(self.coefficient_names)
        rows = {
            "base": np.zeros(n),
            **dict(zip(self.coefficient_names, np.eye(n), strict=True)),
        }
        rows["uniform"] = np.full(n, 1 / n)
        sampled = np.asarray(self.samples.coefficients)
        found = {}
        for name, row in rows.items():
            same = np.flatnonzero(np.all(np.isclose(sampled, row, atol=1e-6), axis=1))
            if len(same):
                found[name] = int(same[0])
        return found

    def _by_name(
        self, wishes: Mapping[str, float], argument: str, missing: float
    ) -> np.ndarray:
        unknown = sorted(set(wishes) - set(self.task_names))
        if unknown:
            raise ValueError(
                f"`{argument}` names {unknown}; the tasks are {self.task_names}."
            )
        return np.array([wishes.get(name, missing) for name in self.task_names], float)
