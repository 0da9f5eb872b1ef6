"""Bands of sampled fronts, against a brute force over draws, points and levels."""

import numpy as np
import pytest

from mapjax import pareto


def reached(draw, level):
    """The least second objective at a level of the first, in one draw."""
    found = [b for a, b in draw if a <= level and not np.isnan(b)]
    return min(found, default=np.inf)


def test_a_band_holds_the_middle_of_the_draws():
    rng = np.random.default_rng(0)
    draws = rng.random((41, 12, 2)).astype(np.float32)
    draws[3, 5] = np.nan
    draws[4, 6, 1] = np.nan
    levels = np.linspace(-0.1, 1.1, 30).astype(np.float32)
    lower, upper = pareto.attainment_band(draws, levels, probability=0.8)
    for k, level in enumerate(levels):
        values = np.sort([reached(draw, level) for draw in draws])
        assert (lower[k], upper[k]) == (values[4], values[36])
    assert np.isinf(lower[0])
    assert np.isinf(upper[0])


def test_a_front_that_is_known_has_a_band_without_width():
    points = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    draws = np.tile(points, (9, 1, 1))
    lower, upper = pareto.attainment_band(draws, np.array([0.0, 0.4, 0.5, 2.0]))
    np.testing.assert_array_equal(lower, [1.0, 1.0, 0.5, 0.0])
    np.testing.assert_array_equal(upper, lower)


@pytest.mark.parametrize(
    ("draws", "levels", "probability", "message"),
    [
        (np.zeros((3, 2)), np.zeros(2), 0.9, r"shape \(3, 2\), but must be \[draws"),
        (np.zeros((3, 2, 3)), np.zeros(2), 0.9, "choose two objectives"),
        (np.zeros((3, 2, 2)), np.zeros(()), 0.9, "`levels` has shape"),
        (np.zeros((3, 2, 2)), np.zeros(2), 90.0, "`probability` is 90.0, but must be"),
    ],
)
def test_bad_arguments(draws, levels, probability, message):
    with pytest.raises(ValueError, match=message):
        pareto.attainment_band(draws, levels, probability=probability)
