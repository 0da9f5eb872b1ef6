"""Grow the tree: evaluate in the planes of pairs, merge them, level by level."""

import math
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from mapjax._nested import _pairing
from mapjax._nested._groups import Group, single_experts, weights_in
from mapjax._nested._plane import fit_plane, maximise, reach
from mapjax._run import Run
from mapjax._tracing import CAUTION
from mapjax.design import sobol
from mapjax.surrogate import Outputs, OutputSurrogate, Quadratic

_SPREAD = 0.15
_NEAREST = 5e-3
_BLOCKS = (64, 512)
_NUM_TRIES = 20


class Tree:
    """Merges of pairs for some preferences, with all evaluations in one record.

    Attributes:
        run: The record, and the surrogate of all samples.
        owned: Which tasks each expert is for, `[experts, tasks]`.
        pairing: "scores", "cosine" or a tree of pairs.
        gram: Scalar products of the task vectors, where they decide who is paired.
        levels: The pairs merged so far, and what was left over, level by level.
        path: Every merge: both trees, and both factors `[preferences, 2]`.
        task_evaluations: How many scores were needed: for each evaluation, those of the
            tasks below its node.
    """

    def __init__(self, run: Run, owned: np.ndarray, pairing: Any, gram: Any, random: Any):
        self.run, self.owned, self.pairing, self.random = run, owned, pairing, random
        self.by_outputs = isinstance(run.family, Outputs)
        self.gram = gram
        self.lower, self.upper = (np.asarray(end, float) for end in run.domain.box)
        self.levels: list[tuple[list[tuple[int, int]], list[int]]] = []
        self.path: list[tuple[Any, Any, np.ndarray]] = []
        self.seen: set[bytes] = set()
        self.task_evaluations = 0
        self.last_fits: list[Quadratic] = []

    def grow(
        self, preferences: Float[np.ndarray, "preferences tasks"], budget: int, rounds: int
    ) -> Group:
        """Merge all experts for some preferences, within a budget of evaluations."""
        groups = single_experts(self.owned, len(preferences))
        start = np.eye(len(groups) + 1, len(groups), k=-1)
        self.evaluate(start, [self.owned.shape[1]] * len(start))
        if not self.run.fit():
            return groups[0]
        while len(groups) > 1:
            if not self.by_outputs:  # they lie in the planes to come
                for group in groups:
                    below = max(int(group.tasks.sum()), 1)
                    self.evaluate(group.rows, [below] * len(group.rows))
            pairs, rest = self._pair(groups, preferences)
            self.levels.append((pairs, rest))
            left = max(budget - len(self.seen), 0)
            shares = self._shares(groups, pairs, preferences, left)
            firsts = [
                self._first(groups[i], groups[j], preferences, share)
                for (i, j), share in zip(pairs, shares, strict=True)
            ]
            if rounds == 1:
                firsts = shares
            self._evaluate_level(groups, pairs, preferences, firsts, True)
            rest_of = [share - first for share, first in zip(shares, firsts, strict=True)]
            self._evaluate_level(groups, pairs, preferences, rest_of, False)
            groups = self._merge(groups, pairs, rest, preferences)
        return groups[0]

    def compose(self, preferences: Float[np.ndarray, "preferences tasks"]) -> Group:
        """Merge the same pairs for other preferences, without evaluations."""
        groups, path = single_experts(self.owned, len(preferences)), self.path
        for pairs, rest in self.levels:
            groups = self._merge(groups, pairs, rest, preferences)
        self.path = path
        return groups[0]

    def evaluate(self, rows: np.ndarray, num_tasks: list[int]) -> None:
        """Evaluate merges, each for so many tasks, that were not evaluated in this run."""
        rows = np.asarray(rows, self.run.domain.lower.dtype)
        new = {}
        for row, below in zip(rows, num_tasks, strict=True):
            if row.tobytes() not in self.seen | set(new):
                new[row.tobytes()] = row
                self.task_evaluations += below
        if new:
            # What a surrogate proposed shows how far its predictions are off.
            proposed = self.by_outputs and self.run.fitted is not None
            evaluate = self.run.evaluate_proposals if proposed else self.run.evaluate
            evaluate(np.stack(list(new.values())))
            self.seen |= set(new)

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Predict the scores of the final merges in their planes, and the deviations."""
        factors = self.path[-1][2].astype(self.run.domain.lower.dtype)
        fits = zip(self.last_fits, factors, strict=True)
        both = [(np.asarray(fit(xy)), np.asarray(fit.std(xy))) for fit, xy in fits]
        scores, std = zip(*both, strict=True)
        return np.stack(scores), np.stack(std)

    def _pair(self, groups: list[Group], preferences: np.ndarray) -> Any:
        if not isinstance(self.pairing, str):
            return _pairing.pairs_of_tree(self.pairing, [g.tree for g in groups])
        if self.gram is not None:
            means = np.stack([g.rows.mean(axis=0) for g in groups])
            products = means @ self.gram @ means.T
            norms = np.sqrt(np.maximum(np.diag(products), 0))
            norms = np.where(norms > 0, norms, 1.0)
            return _pairing.closest_pairs(-products / norms / norms[:, None])
        values = []
        for group in groups:
            if self.by_outputs:
                scores = self._predict(self.run.fitted, group.rows)
            else:
                scores = np.asarray(self.run.recorder(group.rows), float)
            weights = weights_in(group.tasks, preferences)
            sums = np.where(weights > 0, weights * scores, 0).sum(axis=1)
            values.append(np.nanmean(sums) if np.isfinite(sums).any() else 0.0)
        return _pairing.closest_pairs(np.abs(np.subtract.outer(values, values)))

    def _shares(
        self, groups: list[Group], pairs: list, preferences: np.ndarray, left: int
    ) -> list[int]:
        """Say how many evaluations each pair of a level gets."""
        if self.by_outputs:  # as many on each level
            levels = math.ceil(math.log2(len(groups)))
            if not isinstance(self.pairing, str):
                levels = depth(self.pairing) - len(self.levels) + 1
            return [left // levels // len(pairs)] * len(pairs)
        # As many in each plane, after those of the merges that go on.
        planes = [self._num_planes(groups[i], groups[j], preferences) for i, j in pairs]
        later = len(groups) - len(pairs) - 1
        going_on = max(len(groups) - 2, 0) * len(preferences)
        each = (left - going_on) // (sum(planes) + later * len(preferences))
        return [max(each, 0) * count for count in planes]

    def _num_planes(self, first: Group, second: Group, preferences: np.ndarray) -> int:
        """Count the planes of a pair: two experts have one, whatever the preference."""
        return len(preferences) if _is_merged(first, second) else 1

    def _first(self, a: Group, b: Group, preferences: np.ndarray, share: int) -> int:
        """Say how many of a pair's evaluations come before the first fit."""
        needed = 0
        if not self.by_outputs:
            needed = 3 * self._num_planes(a, b, preferences)
        return max(share // 2, min(needed, share))

    def _evaluate_level(
        self,
        groups: list[Group],
        pairs: list[tuple[int, int]],
        preferences: np.ndarray,
        counts: list[int],
        first: bool,
    ) -> None:
        """Evaluate in the planes of all pairs of a level, and fit once."""
        known = list(np.asarray(self.run.recorder.samples.coefficients))
        chosen: list[np.ndarray] = []
        num_tasks = []
        for (i, j), count in zip(pairs, counts, strict=True):
            a, b = groups[i], groups[j]
            tasks = a.tasks | b.tasks
            if self.by_outputs:
                which = np.resize(self.random.permutation(len(preferences)), count)
            else:
                num_planes = self._num_planes(a, b, preferences)
                which = np.sort(np.resize(np.arange(num_planes), count))
            low, high = self._box(a.rows[which], b.rows[which])
            if first and not self.by_outputs:
                factors = low + (high - low) * self._design(which)
            else:
                kinds, places = np.unique(which, return_inverse=True)
                weights = weights_in(tasks, preferences)
                factors = self._best(a, b, weights, kinds)[places] if count else low
            for k, place in enumerate(which):
                x, y = factors[k]
                for _ in range(_NUM_TRIES):
                    row = x * a.rows[place] + y * b.rows[place]
                    if (first and not self.by_outputs) or self._is_new(
                        row, [*known, *chosen]
                    ):
                        break
                    step = _SPREAD * (high[k] - low[k]) * self.random.normal(size=2)
                    x, y = np.clip(factors[k] + step, low[k], high[k])
                chosen.append(row)
                num_tasks.append(max(int(tasks.sum()), 1))
        if not chosen:
            return
        self.evaluate(np.stack(chosen), num_tasks)
        if self.by_outputs:
            self.run.fit()

    def _design(self, which: np.ndarray) -> Float[np.ndarray, "points 2"]:
        """Spread points over the unit square of each plane, from its centre on."""
        unit = np.empty((len(which), 2))
        key = jax.random.key(int(self.random.integers(2**31)))
        for plane in np.unique(which):
            same = which == plane
            points = np.asarray(sobol(int(same.sum()), 2, key=key), float)
            unit[same] = np.concatenate([[[0.5, 0.5]], points])[:-1]
        return unit

    def _is_new(self, row: np.ndarray, known: list[np.ndarray]) -> bool:
        width = (self.upper - self.lower).max()
        gap = np.abs(np.stack(known) - row).max(axis=1).min()
        return bool(gap > _NEAREST * width)

    def _merge(
        self, groups: list[Group], pairs: list, rest: list[int], preferences: np.ndarray
    ) -> list[Group]:
        merged = []
        for i, j in pairs:
            a, b = groups[i], groups[j]
            tasks = a.tasks | b.tasks
            everyone = np.arange(len(preferences))
            factors = self._best(a, b, weights_in(tasks, preferences), everyone)
            rows = factors[:, :1] * a.rows + factors[:, 1:] * b.rows
            merged.append(Group((a.tree, b.tree), tasks, rows))
            self.path = [*self.path, (a.tree, b.tree, factors)]
        return merged + [groups[k] for k in rest]

    def _box(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = [reach(rows, self.lower, self.upper) for rows in (a, b)]
        low, high = (np.stack(x, axis=1) for x in zip(*ends, strict=True))
        return low, high

    def _best(
        self, a: Group, b: Group, weights: np.ndarray, which: np.ndarray
    ) -> Float[np.ndarray, "planes 2"]:
        """Find the best merge of two groups for some preferences."""
        low, high = self._box(a.rows[which], b.rows[which])
        wanted = np.flatnonzero(weights.any(axis=0))
        gains = (weights * -self.run.signs)[which][:, wanted]
        if self.by_outputs:
            surrogate, columns = _restricted(self.run.fitted, wanted)
            first, second = (g.rows[which][:, None] for g in (a, b))

            def by_outputs(xy: np.ndarray) -> np.ndarray:
                rows = xy[..., :1] * first + xy[..., 1:] * second
                scores = self._predict(surrogate, rows)[..., columns]
                doubt = np.nan_to_num(self._predict(surrogate.std, rows)[..., columns])
                # gains * scores - caution * |gains| * doubt, summed over tasks
                cautious = scores - np.sign(gains)[:, None] * CAUTION * doubt
                return np.einsum("pgt,pt->pg", cautious, gains)

            return maximise(by_outputs, low, high)
        run, fits = self.run, {}
        self.last_fits, found = [], []
        for k, (one, two) in enumerate(zip(a.rows[which], b.rows[which], strict=True)):
            plane = one.tobytes() + two.tobytes()
            if plane not in fits:
                problem, samples = run.recorder.problem, run.recorder.samples
                fits[plane] = fit_plane(samples, one, two, problem, run.ridge)
            fit = fits[plane]
            self.last_fits.append(fit)

            def by_plane(xy: np.ndarray, fit=fit, gain=gains[k]) -> np.ndarray:
                return (
                    np.asarray(fit(xy.astype(run.domain.lower.dtype)))[..., wanted] @ gain
                )

            found.append(maximise(by_plane, low[k : k + 1], high[k : k + 1])[0])
        return np.stack(found)

    def _predict(self, function: Any, rows: np.ndarray) -> np.ndarray:
        """Predict many merges, equal ones once, in few sizes of batches."""
        flat = rows.reshape(-1, rows.shape[-1]).astype(self.run.domain.lower.dtype)
        unique, places = np.unique(flat, axis=0, return_inverse=True)
        size = next(size for size in _BLOCKS if size >= len(unique) or size == _BLOCKS[-1])
        filler = np.repeat(unique[:1], -len(unique) % size, axis=0)
        blocks = np.concatenate([unique, filler]).reshape(-1, size, unique.shape[1])
        each = np.concatenate([np.asarray(function(x), float) for x in blocks])
        scores = each[places.ravel()]
        return scores.reshape(*rows.shape[:-1], -1)


def depth(tree: Any) -> int:
    """Count the levels of merges in a tree."""
    return 1 + max(map(depth, tree)) if isinstance(tree, tuple) else 0


def _restricted(surrogate: Any, tasks: np.ndarray) -> tuple[Any, Any]:
    """Leave out the tasks that do not count, if that saves work.

    Returns:
        The surrogate, and which columns of its scores are the tasks'.
    """
    if not isinstance(surrogate, OutputSurrogate) or np.any(surrogate.blend):
        return surrogate, tasks

    def parts(s: OutputSurrogate) -> tuple:
        return s.tasks, s.blend, s.noise, s.scalar

    each = tuple(surrogate.tasks[t] for t in tasks)
    fewer = each, *(x[tasks] for x in parts(surrogate)[1:-1]), None
    restricted = eqx.tree_at(parts, surrogate, fewer, is_leaf=lambda x: x is None)
    return restricted, slice(None)


def _is_merged(*groups: Group) -> bool:
    return any(isinstance(group.tree, tuple) for group in groups)
