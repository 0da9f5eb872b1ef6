"""Find the best of many merges on few examples: a race on growing subsets."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from mapjax._checks import check_count
from mapjax._keys import check_key
from mapjax.evaluation._evaluator import Evaluator
from mapjax.evaluation._task import Task
from mapjax.metrics import Metric

_NUM_DRAWS = 100


class Race(NamedTuple):
    """How a race ended.

    Attributes:
        scores: In each task's own direction: on all examples for those that were kept,
            on what they had seen by then for the others.
        kept: Which candidates were never dropped.
        best: For each preference the best candidate among these.
        num_seen: How many examples each candidate saw, over all tasks.
        num_total: How many there are, over all tasks.
    """

    scores: Float[np.ndarray, "candidates tasks"]
    kept: Bool[np.ndarray, " candidates"]
    best: Int[np.ndarray, " preferences"]
    num_seen: Int[np.ndarray, " candidates"]
    num_total: int

    @property
    def share(self) -> float:
        """Examples evaluated, as a share of evaluating every candidate on all."""
        return float(self.num_seen.sum()) / (len(self.num_seen) * self.num_total)


def race(
    evaluator: Any,
    coefficients: Any,
    preferences: Any,
    *,
    key: Any,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    first: int = 32,
    progress: bool | None = None,
) -> Race:
    r"""Find the best candidate for each of many preferences, on as few examples as it takes.

    All candidates are evaluated on the same few examples, then those still in the race on
    as many again, and so on until all are used. A candidate is dropped once for every
    preference another is better with confidence. The standard error is that of the paired
    difference, example by example (by bootstrap for a metric that is no mean over
    examples), which is far smaller than that of either score; it shrinks to zero as the
    subset grows to all examples. Subsets are nested, and balanced where targets are class
    labels.

    Errors are bounded over all rounds and rivals together (Bonferroni, Student's t).
    What is claimed is that a candidate is the best *on these examples*; how well these
    stand for others is another question.

    Args:
        evaluator: What scores merges on all examples.
        coefficients: `[candidates, coefficients]`, one merge per row.
        preferences: Non-negative weights over tasks, `[preferences, tasks]`.
        key: A typed key; draws the order of the examples.
        confidence: For each preference the least probability that its best candidate, or
            one within the tolerance, is kept, between 0 and 1.
        tolerance: How much worse than the best is good enough, in units of the weighted
            scores. Candidates that are nearly equal are told apart by nearly all examples
            alone: without a tolerance they save little. It is shared out to the rounds.
        first: How many examples of each task to begin with, at least 8.
        progress: As in `Evaluator`.

    Returns:
        Scores, the candidates kept, and the examples evaluated.

    Raises:
        ValueError: If an argument has the wrong shape or is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, mapjax as mj
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(2000, 2)).astype(np.float32)
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), list(jnp.eye(2)))
        >>> error = mj.metrics.mean_squared_error
        >>> predict = lambda params, x: x @ params
        >>> tasks = [mj.Task(n, predict, x, x @ w, error) for n, w in
        ...          {"a": [1.0, 0.0], "b": [0.0, 1.0]}.items()]
        >>> found = mj.evaluation.race(
        ...     mj.Evaluator(tv, tasks), rng.random((200, 2)), np.eye(2),
        ...     key=jax.random.key(0),
        ... )
        >>> found.share < 0.25
        True

    References:
        Maron & Moore, *Hoeffding Races*, NeurIPS 1993.
        Cochran, *Sampling Techniques*, 1977 (finite populations).
    """
    from scipy.special import stdtrit  # slow to import

    c, wanted = _check(evaluator, coefficients, preferences, confidence)
    check_count("first", first, 8)  # fewer say nothing of how sure they are
    check_key(key)
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` is {tolerance}, but must be 0 or more.")
    counts = np.array([task.num_examples for task in evaluator.tasks])
    sizes = [np.minimum(first, counts)]
    while (sizes[-1] < counts).any():
        sizes.append(np.minimum(2 * sizes[-1], counts))
    signs = np.array([1 if d == "maximize" else -1 for d in evaluator.directions])
    keys = jax.random.split(key, 1 + len(sizes))
    orders = [
        _order(task, k)
        for task, k in zip(
            evaluator.tasks, jax.random.split(keys[0], len(counts)), strict=True
        )
    ]

    alive, seen = np.arange(len(c)), np.zeros(len(c), int)
    scores = np.full((len(c), len(counts)), np.nan)
    known: list[PyTree] = [None] * len(counts)
    done = np.zeros_like(counts)
    for size, draw_key in zip(sizes, keys[1:], strict=True):
        rows = [o[a:b] for o, a, b in zip(orders, done, size, strict=True)]
        fresh = _look(evaluator, rows, c[alive], progress)
        known = [_append(a, b) for a, b in zip(known, fresh, strict=True)]
        seen[alive] = size.sum()
        draw_keys = jax.random.split(draw_key, len(counts))
        estimates = [
            _estimate(task, values, o[:m], bool(m < n), k)
            for task, values, o, m, n, k in zip(
                evaluator.tasks, known, orders, size, counts, draw_keys, strict=True
            )
        ]
        scores[alive] = np.stack([mean for mean, _, _ in estimates], axis=1)
        done = size
        if (size == counts).all():
            break
        # Sampling without replacement: nothing is left to err by once all are seen.
        left = 1 - size / counts
        deviations = [x**0.5 * d for x, (_, d, _) in zip(left, estimates, strict=True)]
        # Of tasks whose examples have all been seen there is nothing left to be unsure of.
        freedom = min(f for x, (_, _, f) in zip(left, estimates, strict=True) if x > 0)
        error = (1 - confidence) / (max(1, len(alive) - 1) * (len(sizes) - 1))
        limit = float(stdtrit(freedom, 1 - error))
        slack = tolerance / (len(sizes) - 1)
        stays = _still_open(scores[alive] * signs, deviations, wanted, limit, slack)
        known = [_take(values, stays) for values in known]
        alive = alive[stays]
    kept = np.isin(np.arange(len(c)), alive)
    values = np.where(np.isnan(scores) | ~kept[:, None], -np.inf, scores * signs)
    best = np.argmax(_weigh(values, wanted), axis=0)
    return Race(scores, kept, best, seen, int(counts.sum()))


def _weigh(values: np.ndarray, preferences: np.ndarray) -> np.ndarray:
    """Give each candidate's value for each preference; no weight, no say, infinite or not."""
    terms = np.where(preferences > 0, values[:, None] * np.maximum(preferences, 1e-300), 0)
    return terms.sum(axis=2)


