import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymoo.indicators.gd import GD
from pymoo.indicators.gd_plus import GDPlus
from pymoo.indicators.igd import IGD
from pymoo.indicators.igd_plus import IGDPlus
from pymoo.indicators.spacing import SpacingIndicator

from mapjax import pareto
from mapjax.pareto import _indicators

DISTANCES = [pareto.gd, pareto.gd_plus, pareto.igd, pareto.igd_plus]
PAIRS = list(zip(DISTANCES, [GD, GDPlus, IGD, IGDPlus], strict=True))

levels = st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan])
some_scores = hnp.arrays(np.float32, (10, 3), elements=levels)
others = hnp.arrays(np.float32, (7, 3), elements=levels)


def present(scores):
    return scores[~np.isnan(scores).any(axis=1)]


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.random((300, 3)).astype(np.float32), rng.random((70, 3)).astype(np.float32)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_distances_match_pymoo(ours, theirs, sets):
    scores, front = sets
    np.testing.assert_allclose(ours(scores, front), theirs(front)(scores), rtol=1e-5)
    # Rows with a NaN, on either side, change nothing.
    missing = np.full((20, 3), np.nan, dtype=np.float32)
    missing[:, 1:] = -5.0
    np.testing.assert_allclose(
        ours(np.concatenate([missing, scores]), np.concatenate([front, missing])),
        theirs(front)(scores),
        rtol=1e-5,
    )


def test_igd_plus_matches_moocore(sets):
    scores, front = sets
    np.testing.assert_allclose(
        pareto.igd_plus(scores, front), moocore.igd_plus(scores, ref=front), rtol=1e-5
    )
    np.testing.assert_allclose(
        pareto.igd(scores, front), moocore.igd(scores, ref=front), rtol=1e-5
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_of_degenerate_sets(distance):
    front = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    assert float(distance(front, front)) == 0
    assert float(distance(front[:1].repeat(2, axis=0), front[:1].repeat(2, axis=0))) == 0
    assert float(distance(jnp.full((2, 2), jnp.nan), front)) == jnp.inf
    assert float(distance(front, jnp.full((2, 2), jnp.nan))) == jnp.inf
    # Infinite scores are no distance away from anything: they are left out.
    assert float(distance(front.at[0, 0].set(-jnp.inf), front[1:].repeat(2, axis=0))) == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_are_finite_differences_and_never_nan(distance, sets, x64):
    scores, front = (np.asarray(x[:5], float) for x in sets)
    slopes = jax.grad(distance)(jnp.asarray(scores), front)
    steps = 1e-6 * np.eye(scores.size).reshape(-1, *scores.shape)
    there = jax.vmap(distance, (0, None))
    differences = (there(scores + steps, front) - there(scores - steps, front)) / 2e-6
    np.testing.assert_allclose(slopes.ravel(), differences, atol=1e-7)
    # Points that meet, and rows that are left out.
    scores[0] = front[0]
    scores[1, 1], scores[2, 2] = np.nan, np.inf
    assert np.isfinite(jax.grad(distance)(jnp.asarray(scores), front)).all()


@given(some_scores)
def test_igd_plus_rewards_dominance(scores):
    front = np.eye(3, dtype=np.float32)
    better = np.maximum(scores - 1, 0)
    assert pareto.igd_plus(better, front) <= pareto.igd_plus(scores, front)


def test_spacing_matches_pymoo(sets):
    scores = sets[0]
    # Pymoo divides by the number of points, Schott by one less.
    truth = SpacingIndicator()(scores) * np.sqrt(300 / 299)
    np.testing.assert_allclose(pareto.spacing(scores), truth, rtol=1e-5)


@pytest.mark.parametrize(
    ("scores", "truth"),
    [
        ([[1.0, 2.0], [np.nan, 1.0], [np.nan, 5.0]], 0.0),
        ([[1.0, 2.0]] * 3, 0.0),
        ([[np.nan, 1.0]] * 3, 0.0),
        ([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]], np.std([1, 1, 2], ddof=1)),
        ([[0.0, 0.0], [1.0, 0.0], [np.inf, 0.0]], 0.0),
    ],
    ids=["one point", "identical", "all NaN", "constant objective", "infinite"],
)
def test_spacing_of_degenerate_sets(scores, truth):
    np.testing.assert_allclose(pareto.spacing(jnp.array(scores)), truth, rtol=1e-6)


@given(some_scores, others)
def test_coverage_matches_the_definition(a, b):
    covered = [any(all(p <= q) for p in a) for q in present(b)]
    truth = np.mean(covered) if covered else 0.0
    np.testing.assert_allclose(pareto.coverage(a, b), truth, rtol=1e-6)


