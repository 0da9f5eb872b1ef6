"""The protocol of the MAP paper: grid, SciPy's `curve_fit`, DEAP's NSGA-III."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit

import mapjax as mj
from benchmarks._deap import run_nsga3
from benchmarks.methods._found import Found
from benchmarks.suites import Suite


def paper_protocol(suite: Suite, budget: int) -> Found:
    r"""Follow the MAP paper, meant for a budget of $2p = (N+1)(N+2)$.

    The experts and points drawn from a grid of $\lceil (2p)^{1/N} \rceil$ levels; a sigmoid
    of a quadratic fitted by SciPy's `curve_fit` from all-ones, which are kept where it fails;
    DEAP's NSGA-III for 25 generations in $[-3, 3]^N$, from a uniform population; and all
    individuals that no other dominates. The base is not evaluated.

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic
        Approximation*, ICLR 2025, arXiv 2406.07529.
    """
    n, rng = suite.task_vectors.num_tasks, np.random.default_rng(suite.seed)
    experts = np.eye(n)
    levels = max(2, int(np.ceil(budget ** (1 / n) - 1e-9)))
    grid = np.empty((0, n))
    while len(grid) < budget - n:
        grid = np.stack(np.meshgrid(*n * [np.linspace(0, 1, levels)]), -1).reshape(-1, n)
        is_known = (grid == 0).all(axis=1) | (grid[:, None] == experts).all(-1).any(1)
        grid, levels = grid[~is_known], levels + 1
    drawn = rng.choice(len(grid), max(budget - n, 0), replace=False)
    evaluated = np.concatenate([experts, grid[drawn]])[:budget]
    scores = np.asarray(suite.validation(evaluated, progress=False), float)

    unknowns = np.stack([_fit_sigmoid(evaluated, s) for s in scores.T], axis=1)

    def surrogate(c: np.ndarray) -> np.ndarray:
        return expit(_features(np.asarray(c)) @ unknowns)

    coefficients = _deap_archive(surrogate, n, scores.shape[1], suite.seed)
    predicted = surrogate(coefficients)
    return Found(evaluated, scores, coefficients, predicted, surrogate=surrogate)


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