def _still_open(
    scores: np.ndarray,
    deviations: list[np.ndarray],
    preferences: np.ndarray,
    limit: float,
    slack: float,
) -> np.ndarray:
    """Tell which candidates are, for one preference at least, not surely beaten."""
    values = _weigh(scores, preferences)
    # A NaN leads nothing, and is not beaten: the examples to come may tell.
    leaders = np.argmax(np.where(np.isnan(values), -np.inf, values), axis=0)
    behind = values[leaders, np.arange(len(leaders))] - values
    variance = np.zeros_like(values)
    for weight, each in zip(preferences.T, deviations, strict=True):
        own = np.sum(each**2, axis=1)
        paired = own[:, None] + own[leaders] - 2 * each @ each[leaders].T
        variance += weight**2 * np.where(weight > 0, np.maximum(paired, 0), 0)
    ahead = limit * np.sqrt(variance) - behind  # so much it may still be in truth
    # Of equals the first leads, and none is beaten without a tolerance.
    beaten = np.where(slack > 0, ahead <= slack, (behind > 0) & (ahead < 0))
    beaten[leaders, np.arange(len(leaders))] = False
    return np.flatnonzero(~beaten.all(axis=1))


def _estimate(
    task: Task, values: PyTree, order: np.ndarray, is_part: bool, key: Any
) -> tuple[np.ndarray, np.ndarray, int]:
    """Give scores, deviations and their degrees of freedom.

    Products of two candidates' deviations add up to the covariance of their scores.
    """
    if task.metric.per_example:
        table = np.asarray(values, np.float64)
        m = table.shape[1]
        centred = table - table.mean(axis=1, keepdims=True)
        return table.mean(axis=1), centred / np.sqrt(m * max(1, m - 1)), m - 1
    targets = _take(task.targets, order)
    scores = np.asarray(_score(task.metric, values, targets), np.float64)
    m = len(order)
    if not is_part:
        return scores, np.zeros((len(scores), 1)), _NUM_DRAWS - 1
    picks = jax.random.randint(key, (_NUM_DRAWS, m), 0, m)
    draws = np.asarray(_bootstrap(task.metric, values, targets, picks), np.float64)
    centred = (draws - draws.mean(axis=0)).T
    return scores, centred / np.sqrt(_NUM_DRAWS - 1), min(_NUM_DRAWS, m) - 1


