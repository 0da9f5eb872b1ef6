"""What is really reachable: a pool of direct evaluations, kept on disk, and the figures."""

from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import methods
from benchmarks.suites import CACHE, Suite, with_rule
from mapjax import io, pareto
from mapjax._sizes import padded

_VERSION = 1  # of the pool: raise it when `_draw` changes


class Reachable(NamedTuple):
    """What the best known merges reach.

    Attributes:
        ideal: The best score of each task, `[T]`.
        preferred: The best weighted score for each preference.
        linear: The same of merges of the suite's own task vectors.
        front: 500 points spread over the best front, normalised and minimised.
    """

    ideal: np.ndarray
    preferred: np.ndarray
    linear: np.ndarray
    front: np.ndarray


class Truth:
    """Real scores of a suite's merges: no merge of its task vectors is evaluated twice.

    Attributes:
        suite: The problem.
        preferences: Weights over the tasks, uniform on the simplex.
        answers: Scores of what rules answer by themselves, the same for every budget: on
            validation, test and held-out examples, by method and coefficients.
    """

    def __init__(self, suite: Suite, *, size: int = 5120, num_preferences: int = 200):
        """Load the pool of the suite from disk, or draw and evaluate it.

        Args:
            suite: The problem.
            size: About how many direct evaluations the pool has.
            num_preferences: How many preferences to average over.
        """
        self.suite = suite
        self._known: dict[bytes, np.ndarray] = {}
        self._others: list[np.ndarray] = []
        self._reachable: Reachable | None = None
        self.answers: dict[tuple[str, bytes], list[np.ndarray]] = {}
        rng = np.random.default_rng(0)
        self.preferences = rng.dirichlet(np.ones(len(suite.names)), num_preferences)
        name = f"{suite.name}-{suite.seed}-{size}-{_VERSION}-{suite.fingerprint()}.npz"
        path = CACHE / "truth" / name
        if path.exists():
            self.add(**io.load(path))
        else:
            self._draw(suite.task_vectors.num_tasks, size // 10)
            coefficients, scores = self.pool()
            path.parent.mkdir(parents=True, exist_ok=True)
            io.save(path, {"coefficients": coefficients, "scores": scores})

    def __call__(self, coefficients: np.ndarray, rule: Any = None) -> np.ndarray:
        """Look scores up, and evaluate what is not known yet.

        Args:
            coefficients: `[k, C]`.
            rule: What they go into; None stands for the suite's task vectors.
        """
        if rule is not None:
            evaluator = with_rule(self.suite.validation, rule, coefficients.shape[1])
            return np.asarray(evaluator(coefficients, progress=False), float)
        c = np.asarray(coefficients, np.float32)
        # A row that comes twice is evaluated once.
        new = {row.tobytes(): row for row in c if row.tobytes() not in self._known}
        if new:
            rows = np.stack(list(new.values()))
            self.add(rows, np.asarray(self.suite.validation(rows, progress=False)))
        return np.stack([self._known[row.tobytes()] for row in c])

    def add(self, coefficients: np.ndarray, scores: np.ndarray, rule: Any = None) -> None:
        """Take note of evaluations made elsewhere."""
        self._reachable = None
        if rule is not None:
            self._others.append(np.asarray(scores, float))
            return
        c = np.asarray(coefficients, np.float32)
        for row, score in zip(c, np.asarray(scores, float), strict=True):
            self._known[row.tobytes()] = score

    def pool(self) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients and scores of all known merges of the task vectors."""
        keys = np.stack([np.frombuffer(key, np.float32) for key in self._known])
        return keys, np.stack(list(self._known.values()))

    def scores(self) -> np.ndarray:
        """Return the scores of everything known, by whatever rule it was merged."""
        return np.concatenate([self.pool()[1], *self._others])

    def reachable(self) -> Reachable:
        """Find the best of all that is known, once for many figures."""
        if self._reachable is None:
            scores = self.scores()
            ideal = np.nanmax(scores, axis=0)
            front = _non_dominated(scores, ideal)
            front = front[np.asarray(pareto.spread_subset(front, 500))]
            preferred, linear = (
                np.nanmax(self.preferences @ some.T, axis=1)
                for some in (scores, self.pool()[1])
            )
            self._reachable = Reachable(ideal, preferred, linear, front)
        return self._reachable

    def regret(
        self,
        scores: np.ndarray,
        picked: np.ndarray | None = None,
        *,
        linear: bool = False,
    ) -> float:
        """Average over preferences what a choice among points loses, in points.

        Args:
            scores: True scores of the points, as shares of one.
            picked: The index of the point that is chosen for each preference, or for the
                first ones; by default that with the best scores.
            linear: Against the best merge of the suite's own task vectors, not of all.
        """
        values, best = self.preferences @ scores.T, self.reachable()
        chosen = np.nanargmax(values, axis=1) if picked is None else picked
        count = len(chosen)
        gained = values[np.arange(count), chosen]
        against = best.linear if linear else best.preferred
        return 100 * float(np.mean(against[:count] - gained))

    def hypervolume(self, scores: np.ndarray) -> float:
        """Measure the dominated share of the box from zero to the best of every task.

        The reference is zero, not the base: with eight tasks that conflict, hardly a merge
        is better than the base at all of them. In percent; the same samples are used for
        all sets of points, so that differences are more exact than the standard error of
        about 0.07.
        """
        points = padded(_non_dominated(scores, self.reachable().ideal))
        corner = np.zeros(points.shape[1])
        if len(corner) <= 4:
            return 100 * float(pareto.hypervolume(points, corner))
        volume, _ = pareto.hypervolume_monte_carlo(
            points,
            corner,
            key=jax.random.key(0),
            num_samples=400_000,
            ideal=corner - 1,
        )
        return 100 * float(volume)

    def igd_plus(self, scores: np.ndarray) -> float:
        """Measure how far points stay behind the best front known, in points.

        On average over 500 points spread over that front, in percent of each task's best.
        """
        best = self.reachable()
        points = padded(_non_dominated(scores, best.ideal))
        return 100 * float(pareto.igd_plus(points, best.front))

    def _draw(self, n: int, each: int) -> None:
        """Evaluate boxes and rays of many sizes, then search from the best of them."""
        rng = np.random.default_rng(0)
        points = [np.zeros((1, n)), np.eye(n), np.full((1, n), 1 / n)]
        for seed, scale in enumerate((1.0, 0.6, 0.35, 0.2, 0.1)):
            points.append(scale * methods.sobol_points(each, n, seed))
        for concentration, longest in ((1.0, 1.0), (1.0, 2.0), (0.3, 1.5)):
            shares = rng.dirichlet(np.full(n, concentration), each)
            lengths = rng.uniform(0, longest, (each, 1)) if longest != 1 else 1
            points.append(np.minimum(shares * lengths, 1))
        self(np.concatenate(points))
        coefficients, scores = self.pool()
        best = np.argmax(self.preferences @ scores.T, axis=1)
        order = np.concatenate([best, rng.permutation(len(scores))])
        _, places = np.unique(order, return_index=True)
        first = coefficients[order[np.sort(places)[:60]]].astype(float)
        methods.nsga3_from(self, first, 2 * each + 60, 0)


def _non_dominated(scores: np.ndarray, ideal: np.ndarray) -> np.ndarray:
    """Divide by each task's best, minimise, and leave out what is dominated."""
    points = -scores[np.isfinite(scores).all(axis=1)] / ideal
    return points[np.asarray(pareto.non_dominated(points))]
