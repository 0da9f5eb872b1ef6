"""The solution: a front, what it was made from, and how to take a point from it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import check_choice
from mapjax._picking import choose, own_or_better, per_task
from mapjax._result import RESULTS, UNDETERMINED, Front, Point, Samples
from mapjax._sizes import USUAL_POINTS, padded, usual
from mapjax._solution_file import read_solution, why_no_surrogate, write_solution
from mapjax._types import ArrayLike, Direction
from mapjax.design import corners
from mapjax.evaluation import minimising_signs
from mapjax.pareto._checks import as_preference
from mapjax.pareto._hypervolume import exact_or_estimated

_MOST_SHOWN = 8


class Solution(eqx.Module):
    """What every driver returns.

    Scores are in the user's own direction throughout.

    Attributes:
        front: The front as predicted by the surrogate.
        samples: Every real evaluation, in order: first those of other runs in `save_to`,
            then the base and each expert (on the simplex no base, in an "axial" design no
            expert), from a design of more merges the uniform one, last those made to verify.
        verified: The best of the samples: those that no other sample dominates. None
            unless verification was asked for.
        surrogate: From `[candidates, coefficients]` to predicted scores
            `[candidates, tasks]`, for merges such as were sampled: after a search on the
            simplex, coefficients that sum to one. None if no task could be fitted,
            from a tuner, which fits none, and after `load` where the file could not hold it.
        result: How the run ended; see `RESULTS`.
        stats: For each task `r2`, `loo_r2` (leave one out), `condition_number`, `rank`;
            `num_evaluations` in all, of them `num_failed` not finite, `num_reused` from
            `save_to`; `seconds` by stage; `key`, `versions`, `device`.
        num_verified: How many of the last samples were made to verify.
        task_names: The tasks, in the order of the scores.
        coefficient_names: One per coefficient: the experts, or experts and groups.
        directions: "maximize" or "minimize", task by task.
        experts: The experts, each with as many coefficients, side by side; None if each has
            one, by whose name it goes.
        by_preference: Whether coefficients are weights that a rule of `mapjax.rules` gives the
            experts, and each task has an expert of its name: then each preference has a merge
            of its own.
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
    experts: tuple[str, ...] | None = eqx.field(static=True, default=None)
    by_preference: bool = eqx.field(static=True, default=False)

    @property
    def expert_names(self) -> tuple[str, ...]:
        """The experts, of which ones in all their coefficients are the merge."""
        return self.coefficient_names if self.experts is None else self.experts

    @property
    def num_evaluations(self) -> int:
        """How many real evaluations it took, those made to verify included."""
        return self.stats.get("num_evaluations", len(self.samples))

    def pick(
        self,
        preference: Mapping[str, float] | Sequence | ArrayLike | None = None,
        *,
        method: str | None = None,
        at_least: Mapping[str, float] | None = None,
        verified: bool = False,
    ) -> Float[Array, " coefficients"]:
        """Take the point of the front that suits a preference best.

        Where a rule has a merge of its own for each preference (see `by_preference`), the
        weighted sum takes that merge, unless one of the front is predicted to be better by
        more than the luckiest of predictions. Where there are no errors to tell luck by, or
        no surrogate, as after `load` from a file that could not hold it, it stays with that.
        Where samples do not determine the surrogate, as `result` says, it takes one of them.

        Args:
            preference: Non-negative weights over the tasks, in order or by name (tasks
                not named weigh nothing); equal weights by default.
            method: "weighted_sum" of the scores as they are, the default; "tchebycheff",
                the least worst weighted distance to the best scores, which reaches
                concave parts too; "knee", where giving up a little of one task stops
                buying much.
            at_least: Scores that must be reached, by task, such as `{"mnist": 0.9}` (at
                most, for a task that is minimised). Of the points that reach them the
                best by preference and method is taken; with neither given, the one that
                is best on the other tasks. If no point reaches them, the one that misses
                least.
            verified: Choose among measured points instead of predicted ones.

        Returns:
            The coefficients of that merge, for `mapjax.merge` with the very task vectors, or
            the rule, that was evaluated.

        Raises:
            ValueError: If the preference or a name is wrong, a knee is asked for with a
                preference, the front is empty, or `verified` is asked for and nothing was
                verified.
        """
        check_choice("method", method, (None, "weighted_sum", "tchebycheff", "knee"))
        if method == "knee" and preference is not None:
            raise ValueError(
                "A knee needs no preference: leave `preference` out, or use "
                "method='weighted_sum' or 'tchebycheff'."
            )
        if method is None and (preference is not None or at_least is None):
            method = "weighted_sum"
        equal = np.ones(len(self.task_names))
        given = equal if preference is None else preference
        weights = per_task(given, self.task_names, "preference")
        as_preference(weights, len(weights))
        front, signs = self._front(verified), minimising_signs(self.directions)
        if self.result in UNDETERMINED and not verified:
            front = Front(self.samples.coefficients, self.samples.scores)
        wishes = None
        if at_least is not None:
            # In the dtype of the scores, of which one may be just what is wished.
            wishes = per_task(at_least, self.task_names, "at_least", np.nan)
            wishes = wishes.astype(front.scores.dtype)
            wishes = np.where(np.isnan(wishes), np.inf, wishes * signs)
        chosen = None
        if self.by_preference and method == "weighted_sum" and not verified:
            chosen = own_or_better(self, weights, wishes)
        if chosen is None:
            chosen = choose(front, signs, weights, method, wishes)
        return jnp.asarray(chosen)

    def predicted(self, at: ArrayLike | Sequence) -> Front:
        """Predict merges of your own, with standard deviations where they are known.

        Args:
            at: Coefficients `[candidates, coefficients]`, or those of a single merge.

        Returns:
            These merges, in the form of a front (one may dominate another).

        Raises:
            ValueError: If there is no surrogate.
        """
        surrogate = surrogate_of(self)
        c = np.atleast_2d(np.asarray(at, self.samples.coefficients.dtype))
        room, std = padded(c, USUAL_POINTS), getattr(surrogate, "std", None)
        found = [np.asarray(f(room))[: len(c)] for f in (surrogate, std) if f is not None]
        return Front(*map(jax.device_put, (c, *found)))

    def normalized(self, scores: ArrayLike | Sequence) -> Float[Array, "*points tasks"]:
        """Divide scores by those of the tasks' own experts; higher is better.

        A task that is minimised gives the expert's score divided by the score. The base
        is not subtracted. A task's own expert is the one of its name; if no task has one
        and there are as many experts as tasks, they go by order.

        Args:
            scores: Scores `[..., tasks]`, in the user's own direction.

        Returns:
            1 for a merge that is as good as the expert; NaN where a task has no expert,
            or the expert was not evaluated, or what would be divided by is 0.

        Raises:
            ValueError: If the last axis is not that of the tasks.
        """
        given = np.asarray(scores, np.asarray(self.samples.scores).dtype)
        if given.shape[-1:] != (len(self.task_names),):
            raise ValueError(
                f"`scores` has shape {given.shape}, but must end in one score for each of "
                f"the tasks {self.task_names}."
            )
        own, up = self._own_scores(), np.array(self.directions) == "maximize"
        above, below = np.where(up, given, own), np.where(up, own, given)
        safe = np.where(below == 0, 1, below)  # 0 is no scale to measure in
        return jnp.asarray(np.where(below == 0, np.nan, above / safe))

    def hypervolume(
        self,
        reference: ArrayLike | Sequence[float] | None = None,
        *,
        verified: bool = True,
        key: Any = None,
    ) -> Float[Array, ""]:
        """Measure the volume of scores between a reference and the front.

        Args:
            reference: One score per task, in the user's own direction, that counts as
                worthless; by default the worst of the base and the experts on each task,
                or of all samples where some expert is not among them.
            verified: Measure the verified front instead of the predicted one.
            key: A typed key, needed above six tasks: the volume is then an estimate from
                100,000 random samples, as by `mapjax.pareto.hypervolume_monte_carlo`.

        Returns:
            The volume, at least 0, larger is better.

        Raises:
            ValueError: If nothing was verified, the front is empty, the reference is not one
                score per task nor can be made of finite ones, or a key is missing.
        """
        front, signs = self._front(verified), minimising_signs(self.directions)
        if reference is None:
            named = self.references()
            rows = [row for name, row in named.items() if name != "uniform"]
            known = len(named.keys() - {"base", "uniform"}) == len(self.expert_names)
            found = np.asarray(self.samples.scores)[rows if known else slice(None)] * signs
            worst = found.max(axis=0, initial=-np.inf, where=np.isfinite(found))
            if not np.isfinite(worst).all():
                raise ValueError(
                    "Some task has no finite score of the base, the experts or, without "
                    "these, any sample: pass `reference`, the worst score per task that is "
                    "worth something."
                )
        else:
            worst = per_task(reference, self.task_names, "reference") * signs
        # Copies of the reference add no volume, and take no time.
        return exact_or_estimated(
            usual(np.asarray(front.scores) * signs, worst), worst, key
        )

    def table(self) -> list[Point]:
        """List what was measured: base, experts and uniform merge, then the verified front.

        The verified points are in the order of their scores on the first task, best
        first. Print the solution to read the table.
        """
        rows = [(name, row) for name, _, row in self._references()]
        seen = {row for _, row in rows}
        if self.verified is not None:
            scores = np.asarray(self.verified.scores) * minimising_signs(self.directions)
            order = np.lexsort(scores.T[::-1])
            found = [self._row(c) for c in np.asarray(self.verified.coefficients)[order]]
            new = [row for row in found if row is not None and row not in seen]
            rows += [(f"verified {i}", row) for i, row in enumerate(new, start=1)]
        if not rows:
            return []
        index = np.array([row for _, row in rows])
        c = np.asarray(self.samples.coefficients)[index]
        measured = np.asarray(self.samples.scores)[index]
        guess = std = np.full(measured.shape, np.nan)
        if self.surrogate is not None:
            front = self.predicted(c)
            guess = np.asarray(front.scores)
            std = std if front.std is None else np.asarray(front.std)
        columns = c, measured, guess, std, np.asarray(self.normalized(measured))
        return [
            Point(name, *(column[i] for column in columns))
            for i, (name, _) in enumerate(rows)
        ]

    def __str__(self) -> str:
        """Say in a few lines what was found, with the table of what was measured."""
        count = "none" if self.verified is None else len(self.verified)
        head = (
            f"Front of {len(self.front)} predicted points ({count} verified) over "
            f"{len(self.task_names)} tasks, from {self.num_evaluations} evaluations"
        )
        cells = [["", "coefficients", *self.task_names]]
        for point in self.table():
            pairs = zip(point.measured, point.predicted, strict=True)
            scores = [f"{m:.4g} ({p:.4g})" for m, p in pairs]
            cells.append([point.name, _few(point.coefficients), *scores])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        notes = [RESULTS[self.result]] if self.result != RESULTS.successful else []
        return "\n".join([f"{head}; measured (predicted):", *lines, *notes])

    def save(self, path: str | Path) -> None:
        """Save the solution, whole or not at all.

        Everything is kept to the last bit: front, samples, what was verified, names,
        directions and stats. The surrogate is kept if it is one of `mapjax.surrogate` whose
        metrics are those of `mapjax.metrics`, and takes at most 1 GiB: a function of your own
        cannot be written into a file. Without one, a solution that was loaded still picks and
        plots its front, and predicts no other merges; a warning says so.

        Args:
            path: A file; its suffix must be .npz. NumPy alone can read it.

        Raises:
            ValueError: If the suffix is another, or `stats` holds what is neither numbers nor
                text.
            OSError: If the file cannot be written. Nothing is left behind.

        Example:
            >>> import jax, jax.numpy as jnp, pathlib, tempfile, mapjax as mj
            >>> def evaluate(c):
            ...     return jnp.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)
            >>> solution = mj.map_front(
            ...     evaluate, num_coefficients=2, budget=12, key=jax.random.key(0)
            ... )
            >>> path = pathlib.Path(tempfile.mkdtemp(), "solution.npz")
            >>> solution.save(path)
            >>> bool((mj.Solution.load(path).pick() == solution.pick()).all())
            True
        """
        write_solution(path, self)

    @classmethod
    def load(cls, path: str | Path) -> "Solution":
        """Load what `save` saved. Nothing is ever unpickled.

        Raises:
            ValueError: If the file is no solution, or damaged.
            OSError: If it cannot be read.
        """
        return read_solution(path, cls)

    def references(self) -> dict[str, int]:
        """Say which rows of `samples` are the "base", each expert and the "uniform" merge.

        An expert that is called so itself is "expert base" or "expert uniform".
        """
        return {name: row for _, name, row in self._references()}

    def _references(self) -> list[tuple[str, str, int]]:
        """List label, name and row in the samples, of those that were sampled."""
        names = self.expert_names
        base, *rows = self._corners()
        each = [("base", "base", base)]
        for name, row in zip(names, rows, strict=True):
            label = f"expert {name}"
            each.append((label, label if name in ("base", "uniform") else name, row))
        each.append(("uniform merge", "uniform", np.full(len(base), 1 / len(names))))
        found = [(label, name, self._row(c)) for label, name, c in each]
        return [(label, name, row) for label, name, row in found if row is not None]

    def _corners(self) -> np.ndarray:
        """Give the base and the experts as coefficients."""
        return np.asarray(corners(len(self.coefficient_names), len(self.expert_names)))

    def _row(self, coefficients: np.ndarray) -> int | None:
        """Find a merge among the samples."""
        sampled = np.asarray(self.samples.coefficients)
        same = np.all(np.isclose(sampled, coefficients, atol=1e-6), axis=1)
        return int(np.argmax(same)) if same.any() else None

    def _own_scores(self) -> np.ndarray:
        """Give the score of each task's own expert, NaN where there is none."""
        names, tasks = self.expert_names, self.task_names
        own = [names.index(t) if t in names else None for t in tasks]
        if own == [None] * len(names):
            own = list(range(len(own)))
        rows, samples = self._corners()[1:], np.asarray(self.samples.scores)
        scores = np.full(len(tasks), np.nan, samples.dtype)
        for task, expert in enumerate(own):
            row = None if expert is None else self._row(rows[expert])
            if row is not None:
                scores[task] = samples[row, task]
        return scores

    def _front(self, verified: bool) -> Front:
        front = self.verified if verified else self.front
        if front is None:
            raise ValueError("Nothing was verified: pass `verify=` to the driver.")
        if not len(front):
            raise ValueError("The front is empty: `solution.result` says why.")
        return front


def surrogate_of(solution: Solution) -> Callable[..., Any]:
    """Give the surrogate, or say why there is none."""
    if solution.surrogate is None:
        raise ValueError(why_no_surrogate(solution.result))
    return solution.surrogate


def _few(coefficients: np.ndarray) -> str:
    """Write coefficients in a line, and only the first of many."""
    shown = " ".join(f"{value:.2f}" for value in coefficients[:_MOST_SHOWN])
    return shown + (" ..." if len(coefficients) > _MOST_SHOWN else "")
