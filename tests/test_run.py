"""What every driver goes through."""

import jax
import numpy as np
import pytest

from mapjax._run import Run

KEY = jax.random.key(0)


class Wrong:
    """A surrogate whose predictions are three deviations off."""

    def __init__(self, run):
        self.run = run

    def __call__(self, c):
        return np.full((len(c), 2), 4.0)

    def std(self, c):
        return np.full((len(c), 2), self.run.inflation)


def test_deviations_are_scaled_towards_the_errors_of_proposals():
    run = Run(lambda c: np.ones((len(c), 2)), num_coefficients=2, budget=9, key=KEY)
    run.fitted = Wrong(run)
    points = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    run.evaluate_proposals(points)
    assert run.inflation == pytest.approx(np.sqrt((9 + 1) / 2))
    # What was added for the first ones is not taken for an error that is gone.
    run.evaluate_proposals(points)
    assert run.inflation == pytest.approx(np.sqrt((9 + 5) / 2))
