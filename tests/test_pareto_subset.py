"""Spread subsets against brute force."""

import itertools

import numpy as np
import pytest

from mapjax import pareto


def radius(points, chosen):
    """Measure how far the worst covered point is from the chosen ones."""
    unit = (points - points.min(0)) / np.ptp(points, axis=0)
    distance = np.linalg.norm(unit[:, None] - unit[list(chosen)], axis=-1)
    return distance.min(axis=1).max()


@pytest.mark.parametrize("seed", range(3))
def test_covers_within_twice_the_best_subset_and_holds_the_extremes(seed):
    x = np.random.default_rng(seed).dirichlet(np.ones(3), size=12).astype("f")
    chosen = np.asarray(pareto.spread_subset(x, 4))
    assert len(set(chosen.tolist())) == 4
    best = min(radius(x, s) for s in itertools.combinations(range(12), 4))
    assert radius(x, chosen) <= 2 * best + 1e-6
    assert set(x.argmin(axis=0)) <= set(chosen.tolist())


def test_points_that_are_not_finite_are_never_chosen():
    x = np.array([[0, 1], [np.nan, 0], [-np.inf, 0], [1, 0], [0.5, 0.5]], "f")
    assert sorted(np.asarray(pareto.spread_subset(x, 5)).tolist()) == [0, 3, 4]


def test_identical_points_are_chosen_once_each():
    assert sorted(np.asarray(pareto.spread_subset(np.ones((4, 2), "f"), 3)).tolist()) == [
        0,
        1,
        2,
    ]


def test_asks_for_at_least_one_point():
    with pytest.raises(ValueError, match="`num_points` is 0"):
        pareto.spread_subset(np.ones((4, 2)), 0)