@eqx.filter_jit
def _score(metric: Metric, outputs: PyTree, targets: PyTree) -> Array:
    return jax.lax.map(lambda x: metric(x, targets), outputs)


@eqx.filter_jit
def _bootstrap(metric: Metric, outputs: PyTree, targets: PyTree, picks: Array) -> Array:
    def draw(rows: Array) -> Array:
        y = _take(targets, rows)
        return jax.lax.map(lambda x: metric(_take(x, rows), y), outputs)

    return jax.lax.map(draw, picks)


def _look(
    evaluator: Evaluator, rows: list[np.ndarray], c: np.ndarray, progress: bool | None
) -> list[PyTree]:
    """Evaluate candidates on some examples of every task that has any left.

    Gives the metric's value of each example where it is their mean, else outputs.
    """
    parts = [
        _part(task, chosen)
        for task, chosen in zip(evaluator.tasks, rows, strict=True)
        if len(chosen)
    ]
    part = Evaluator(
        evaluator.rule,
        parts,
        num_coefficients=evaluator.num_coefficients,
        memory_limit=evaluator.memory_limit,
        mesh=evaluator.mesh,
    )
    seen = part.outputs(c, progress=progress)
    return [seen.get(name) for name in evaluator.task_names]


def _part(task: Task, rows: np.ndarray) -> Task:
    inputs, targets = _take((task.inputs, task.targets), rows)
    predict, metric = task.predict, task.metric
    if not metric.per_example:
        return Task(task.name, predict, inputs, targets, metric)

    def values(params: PyTree, examples: Any) -> Array:
        x, y = examples
        return metric.each(predict(params, x), y)

    return Task(task.name, values, (inputs, targets), targets, _mean)


def _mean_value(values: Array, _targets: Array) -> Array:
    return jnp.mean(values)


_mean = Metric(_mean_value)


def _take(known: PyTree, rows: Any) -> PyTree:
    return jax.tree.map(lambda x: x[rows], known)


def _append(known: PyTree, fresh: PyTree) -> PyTree:
    if known is None or fresh is None:
        return known if fresh is None else fresh
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), known, fresh)


def _order(task: Task, key: Any) -> np.ndarray:
    """Shuffle the examples; where they have classes, every beginning is balanced."""
    uniform = np.asarray(jax.random.uniform(key, (task.num_examples,)), np.float64)
    leaves = jax.tree.leaves(task.targets)
    if len(leaves) != 1 or leaves[0].ndim != 1 or leaves[0].dtype.kind not in "iub":
        return np.argsort(uniform, kind="stable")
    labels = np.asarray(leaves[0])
    place = np.empty_like(uniform)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        rank = np.argsort(np.argsort(uniform[mine]))
        place[mine] = (rank + uniform[mine]) / len(mine)
    return np.argsort(place, kind="stable")


def _check(
    evaluator: Any, coefficients: Any, preferences: Any, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(evaluator, Evaluator):
        raise ValueError(
            f"`evaluator` is a {type(evaluator).__name__}, but a race needs the examples "
            "of a `mapjax.Evaluator`."
        )
    c, w = np.asarray(coefficients), np.asarray(preferences, np.float64)
    n, tasks = evaluator.num_coefficients, len(evaluator.tasks)
    for name, x, axes in (
        ("coefficients", c, f"[candidates, {n}]"),
        ("preferences", w, f"[preferences, {tasks}]"),
    ):
        width = n if name == "coefficients" else tasks
        if x.ndim != 2 or x.shape[1] != width or not len(x):
            raise ValueError(
                f"`{name}` has shape {x.shape}, but must be {axes}, with one row at least."
            )
    if not (np.isfinite(w) & (w >= 0)).all() or (w.sum(axis=1) == 0).any():
        raise ValueError(
            "`preferences` must be finite and non-negative, with a positive weight in each "
            "row."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence}, but must be between 0 and 1.")
    return c, w
