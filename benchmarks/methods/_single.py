"""Merges without a preference: transformed vectors, all at one scale."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

import mapjax as mj
from benchmarks.methods._found import Found
from benchmarks.suites import Suite, with_rule
from mapjax import transforms


def at_one_scale(
    suite: Suite,
    budget: int,
    *,
    scales: Sequence[float],
    transform: Callable[[mj.TaskVectors, int], mj.TaskVectors] | None = None,
) -> Found:
    """Scale the sum of the vectors by what has the best mean score on validation examples.

    Args:
        suite: The problem.
        budget: Where there are more scales, the first and others spread over the rest.
        scales: The published default, then what else is tried, from the least up.
        transform: From task vectors and a seed to other task vectors; none by default.

    Returns:
        All scales as `evaluated`, and one point as the front.
    """
    rule = transform and transform(suite.task_vectors, suite.seed)
    evaluator = with_rule(suite.validation, rule)
    default, *others = scales
    count = min(budget - 1, len(others))
    spread = np.linspace(0, len(others) - 1, count).round().astype(int)
    tried = np.array([default, *(others[i] for i in spread)])
    points = np.outer(tried, np.ones(suite.task_vectors.num_tasks))
    scores = np.asarray(evaluator(points, progress=False), float)
    best = [int(np.argmax(np.nan_to_num(scores.mean(axis=1), nan=-np.inf)))]
    return Found(points, scores, points[best], scores[best], rule=rule)


def dare(vectors: mj.TaskVectors, seed: int) -> mj.TaskVectors:
    """Drop nine entries of ten, as the paper does unless it searches the rate as well."""
    return transforms.dare(vectors, density=0.1, key=jax.random.key(seed))


def first(default: float, least: float, most: float, step: float) -> list[float]:
    """List the numbers of a grid, the default before all others."""
    grid = np.arange(round((most - least) / step) + 1) * step + least
    return [default, *(float(x) for x in grid.round(6) if x.round(6) != default)]