@given(some_scores, others)
def test_win_rate_matches_the_definition(a, b):
    wins = present(a)[:, None] < present(b)[None, :]
    truth = wins.mean(axis=(0, 1)) if wins.size else np.zeros(3)
    np.testing.assert_allclose(pareto.win_rate(a, b), truth, rtol=1e-6)


def test_coverage_of_itself_and_of_nothing():
    scores = jnp.array([[0.0, 1.0], [1.0, 1.0], [jnp.nan, 0.0]])
    assert float(pareto.coverage(scores, scores)) == 1
    assert float(pareto.coverage(scores, scores + jnp.nan)) == 0
    assert float(pareto.coverage(scores + jnp.nan, scores)) == 0


@pytest.mark.parametrize("indicator", [*DISTANCES, pareto.coverage, pareto.win_rate])
def test_traced_once_and_batched(indicator, sets):
    traces = 0

    @jax.jit
    @jax.vmap
    def together(a, b):
        nonlocal traces
        traces += 1
        return indicator(a, b)

    a, b = sets[0].reshape(3, 100, 3), sets[1][:60].reshape(3, 20, 3)
    for scale in (1.0, 2.0):
        values = together(a, scale * b)
    assert traces == 1
    for row in range(3):
        np.testing.assert_allclose(indicator(a[row], 2 * b[row]), values[row], rtol=1e-5)


@pytest.mark.parametrize(("points", "distance"), list(enumerate(DISTANCES, 5)))
def test_calls_of_one_shape_share_a_trace(points, distance, monkeypatch):
    traces = 0
    finite = _indicators._finite

    def counting(scores):
        nonlocal traces
        traces += 1
        return finite(scores)

    monkeypatch.setattr(_indicators, "_finite", counting)
    for scale in (1.0, 2.0, 3.0):  # of a shape that no other test has
        distance(np.full((points, 2), scale), np.zeros((points, 2)))
    assert traces == 2  # once per set


def test_double_precision(x64, sets):
    scores, front = (points.astype(np.float64) for points in sets)
    for ours, theirs in PAIRS:
        value = ours(scores, front)
        assert value.dtype == jnp.float64
        assert float(value) == pytest.approx(theirs(front)(scores), rel=1e-12)


@pytest.mark.parametrize(
    ("indicator", "names"),
    [(distance, ("scores", "front")) for distance in DISTANCES]
    + [(pareto.coverage, ("a", "b")), (pareto.win_rate, ("a", "b"))],
)
def test_wrong_sets_are_refused(indicator, names):
    first, second = names
    with pytest.raises(
        ValueError, match=f"`{first}` has 2 objectives and `{second}` has 3"
    ):
        indicator(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=rf"`{second}` has shape \(4,\)"):
        indicator(np.zeros((4, 2)), np.zeros(4))


def test_wrong_points_have_no_spacing():
    with pytest.raises(ValueError, match=r"`scores` has shape \(4,\)"):
        pareto.spacing(np.zeros(4))


def test_shares_of_many_pairs_are_counted_in_more_than_half_precision():
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 500, (300, 2)).astype(np.float16) for _ in range(2))
    wins = (a[:, None] < b).mean(axis=(0, 1))
    np.testing.assert_allclose(pareto.win_rate(a, b), wins, rtol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_scores_of_half_precision_have_indicators_of_single(dtype, sets):
    narrow = [jnp.asarray(points).astype(dtype) for points in sets]
    wide = [points.astype(jnp.float32) for points in narrow]
    draws = jnp.stack([narrow[0], narrow[0] + 1])
    levels = jnp.linspace(0, 1, 5, dtype=dtype)
    for found, want in [
        *[(f(*narrow), f(*wide)) for f in (*DISTANCES, pareto.coverage, pareto.win_rate)],
        *[(f(narrow[0]), f(wide[0])) for f in (pareto.spacing, pareto.crowding_distance)],
        (
            pareto.probability_non_dominated(draws),
            np.where(pareto.non_dominated(wide[0]), 1, 0),
        ),
        (
            pareto.attainment_band(draws[..., :2], levels)[0],
            pareto.attainment_band(draws[..., :2].astype(float), levels.astype(float))[0],
        ),
    ]:
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, want)


def test_draws_of_integers_have_shares_that_are_none():
    draws = np.array([[[0, 1], [1, 2]], [[0, 1], [1, 0]]])
    assert pareto.probability_non_dominated(draws).tolist() == [1.0, 0.5]
