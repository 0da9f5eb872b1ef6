"""What is really reachable: a pool of direct evaluations, kept on disk, and the figures."""

from pathlib import Path

import jax
import numpy as np

from benchmarks import opponents
from benchmarks.opponents import Found
from benchmarks.suites import Suite
from mapjax import pareto
from mapjax._sizes import room_for

CACHE = Path("~/.cache/mapjax").expanduser()
_VERSION = 1  # of the pool: raise it when `_draw` changes


class Truth:
    """Real scores of a suite's merges: nothing is evaluated twice.

    Attributes:
        preferences: Weights over the tasks, uniform on the simplex.
    """

    def __init__(self, suite: Suite, *, quick: bool = False, num_preferences: int = 200):
        """Load the pool of the suite from disk, or draw and evaluate it.

        Args:
            suite: The problem.
            quick: Take a pool of about 500 instead of 5,000 evaluations.
            num_preferences: How many preferences to average over.
        """
        self._evaluate = suite.validation
        self._known: dict[bytes, np.ndarray] = {}
        num_tasks = len(suite.names)
        rng = np.random.default_rng(0)
        self.preferences = rng.dirichlet(np.ones(num_tasks), num_preferences)
        size = "quick" if quick else "full"
        name = f"{suite.name}-{suite.seed}-{size}-{_VERSION}-{suite.fingerprint()}.npz"
        path = CACHE / "truth" / name
        if path.exists():
            with np.load(path) as pool:
                self.add(pool["coefficients"], pool["scores"])
        else:
            self._draw(suite.task_vectors.num_tasks, 64 if quick else 512)
            path.parent.mkdir(parents=True, exist_ok=True)
            coefficients, scores = self.pool()
            np.savez(path, coefficients=coefficients, scores=scores)

    def __call__(self, coefficients: np.ndarray) -> np.ndarray:
        """Look scores up, and evaluate what is not known yet."""
        c = np.asarray(coefficients, np.float32)
        # A row that comes twice is evaluated once.
        new = {row.tobytes(): row for row in c if row.tobytes() not in self._known}
        if new:
            rows = np.stack(list(new.values()))
            self.add(rows, np.asarray(self._evaluate(rows, progress=False)))
        return np.stack([self._known[row.tobytes()] for row in c])

    def add(self, coefficients: np.ndarray, scores: np.ndarray) -> None:
        """Take note of evaluations made elsewhere."""
        c = np.asarray(coefficients, np.float32)
        for row, score in zip(c, np.asarray(scores, float), strict=True):
            self._known[row.tobytes()] = score

    def pool(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients and the scores of all that is known."""
        keys = np.stack([np.frombuffer(key, np.float32) for key in self._known])
        return keys, np.stack(list(self._known.values()))

    def best(self) -> np.ndarray:
        """Find the best weighted score known for every preference."""
        return np.nanmax(self.preferences @ self.pool()[1].T, axis=1)

    def regret(self, scores: np.ndarray, picked_by: np.ndarray | None = None) -> float:
        """Average over preferences what a choice among points loses, in points.

        Args:
            scores: True scores of the points, as shares of one.
            picked_by: The scores that the choice goes by; the true ones by default.
        """
        picked_by = scores if picked_by is None else picked_by
        index = np.nanargmax(self.preferences @ np.asarray(picked_by).T, axis=1)
        gained = np.sum(self.preferences * scores[index], axis=1)
        return 100 * float(np.mean(self.best() - gained))

    def hypervolume(self, scores: np.ndarray) -> float:
        """Measure the dominated share of the box from zero to the best of every task.

        The reference is zero, not the base: with eight tasks that conflict, hardly a merge
        is better than the base at all of them. In percent; the same samples are used for
        all sets of points, so that differences are more exact than the standard error of
        about 0.07.
        """
        ideal = np.nanmax(self.pool()[1], axis=0)
        share = scores[np.isfinite(scores).all(axis=1)] / ideal
        share = share[np.asarray(pareto.non_dominated(-share))]
        # Copies fill up to a power of two, so that few sizes are compiled.
        room = room_for(len(share))
        points = -np.concatenate([share, np.repeat(share[:1], room - len(share), 0)])
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

    def shown(self, found: Found, most: int = 100) -> np.ndarray:
        """Choose the points of a predicted front that are evaluated to judge it.

        What some preference picks, and up to `most` points spread over the front.
        """
        picked = np.nanargmax(self.preferences @ found.predicted.T, axis=1)
        spread = np.asarray(pareto.spread_subset(-found.predicted, most))
        return np.unique(np.concatenate([picked, spread]))

    def _draw(self, n: int, each: int) -> None:
        """Evaluate boxes and rays of many sizes, then search from the best of them."""
        rng = np.random.default_rng(0)
        points = [np.zeros((1, n)), np.eye(n), np.full((1, n), 1 / n)]
        for seed, scale in enumerate((1.0, 0.6, 0.35, 0.2, 0.1)):
            points.append(scale * opponents.sobol_points(each, n, seed))
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
        opponents.nsga3_from(self, first, 2 * each + 60, 0)
