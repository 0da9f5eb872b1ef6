"""Search and sampling on real evaluations, without a surrogate.

All begin with the base and the experts, which every user has.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from pymoo.algorithms.moo.moead import MOEAD
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem
from scipy.stats import qmc

import mapjax as mj
from benchmarks.methods._found import Found, base_and_experts, best_of
from benchmarks.suites import Suite, with_rule

Evaluate = Callable[[np.ndarray], Any]
Start = Callable[[np.ndarray, np.ndarray], Any]
"""From reference directions and a first population, one each, to a pymoo algorithm."""


def nsga2(directions: np.ndarray, first: np.ndarray) -> Any:
    """Start pymoo's NSGA-II, which takes no directions."""
    sampling: Any = first
    return NSGA2(len(first), sampling=sampling)


def nsga3(directions: np.ndarray, first: np.ndarray) -> Any:
    """Start pymoo's NSGA-III."""
    sampling: Any = first
    return NSGA3(directions, pop_size=len(first), sampling=sampling)


def moead(directions: np.ndarray, first: np.ndarray) -> Any:
    """Start pymoo's MOEA/D, which makes one child at a time."""
    sampling: Any = first
    return MOEAD(directions, sampling=sampling)


def direct_search(suite: Suite, budget: int, *, start: Start) -> Found:
    """Search the real scores by an algorithm of pymoo in the unit box.

    The first population is the base, the experts and points of the scaled simplex.
    """
    n, seed = suite.task_vectors.num_tasks, suite.seed
    size = min(budget, max(n + 1, min(40, budget // 3)))
    rays = _rays(size, n, np.random.default_rng(seed))
    first = np.concatenate([base_and_experts(n), rays])[:size]
    return best_of(*search_from(start, suite.validation, first, budget, seed))


def nsga3_from(
    evaluate: Evaluate, first: np.ndarray, budget: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search by NSGA-III; see `search_from`."""
    return search_from(nsga3, evaluate, first, budget, seed)


def search_from(
    start: Start, evaluate: Evaluate, first: np.ndarray, budget: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search the real scores from a population of distinct points, until the budget is spent.

    Returns:
        The coefficients and the scores of all that was evaluated, in that order.
    """
    x, s = [first], [np.asarray(evaluate(first), float)]
    size, num_tasks = len(first), s[0].shape[1]
    directions = np.asarray(mj.pareto.reference_directions(num_tasks, size), float)
    problem = Problem(n_var=first.shape[1], n_obj=num_tasks, xl=0.0, xu=1.0)
    algorithm = start(directions[:size], first)
    algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed, verbose=False)
    asked = algorithm.ask()
    assert len(asked) == size, "pymoo dropped copies from the first population"
    asked.set("F", -s[0])
    algorithm.tell(infills=asked)
    while (left := budget - sum(map(len, x))) > 0:
        asked = algorithm.ask()
        points = np.asarray(asked.get("X"), float)  # a row where there is one child
        x.append(np.atleast_2d(points)[:left])
        s.append(np.asarray(evaluate(x[-1]), float))
        if left < len(np.atleast_2d(points)):
            break
        asked.set("F", -s[-1].reshape(*points.shape[:-1], num_tasks))
        algorithm.tell(infills=asked)
    return np.concatenate(x), np.concatenate(s)


def direct_sobol(suite: Suite, budget: int) -> Found:
    """Evaluate Sobol points of the unit box."""
    points = sobol_points(budget, suite.task_vectors.num_tasks, suite.seed)
    return _evaluated(suite, points, budget)


def rewarded_soups(suite: Suite, budget: int) -> Found:
    """Evaluate uniform points of the simplex.

    References:
        Rame et al., *Rewarded soups*, NeurIPS 2023, arXiv 2306.04488.
    """
    rng = np.random.default_rng(suite.seed)
    points = rng.dirichlet(np.ones(suite.task_vectors.num_tasks), budget)
    return _evaluated(suite, points, budget)


def direct_mixed(suite: Suite, budget: int, *, rule: mj.TaskVectors | None = None) -> Found:
    """Evaluate points of the scaled simplex and of boxes of many sizes, half of each.

    Args:
        suite: The problem.
        budget: Of evaluations.
        rule: Other task vectors in place of the suite's.
    """
    n, rng = suite.task_vectors.num_tasks, np.random.default_rng(suite.seed)
    boxes = sobol_points(budget, n, suite.seed) * rng.random((budget, 1))
    rays = _rays(budget, n, rng)
    return _evaluated(suite, np.stack([rays, boxes], axis=1).reshape(-1, n), budget, rule)


def sobol_points(count: int, num_coefficients: int, seed: int) -> np.ndarray:
    """Draw scrambled Sobol points of the unit box, any number of them."""
    power = int(np.ceil(np.log2(max(count, 1))))
    return qmc.Sobol(num_coefficients, rng=seed).random_base2(power)[:count]


def _rays(count: int, num_coefficients: int, rng: np.random.Generator) -> np.ndarray:
    """Draw directions uniform on the simplex, and lengths up to 1.5."""
    points = rng.dirichlet(np.ones(num_coefficients), count)
    return np.minimum(points * rng.uniform(0, 1.5, (count, 1)), 1)


def _evaluated(
    suite: Suite, points: np.ndarray, budget: int, rule: mj.TaskVectors | None = None
) -> Found:
    points = np.concatenate([base_and_experts(points.shape[1]), points])[:budget]
    evaluator = with_rule(suite.validation, rule)
    return best_of(points, np.asarray(evaluator(points, progress=False), float), rule)
