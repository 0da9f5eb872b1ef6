"""The gradient polish, against SciPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy.optimize import minimize

from mapjax.pareto import hypervolume, non_dominated, reference_directions
from mapjax.search import polish


class Quadratics(eqx.Module):
    """Convex quadratics with different targets and curvatures."""

    targets: Array
    curvatures: Array

    def __call__(self, c):
        deviation = c - self.targets
        return jnp.einsum("ti,tij,tj->t", deviation, self.curvatures, deviation)


def problem(seed, num=4, objectives=3, beyond=0.0):
    """Random quadratics; targets `beyond` the unit box put the front on its faces."""
    random = np.random.default_rng(seed)
    roots = random.normal(size=(objectives, num, num)) / np.sqrt(num)
    curvatures = roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(num)
    targets = random.uniform(-beyond, 1 + beyond, (objectives, num))
    start = random.uniform(size=(20, num)).astype(np.float32)
    objective = Quadratics(
        jnp.asarray(targets, jnp.float32), jnp.asarray(curvatures, jnp.float32)
    )
    return objective, start


@pytest.mark.parametrize(("seed", "beyond"), [(0, 0.0), (1, 0.0), (2, 0.8), (3, 0.8)])
def test_each_direction_reaches_the_optimum_that_scipy_finds(seed, beyond):
    objective, start = problem(seed, beyond=beyond)
    weights = np.asarray(reference_directions(3, 15))[3:]
    scores = np.asarray(jax.vmap(objective)(start), np.float64)
    scores = scores[np.asarray(non_dominated(scores))]
    ideal, width = scores.min(axis=0), np.ptp(scores, axis=0)
    targets = np.asarray(objective.targets, np.float64)
    curvatures = np.asarray(objective.curvatures, np.float64)

    def evaluate(c):
        deviation = c - targets
        return np.einsum("ti,tij,tj->t", deviation, curvatures, deviation)

    front = polish(objective, start, weights)
    found = (np.asarray(front.scores) - ideal) / width
    for weight in weights:
        # The epigraph form of the Tchebycheff problem, which is smooth.
        theirs = minimize(
            lambda x: x[-1],
            np.append(np.full(4, 0.5), 5.0),
            method="SLSQP",
            bounds=[(0, 1)] * 4 + [(None, None)],
            constraints={
                "type": "ineq",
                "fun": lambda x, w: x[-1] - w * (evaluate(x[:-1]) - ideal) / width,
                "args": (weight,),
            },
            options={"maxiter": 300, "ftol": 1e-9},
        )
        assert theirs.success
        ours = np.max(np.maximum(weight, 1e-3) * found, axis=1).min()
        assert ours < theirs.fun + 5e-3


def test_a_front_is_never_worse_than_it_was():
    objective, start = problem(5, objectives=2)
    before = jax.vmap(objective)(start)
    front = polish(objective, start, reference_directions(2, 10), num_steps=3)
    reference = jnp.max(before, axis=0)
    assert hypervolume(front.scores, reference) > hypervolume(before, reference)
    assert bool(jnp.all(non_dominated(front.scores)))
    values = jax.vmap(objective)(front.coefficients)
    np.testing.assert_allclose(front.scores, values, rtol=1e-4, atol=1e-5)


def test_bounds_hold():
    objective, start = problem(6, beyond=2.0)
    lower, upper = np.array([0.2, 0.0, -1.0, 0.0]), np.array([0.4, 2.0, 1.0, 0.1])
    weights = reference_directions(3, 15)
    front = polish(objective, start, weights, bounds=(lower, upper))
    assert np.all(front.coefficients >= lower - 1e-6)
    assert np.all(front.coefficients <= upper + 1e-6)


def test_traced_once_for_other_numbers():
    traced = 0

    class Counted(Quadratics):
        def __call__(self, c):
            nonlocal traced
            traced += 1
            return super().__call__(c)

    def run(seed, bounds, smoothing):
        objective, start = problem(seed)
        counted = Counted(objective.targets, objective.curvatures)
        weights = reference_directions(3, 15)[:: 1 - 2 * seed]
        polish(counted, start, weights, bounds, smoothing=smoothing)
        return traced

    once = run(0, (0.0, 1.0), 1e-3)
    assert run(1, (np.full(4, -1.0), 2.0), 1e-2) == once


def test_failures_flat_objectives_and_single_points():
    def partly(c):
        score = jnp.stack([jnp.sum(c**2), jnp.sum((c - 1) ** 2)])
        return jnp.where(c[0] < 0.4, jnp.nan, score)

    start = np.array([[0.1, 0.1], [0.9, 0.3], [0.6, 0.8]], np.float32)
    front = polish(partly, start, reference_directions(2, 5))
    assert bool(jnp.all(jnp.isfinite(front.scores)))
    assert bool(jnp.all(front.coefficients[:, 0] >= 0.4))

    def flat(c):
        return jnp.stack([jnp.sum(c), jnp.ones(())])

    front = polish(flat, start, reference_directions(2, 5))
    np.testing.assert_allclose(front.coefficients, [[0, 0]], atol=1e-5)
    alone = polish(flat, start[:1], reference_directions(2, 1))
    np.testing.assert_allclose(alone.scores, [[0, 1]], atol=1e-5)
    assert len(polish(lambda c: c * jnp.nan, start, reference_directions(2, 5))) == 0


def test_in_double_precision(x64):
    objective, start = problem(0)
    front = polish(objective, start, reference_directions(3, 6))
    assert front.coefficients.dtype == front.scores.dtype == jnp.float64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"coefficients": np.zeros(4)}, r"shape \(4,\), .*pass one point as `c\[None\]`"),
        ({"reference_directions": np.ones(3)}, r"`reference_directions` has shape \(3,\)"),
        ({"reference_directions": -np.eye(3)}, "non-negative"),
        ({"reference_directions": np.eye(2)}, r"`objective` returns .*\(2,\)"),
        ({"num_steps": 0}, "`num_steps` is 0, .* at least 1"),
        ({"smoothing": 0.0}, "`smoothing` is 0.0, .* above 0"),
        ({"bounds": (1.0, 0.0)}, "every lower bound must be below"),
    ],
)
def test_errors(changed, message):
    objective, start = problem(0)
    arguments = {"coefficients": start, "reference_directions": np.eye(3)} | changed
    with pytest.raises(ValueError, match=message):
        polish(objective, **arguments)
