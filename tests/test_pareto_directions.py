from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pymoo.util.ref_dirs import get_reference_directions

from mapjax import pareto


def sorted_rows(rows):
    rows = np.round(np.asarray(rows, dtype=np.float64), 5)
    return rows[np.lexsort(rows.T)]


def nearest_distances(points):
    gaps = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
    return (gaps + 10 * np.eye(len(points))).min(axis=1)


@pytest.mark.parametrize(
    ("num_objectives", "partitions"), [(2, 7), (3, 12), (5, 4), (8, 3)]
)
def test_das_dennis_matches_pymoo(num_objectives, partitions):
    ours = pareto.das_dennis(num_objectives, partitions)
    assert len(ours) == comb(num_objectives + partitions - 1, partitions)
    truth = get_reference_directions("das-dennis", num_objectives, n_partitions=partitions)
    np.testing.assert_allclose(sorted_rows(ours), sorted_rows(truth), atol=2e-5)


def test_two_layers_match_pymoo():
    truth = get_reference_directions(
        "multi-layer",
        get_reference_directions("das-dennis", 5, n_partitions=3),
        get_reference_directions("das-dennis", 5, n_partitions=2, scaling=0.4),
    )
    ours = pareto.two_layer(5, 3, 2, shrink=0.4)
    np.testing.assert_allclose(sorted_rows(ours), sorted_rows(truth), atol=2e-5)


@pytest.mark.parametrize(
    ("num_objectives", "num_points"),
    [(2, 1), (2, 2), (2, 100), (3, 91), (3, 100), (4, 3), (5, 50), (8, 100), (8, 156)],
)
def test_reference_directions_are_as_many_as_asked_for(num_objectives, num_points):
    directions = np.asarray(pareto.reference_directions(num_objectives, num_points))
    assert directions.shape == (num_points, num_objectives)
    assert (directions >= 0).all()
    np.testing.assert_allclose(directions.sum(axis=1), 1, atol=1e-6)
    if num_points >= num_objectives:
        corners = directions[directions.max(axis=1) == 1]
        np.testing.assert_array_equal(
            sorted_rows(corners), sorted_rows(np.eye(len(corners)))
        )
        assert len(corners) == num_objectives
    if num_points > 1:
        assert nearest_distances(directions).min() > 1e-3


def test_reference_directions_choose_the_family_by_the_count():
    for partitions, num_points in [(12, 91), (13, 105)]:
        np.testing.assert_array_equal(
            pareto.reference_directions(3, num_points), pareto.das_dennis(3, partitions)
        )
    np.testing.assert_array_equal(
        pareto.reference_directions(8, 156), pareto.two_layer(8, 3, 2)
    )


@pytest.mark.parametrize(("num_objectives", "num_points"), [(3, 100), (8, 100)])
@pytest.mark.slow
def test_riesz_energy_is_as_low_as_pymoos(num_objectives, num_points):
    def log_energy(points):
        gaps = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
        gaps = gaps[np.triu_indices(len(points), 1)]
        return np.log(np.sum(gaps ** -(num_objectives**2)))

    truth = get_reference_directions(
        "energy", num_objectives, num_points, seed=1, n_max_iter=500
    )
    ours = np.asarray(pareto.reference_directions(num_objectives, num_points))
    assert log_energy(ours) < log_energy(truth) + 0.1
    assert nearest_distances(ours).min() > 0.95 * nearest_distances(truth).min()


def test_riesz_energy_beats_random_points_and_follows_its_key(key):
    points = np.asarray(pareto.riesz_energy(4, 40, key=key))
    np.testing.assert_array_equal(points, pareto.riesz_energy(4, 40, key=key))
    assert not np.array_equal(points, pareto.riesz_energy(4, 40, key=jax.random.key(1)))
    np.testing.assert_array_equal(points[:4], np.eye(4))
    random = np.random.default_rng(0).dirichlet(np.ones(4), size=40)
    assert nearest_distances(points).min() > 3 * nearest_distances(random).min()


def test_directions_can_be_made_under_a_trace_and_kept():
    @jax.jit
    def inside():
        return pareto.reference_directions(3, 17)

    np.testing.assert_array_equal(inside(), pareto.reference_directions(3, 17))


def test_double_precision(x64):
    directions = pareto.reference_directions(3, 100)
    assert directions.dtype == jnp.float64
    np.testing.assert_allclose(directions.sum(axis=1), 1, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pareto.das_dennis(1, 3), "`num_objectives` is 1.*at least 2"),
        (lambda: pareto.das_dennis(3, 0), "`partitions` is 0.*at least 1"),
        (lambda: pareto.das_dennis(20, 20), "has 68,923,264,410 points; use fewer"),
        (lambda: pareto.two_layer(3, 2, 0), "`inner` is 0.*at least 1"),
        (lambda: pareto.two_layer(3, 0, 2), "`outer` is 0.*at least 1"),
        (lambda: pareto.two_layer(3, 2, 1, shrink=1.0), r"`shrink` is 1.0.*\(0, 1\)"),
        (lambda: pareto.reference_directions(3, 0), "`num_points` is 0.*at least 1"),
        (lambda: pareto.reference_directions(1, 3), "`num_objectives` is 1.*at least 2"),
        (
            lambda: pareto.riesz_energy(3, 0, key=jax.random.key(0)),
            "`num_points` is 0.*at least 1",
        ),
        (lambda: pareto.riesz_energy(3, 5, key=0), "`key` is 0, but must be one typed key"),
    ],
)
def test_bad_counts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
