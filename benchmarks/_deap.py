"""DEAP's NSGA-III with the settings of the MAP paper."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from deap import algorithms, base, creator, tools

PAPER_BOUNDS = (-3.0, 3.0)
"""The box that the paper searches, wider than where it samples."""


def run_nsga3(
    score: Callable[[list], Iterable],
    num_coefficients: int,
    num_objectives: int,
    *,
    maximize: bool,
    generations: int,
    seed: int,
    keep: Callable[[list], None] = lambda scored: None,
) -> None:
    """Search from a uniform population of 100; `keep` sees every individual once.

    Args:
        score: From individuals that have no scores to their scores.
        num_coefficients: The length of an individual.
        num_objectives: How many scores each has.
        maximize: Whether large scores are good.
        generations: How many times children are made.
        seed: For Python's and NumPy's own generators, which DEAP draws from.
        keep: Called with individuals when they have got their scores.

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic
        Approximation*, ICLR 2025, arXiv 2406.07529.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (DEAP draws from it)
    name = f"{'Maximum' if maximize else 'Minimum'}{num_objectives}"
    if not hasattr(creator, name):
        weights = (1.0 if maximize else -1.0,) * num_objectives
        creator.create(name, base.Fitness, weights=weights)
        creator.create(f"Merge{name}", list, fitness=getattr(creator, name))
    individual = getattr(creator, f"Merge{name}")
    points = [
        tools.uniform_reference_points(num_objectives, p, scale)
        for p, scale in ((2, 1.0), (1, 0.5))
    ]
    directions = np.unique(np.concatenate(points), axis=0)
    box = {"low": PAPER_BOUNDS[0], "up": PAPER_BOUNDS[1], "eta": 20.0}
    toolbox: Any = base.Toolbox()
    toolbox.register("mate", tools.cxSimulatedBinaryBounded, **box)
    toolbox.register(
        "mutate", tools.mutPolynomialBounded, indpb=1 / num_coefficients, **box
    )
    toolbox.register("select", tools.selNSGA3, ref_points=directions)

    def evaluate(individuals: list) -> None:
        new = [one for one in individuals if not one.fitness.valid]
        if new:
            for one, values in zip(new, score(new), strict=True):
                one.fitness.values = tuple(values)
            keep(new)

    population = [
        individual(random.uniform(*PAPER_BOUNDS) for _ in range(num_coefficients))
        for _ in range(100)
    ]
    evaluate(population)
    for _ in range(generations):
        children = algorithms.varAnd(population, toolbox, cxpb=0.7, mutpb=0.3)
        evaluate(children)
        population = toolbox.select(population + children, len(population))
