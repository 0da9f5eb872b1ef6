import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymoo.indicators.hv import HV

from mapjax import pareto
from mapjax.pareto import _hypervolume

POINTS = 12
REFERENCE = np.full(4, 3.0, dtype=np.float32)

# Few levels, so that ties, duplicates and points beyond the reference come up all the time.
some_scores = hnp.arrays(
    np.float32, (POINTS, 4), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0])
)


def random_front(num_points, num_objectives, seed=0):
    points = np.abs(np.random.default_rng(seed).normal(size=(num_points, num_objectives)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return (1 - points).astype(np.float32)


@pytest.mark.parametrize("num_objectives", [2, 3, 4, 5, 6])
def test_hypervolume_matches_moocore_and_pymoo(num_objectives):
    front = random_front(50, num_objectives)
    # Dominated points, duplicates and points beyond the reference change nothing.
    scores = np.concatenate([front + 0.05, front, front[:10], front[:10] + 1.5])
    reference = np.full(num_objectives, 1.1, dtype=np.float32)
    volume = pareto.hypervolume(scores, reference)
    np.testing.assert_allclose(volume, moocore.hypervolume(front, ref=reference), rtol=2e-6)
    if num_objectives <= 4:  # pymoo's own takes long with more
        assert float(volume) == pytest.approx(HV(ref_point=reference)(front), rel=2e-6)


def test_hypervolume_in_double_precision_matches_moocore(x64):
    scores = random_front(POINTS, 5).astype(np.float64)
    volume = pareto.hypervolume(scores, np.ones(5))
    assert volume.dtype == jnp.float64
    np.testing.assert_allclose(volume, moocore.hypervolume(scores, ref=1.0), rtol=1e-13)


@given(some_scores)
def test_hypervolume_with_ties_counts_unit_cubes(scores):
    cubes = np.stack(np.meshgrid(*[np.arange(3)] * 4, indexing="ij"), axis=-1).reshape(
        -1, 4
    )
    covered = (scores[:, None] <= cubes).all(axis=-1).any(axis=0).sum()
    assert float(pareto.hypervolume(scores, REFERENCE)) == covered


@given(some_scores, some_scores, st.permutations(range(POINTS)))
def test_hypervolume_grows_with_points_and_ignores_their_order(scores, more, order):
    volume = float(pareto.hypervolume(scores, REFERENCE))
    assert float(pareto.hypervolume(scores[order], REFERENCE)) == volume
    assert float(pareto.hypervolume(np.minimum(scores, more), REFERENCE)) >= volume


def test_as_many_boxes_as_there_can_be():
    # With three objectives left, each of these points adds two boxes, which is the most.
    simplex = np.random.default_rng(0).dirichlet(np.ones(3), size=1_500)
    scores = np.concatenate([np.linspace(0, 0.9, 1_500)[:, None], simplex], axis=1)
    volume = pareto.hypervolume(scores.astype(np.float32), np.ones(4))
    np.testing.assert_allclose(volume, moocore.hypervolume(scores, ref=1.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("scores", "truth"),
    [
        ([[1.0, 1.0]], 4.0),
        ([[1.0, 1.0]] * 3, 4.0),
        ([[1.0, 1.0], [1.0, 2.0], [1.0, 0.0]], 6.0),
        ([[1.0, 1.0], [np.nan, 0.0], [0.0, np.nan]], 4.0),
        ([[np.nan, np.nan]], 0.0),
        ([[1.0, 1.0], [3.0, 0.0], [-1.0, 5.0]], 4.0),
        ([[4.0, 4.0]], 0.0),
        ([[1.0, 1.0], [-np.inf, 0.0], [np.inf, 0.0]], 4.0),
    ],
    ids=[
        "one point",
        "identical",
        "constant objective",
        "NaN rows",
        "all NaN",
        "some beyond",
        "all beyond",
        "infinite",
    ],
)
def test_degenerate_sets(scores, truth, key):
    scores, reference = np.array(scores, dtype=np.float32), np.array([3.0, 3.0])
    # A constant shape: rows that add nothing fill it.
    scores = np.concatenate([scores, np.full((3 - len(scores), 2), np.nan, np.float32)])
    assert float(pareto.hypervolume(scores, reference)) == truth
    volume, error = pareto.hypervolume_monte_carlo(scores, reference, key=key)
    assert abs(float(volume) - truth) <= 5 * float(error) + 1e-5


def test_traced_once_and_batched():
    traces = 0

    @jax.jit
    @jax.vmap
    def volume(scores, reference):
        nonlocal traces
        traces += 1
        return pareto.hypervolume(scores, reference)

    batch = np.stack([random_front(POINTS, 4, seed) for seed in range(3)])
    for corner in (1.0, 2.0):
        together = volume(batch, np.full((3, 4), corner, dtype=np.float32))
        truth = [moocore.hypervolume(front, ref=corner) for front in batch]
        np.testing.assert_allclose(together, truth, rtol=2e-6)
    assert traces == 1


@pytest.mark.parametrize("num_objectives", [3, 8])
def test_monte_carlo_is_as_close_as_its_error_says(num_objectives):
    scores = random_front(40, num_objectives)
    truth = moocore.hypervolume(scores, ref=1.0)

    @jax.jit
    @jax.vmap
    def estimate(key):
        return pareto.hypervolume_monte_carlo(
            scores, np.ones(num_objectives), key=key, num_samples=4_000
        )

    volumes, errors = estimate(jax.random.split(jax.random.key(0), 100))
    deviations = (np.asarray(volumes) - truth) / np.asarray(errors)
    assert abs(deviations.mean()) < 0.4  # four standard errors of a mean of 100
    assert 0.75 < deviations.std() < 1.25
    assert (np.abs(deviations) < 4.5).all()


def test_monte_carlo_counts_inside_of_the_box(key):
    scores, reference = np.zeros((1, 3)), np.full(3, 2.0)
    draw = {"key": key, "num_samples": 2_000}
    volume, error = pareto.hypervolume_monte_carlo(scores, reference, **draw)
    assert (float(volume), float(error)) == (8.0, 0.0)
    volume, error = pareto.hypervolume_monte_carlo(
        scores, reference, ideal=np.ones(3), **draw
    )
    assert (float(volume), float(error)) == (1.0, 0.0)
    volume, error = pareto.hypervolume_monte_carlo(
        scores, reference, ideal=-np.ones(3), **draw
    )
    assert abs(float(volume) - 8.0) < 4 * float(error) < 4.0


def test_a_sweep_over_any_number_shares_a_trace(key, monkeypatch):
    traces = 0
    enclosed = _hypervolume._enclosed

    def counting(scores, reference):
        nonlocal traces
        traces += 1
        return enclosed(scores, reference)

    monkeypatch.setattr(_hypervolume, "_enclosed", counting)
    scores, errors = random_front(17, 3), []  # a shape that no other test has
    for number in (1_500, 150_000):
        pareto.hypervolume(scores, np.full(3, float(number)))
        errors.append(
            pareto.hypervolume_monte_carlo(scores, np.ones(3), key=key, num_samples=number)[
                1
            ]
        )
    assert traces == 2
    assert 8 < errors[0] / errors[1] < 12


@pytest.mark.parametrize("num_objectives", [2, 4])
def test_forward_derivatives_are_finite_differences(num_objectives, x64):
    scores = np.random.default_rng(0).random((6, num_objectives))
    reference = np.ones(num_objectives)
    slopes = jax.jacfwd(lambda x: pareto.hypervolume(x, reference))(jnp.asarray(scores))
    steps = 1e-6 * np.eye(scores.size).reshape(-1, *scores.shape)
    volume = jax.vmap(lambda x: pareto.hypervolume(x, reference))
    differences = (volume(scores + steps) - volume(scores - steps)) / 2e-6
    np.testing.assert_allclose(slopes.ravel(), differences, atol=1e-8)
    assert (np.asarray(slopes) < 0).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pareto.hypervolume(np.zeros((3, 7)), np.ones(7)),
            "has 7 objectives.*2 to 6.*`hypervolume_monte_carlo`",
        ),
        (lambda: pareto.hypervolume(np.zeros((3, 1)), np.ones(1)), "has 1 objectives"),
        (
            lambda: pareto.hypervolume(np.zeros((5_000, 6)), np.ones(6)),
            "5000 points, too many for memory at 6.*`hypervolume_monte_carlo`",
        ),
        (lambda: pareto.hypervolume(np.zeros(3), np.ones(3)), r"`scores` has shape \(3,\)"),
        (
            lambda: pareto.hypervolume(np.zeros((3, 2)), np.ones(3)),
            r"`reference` has shape \(3,\).*shape \(2,\)",
        ),
        (
            lambda: pareto.hypervolume(np.zeros((3, 2)), np.array([1.0, np.inf])),
            "`reference` holds inf at position 1; pass finite numbers",
        ),
        (
            lambda: pareto.hypervolume_monte_carlo(
                np.zeros((3, 2)), np.ones(2), key=jax.random.key(0), num_samples=1
            ),
            "`num_samples` is 1, .* at least 2",
        ),
        (
            lambda: pareto.hypervolume_monte_carlo(
                np.zeros((3, 2)), np.ones(2), key=jax.random.key(0), ideal=np.ones(2)
            ),
            "`ideal` is .* must be below `reference`",
        ),
        (
            lambda: pareto.hypervolume_monte_carlo(
                np.zeros((3, 2)), np.array([np.nan, 1]), key=jax.random.key(0)
            ),
            "`reference` holds nan at position 0",
        ),
        (
            lambda: pareto.hypervolume_monte_carlo(
                np.zeros((3, 2)), np.ones(2), key=jax.random.PRNGKey(0)
            ),
            "must be one typed key",
        ),
        (
            lambda: pareto.hypervolume_monte_carlo(
                np.zeros((3, 2)), np.ones(2), key=jax.random.split(jax.random.key(0))
            ),
            "must be one typed key",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_only_that_of_scores(dtype, key):
    front = jnp.asarray(random_front(200, 3), dtype)
    reference = jnp.full(3, 1.1, dtype)
    wide = [x.astype(jnp.float32) for x in (front, reference)]
    volume = pareto.hypervolume(front, reference)
    assert volume.dtype == jnp.float32
    assert volume == pareto.hypervolume(*wide)
    found = pareto.hypervolume_monte_carlo(front, reference, key=key)
    truth = pareto.hypervolume_monte_carlo(*wide, key=key)
    assert found == truth
    assert found[1] > 0
