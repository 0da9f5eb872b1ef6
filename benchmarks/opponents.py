"""Other ways to a front: the paper's protocol, one-shot quadratics, direct search.

Each is a function of `(evaluate, num_coefficients, budget, seed)`, evaluates at most
`budget` merges, and returns a `Found`. All scores are maximised. All but the paper's
protocol begin with the base and the experts, which every user has.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit
from scipy.stats import qmc

import mapjax as mj
from benchmarks._deap import run_nsga3

Evaluate = Callable[[np.ndarray], Any]


class Found(NamedTuple):
    """What a method evaluated, and the front that it proposes.

    Attributes:
        evaluated: Coefficients `[k, N]`, in the order in which they were evaluated.
        scores: Their scores `[k, T]`.
        coefficients: The front `[P, N]` that a user would pick from.
        predicted: What the method takes its scores to be, `[P, T]`.
        std: Standard deviations of these, where the method has any.
        surrogate: From coefficients to predicted scores, where the method has one.
    """

    evaluated: np.ndarray
    scores: np.ndarray
    coefficients: np.ndarray
    predicted: np.ndarray
    std: np.ndarray | None = None
    surrogate: Callable[[np.ndarray], Any] | None = None


def with_map_front(
    evaluate: Evaluate, num_coefficients: int, budget: int, seed: int, **options: Any
) -> Found:
    """Run `mapjax.map_front`; `options` are its own."""
    if not isinstance(evaluate, mj.Evaluator):
        options["num_coefficients"] = num_coefficients
    return with_driver(mj.map_front, evaluate, budget, seed, **options)


def with_driver(
    driver: Callable[..., mj.Solution],
    evaluate: Evaluate,
    budget: int,
    seed: int,
    **options: Any,
) -> Found:
    """Run any driver that returns a `Solution`."""
    with warnings.catch_warnings():
        # Few samples are what is measured.
        warnings.filterwarnings("ignore", message="There were fewer usable samples")
        solution = driver(
            evaluate, budget=budget, key=jax.random.key(seed), progress=False, **options
        )
    front, samples = solution.front, solution.samples
    std = None if front.std is None else np.asarray(front.std)
    return Found(
        np.asarray(samples.coefficients),
        np.asarray(samples.scores),
        np.asarray(front.coefficients),
        np.asarray(front.scores),
        std,
        solution.surrogate,
    )


def bayesian(evaluate: Evaluate, num_coefficients: int, budget: int, seed: int) -> Found:
    """Let expected hypervolume improvement choose what is evaluated."""
    return with_driver(mj.bayesian_front, evaluate, budget, seed)


def scalar_quadratic(
    evaluate: Evaluate, num_coefficients: int, budget: int, seed: int
) -> Found:
    """Fit one regularised quadratic a task, in one shot, with the settings of mapjax."""
    return with_map_front(
        evaluate, num_coefficients, budget, seed, surrogate="quadratic", rounds=1
    )


def paper_protocol(
    evaluate: Evaluate, num_coefficients: int, budget: int, seed: int
) -> Found:
    r"""Follow the MAP paper, meant for a budget of $2p = (N+1)(N+2)$.

    The experts and points drawn from a grid of $\lceil (2p)^{1/N} \rceil$ levels; a sigmoid
    of a quadratic fitted by SciPy's `curve_fit` from all-ones, which are kept where it fails;
    DEAP's NSGA-III for 25 generations in $[-3, 3]^N$, from a uniform population; and all
    individuals that no other dominates. The base is not evaluated.

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic
        Approximation*, ICLR 2025, arXiv 2406.07529.
    """
    n, rng = num_coefficients, np.random.default_rng(seed)
    experts = np.eye(n)
    levels = max(2, int(np.ceil(budget ** (1 / n) - 1e-9)))
    grid = np.empty((0, n))
    while len(grid) < budget - n:
        grid = np.stack(np.meshgrid(*n * [np.linspace(0, 1, levels)]), -1).reshape(-1, n)
        is_known = (grid == 0).all(axis=1) | (grid[:, None] == experts).all(-1).any(1)
        grid, levels = grid[~is_known], levels + 1
    drawn = rng.choice(len(grid), max(budget - n, 0), replace=False)
    evaluated = np.concatenate([experts, grid[drawn]])[:budget]
    scores = np.asarray(evaluate(evaluated), float)

    unknowns = np.stack([_fit_sigmoid(evaluated, s) for s in scores.T], axis=1)

    def surrogate(c: np.ndarray) -> np.ndarray:
        return expit(_features(np.asarray(c)) @ unknowns)

    coefficients = _deap_archive(surrogate, n, scores.shape[1], seed)
    predicted = surrogate(coefficients)
    return Found(evaluated, scores, coefficients, predicted, None, surrogate)


def direct_nsga3(
    evaluate: Evaluate, num_coefficients: int, budget: int, seed: int
) -> Found:
    """Search the real scores by pymoo's NSGA-III in the unit box, until the budget is spent.

    The first population is the base, the experts and points of the scaled simplex.
    """
    n = num_coefficients
    size = min(budget, max(n + 1, min(40, budget // 3)))
    first = np.concatenate([_known(n), _rays(size, n, np.random.default_rng(seed))])[:size]
    return nsga3_from(evaluate, first, budget, seed)


def nsga3_from(evaluate: Evaluate, first: np.ndarray, budget: int, seed: int) -> Found:
    """Search the real scores by pymoo's NSGA-III from a population of distinct points."""
    x, s = [first], [np.asarray(evaluate(first), float)]
    size, num_tasks = len(first), s[0].shape[1]
    directions = np.asarray(mj.pareto.reference_directions(num_tasks, size), float)
    problem = Problem(n_var=first.shape[1], n_obj=num_tasks, xl=0.0, xu=1.0)
    sampling: Any = first
    algorithm = NSGA3(directions[:size], pop_size=size, sampling=sampling)
    algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed, verbose=False)
    population: Any = algorithm.ask()
    assert len(population) == size, "pymoo dropped copies from the first population"
    population.set("F", -s[0])
    algorithm.tell(infills=population)
    while (left := budget - sum(map(len, x))) > 0:
        population = algorithm.ask()
        x.append(np.asarray(population.get("X"), float)[:left])
        s.append(np.asarray(evaluate(x[-1]), float))
        if len(x[-1]) < len(population):
            break
        population.set("F", -s[-1])
        algorithm.tell(infills=population)
    return _as_found(np.concatenate(x), np.concatenate(s))


def sobol(evaluate: Evaluate, num_coefficients: int, budget: int, seed: int) -> Found:
    """Evaluate Sobol points of the unit box."""
    return _evaluated(evaluate, sobol_points(budget, num_coefficients, seed), budget)


def simplex(evaluate: Evaluate, num_coefficients: int, budget: int, seed: int) -> Found:
    """Evaluate uniform points of the simplex, as rewarded soups do."""
    rng = np.random.default_rng(seed)
    points = rng.dirichlet(np.ones(num_coefficients), budget)
    return _evaluated(evaluate, points, budget)


def direct(evaluate: Evaluate, num_coefficients: int, budget: int, seed: int) -> Found:
    """Evaluate points of the scaled simplex and of boxes of many sizes, half of each."""
    rng = np.random.default_rng(seed)
    boxes = sobol_points(budget, num_coefficients, seed) * rng.random((budget, 1))
    rays = _rays(budget, num_coefficients, rng)
    points = np.stack([rays, boxes], axis=1).reshape(-1, num_coefficients)
    return _evaluated(evaluate, points, budget)


def sobol_points(count: int, num_coefficients: int, seed: int) -> np.ndarray:
    """Draw scrambled Sobol points of the unit box, any number of them."""
    power = int(np.ceil(np.log2(max(count, 1))))
    return qmc.Sobol(num_coefficients, rng=seed).random_base2(power)[:count]


def _rays(count: int, num_coefficients: int, rng: np.random.Generator) -> np.ndarray:
    """Draw directions uniform on the simplex, and lengths up to 1.5."""
    points = rng.dirichlet(np.ones(num_coefficients), count)
    return np.minimum(points * rng.uniform(0, 1.5, (count, 1)), 1)


def _known(num_coefficients: int) -> np.ndarray:
    return np.eye(num_coefficients + 1, num_coefficients, k=-1)


def _evaluated(evaluate: Evaluate, points: np.ndarray, budget: int) -> Found:
    points = np.concatenate([_known(points.shape[1]), points])[:budget]
    return _as_found(points, np.asarray(evaluate(points), float))


def _as_found(points: np.ndarray, scores: np.ndarray) -> Found:
    """Propose the best of what was evaluated."""
    kept = np.asarray(mj.pareto.non_dominated(-scores))
    return Found(points, scores, points[kept], scores[kept])


def _features(c: np.ndarray) -> np.ndarray:
    """List what the paper's unknowns multiply: 1, c and the products of 1/2 c'Ac."""
    i, j = np.triu_indices(c.shape[1])
    products = c[:, i] * c[:, j] * np.where(i == j, 0.5, 1)
    return np.concatenate([np.ones((len(c), 1)), c, products], axis=1)


def _fit_sigmoid(c: np.ndarray, scores: np.ndarray) -> np.ndarray:
    features = _features(c)
    start = np.ones(features.shape[1])

    def model(features: np.ndarray, *unknowns: float) -> np.ndarray:
        return expit(features @ np.array(unknowns))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # the covariance is not used
        try:
            return curve_fit(model, features, scores, p0=start)[0]
        except (RuntimeError, TypeError):  # no convergence; fewer points than unknowns
            return start


def _deap_archive(
    surrogate: Callable[[np.ndarray], np.ndarray], n: int, num_tasks: int, seed: int
) -> np.ndarray:
    """Run DEAP's NSGA-III with the paper's settings; keep all that none dominates."""
    everyone: list[np.ndarray] = []

    def score(individuals: list) -> np.ndarray:
        everyone.append(np.array(individuals))
        return surrogate(everyone[-1])

    run_nsga3(score, n, num_tasks, maximize=True, generations=25, seed=seed)
    archive = np.concatenate(everyone)
    return archive[np.asarray(mj.pareto.non_dominated(-surrogate(archive)))]
