import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pymoo.decomposition.asf import ASF
from pymoo.decomposition.tchebicheff import Tchebicheff
from pymoo.decomposition.weighted_sum import WeightedSum

from mapjax import pareto
from mapjax.pareto import _picks

POINTS = 30

some_scores = hnp.arrays(
    np.float32, (POINTS, 3), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan])
)
some_weights = hnp.arrays(np.float32, 3, elements=st.sampled_from([0.0, 0.5, 1.0, 4.0]))


def present(scores):
    return ~np.isnan(scores).any(axis=1)


@pytest.fixture
def front():
    points = np.abs(np.random.default_rng(0).normal(size=(POINTS, 3)))
    return (1 - points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def preferences():
    return np.random.default_rng(1).dirichlet(np.ones(3), size=20).astype(np.float32)


def test_weighted_sum_matches_pymoo(front, preferences):
    for preference in preferences:
        truth = WeightedSum()(front, weights=preference).argmin()
        assert pareto.pick_weighted_sum(front, preference) == truth
        assert pareto.pick_weighted_sum(front, 7 * preference) == truth


def test_tchebycheff_matches_pymoo(front, preferences):
    ideal = front.min(axis=0)
    for preference in preferences:
        truth = Tchebicheff()(front, weights=preference, utopian_point=ideal).argmin()
        assert pareto.pick_tchebycheff(front, preference, augmentation=0.0) == truth
        assert pareto.pick_tchebycheff(front, preference, ideal=ideal) == truth


def test_achievement_with_every_aspiration_matches_pymoo(front):
    width = np.ptp(front, axis=0)
    rng = np.random.default_rng(1)
    for goals in rng.uniform(-0.5, 1.5, size=(20, 3)).astype(np.float32):
        truth = ASF()(front, weights=width, utopian_point=goals)
        feasible = (front <= goals).all(axis=1)
        if feasible.any():
            truth = np.where(feasible, truth, np.inf)
        assert pareto.pick_achievement(front, goals, augmentation=0.0) == truth.argmin()


def test_every_point_of_a_concave_front_is_the_tchebycheff_pick_of_a_preference(front):
    ideal = front.min(axis=0) - 0.1
    picks = jax.vmap(lambda w: pareto.pick_tchebycheff(front, w, ideal=ideal))
    assert picks(1 / (front - ideal)).tolist() == list(range(POINTS))


def test_at_least_this_much_on_one_task():
    accuracy = np.array(
        [[0.99, 0.1, 0.1], [0.92, 0.6, 0.5], [0.91, 0.7, 0.1], [0.8, 0.9, 0.9]]
    )
    anything = np.inf
    assert pareto.pick_achievement(-accuracy, [-0.9, anything, anything]) == 1
    # No point has 0.995: the one that misses it least.
    assert pareto.pick_achievement(-accuracy, [-0.995, anything, anything]) == 0
    # Two aspirations that no point meets together: the one whose worst miss is least.
    assert pareto.pick_achievement(-accuracy, [-0.95, -0.7, anything]) == 1
    # Nothing asked for: a balanced point.
    assert pareto.pick_achievement(-accuracy, [anything] * 3) in (1, 3)


@given(some_scores, some_scores)
def test_achievement_prefers_points_that_meet_the_aspirations(scores, goals):
    assume(present(scores).any())
    goals = np.where(np.isnan(goals[0]), np.inf, goals[0])
    pick = int(pareto.pick_achievement(scores, goals))
    assert present(scores)[pick]
    if (scores <= goals).all(axis=1).any():
        assert (scores[pick] <= goals).all()


@given(some_scores, some_weights)
def test_picks_are_optimal_and_never_missing(scores, weights):
    assume(present(scores).any() and weights.any())
    known = np.where(present(scores)[:, None], scores, 0)
    total = np.where(present(scores), (weights * known).sum(axis=1), np.inf)
    assert int(pareto.pick_weighted_sum(scores, weights)) == total.argmin()

    worst = (weights * (known - scores[present(scores)].min(axis=0))).max(axis=1)
    worst = np.where(present(scores), worst, np.inf)
    pick = int(pareto.pick_tchebycheff(scores, weights, augmentation=0.0))
    assert worst[pick] == worst.min()

    front = np.asarray(pareto.non_dominated(scores))
    assert front[int(pareto.pick_knee(scores))]
    if weights.all():
        assert front[int(pareto.pick_tchebycheff(scores, weights))]


def test_knee_is_farthest_from_the_line_through_the_ends():
    x = np.linspace(0.05, 1, POINTS).astype(np.float32)
    curve = np.stack([100 * x, 1 / x], axis=1)
    a, b = curve[0], curve[-1]
    normal = np.array([b[1] - a[1], a[0] - b[0]])
    # Scaled scores: distances in units of each objective's range.
    scaled = (curve - a) / (b - a)
    truth = np.abs(scaled @ [-1, 1]).argmax()
    assert np.abs((curve - a) @ normal).argmax() == truth
    assert pareto.pick_knee(curve) == truth
    # A bulge away from the ideal is no knee.
    assert pareto.pick_knee(-curve[::-1] + [200, 30]) in (0, POINTS - 1)
    # Dominated points and rows with a NaN neither count nor change the scale.
    noise = np.array([[1e4, 1e4], [np.nan, -1e4]], dtype=np.float32)
    assert pareto.pick_knee(np.concatenate([curve, noise])) == truth


PICKS = [
    lambda scores: pareto.pick_weighted_sum(scores, [0.5, 0.5]),
    lambda scores: pareto.pick_tchebycheff(scores, [0.5, 0.5]),
    lambda scores: pareto.pick_achievement(scores, [0.5, np.inf]),
    pareto.pick_knee,
]


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize(
    ("scores", "among"),
    [
        ([[np.nan, 0.0], [1.0, 2.0], [0.0, np.nan]], {1}),
        ([[1.0, 2.0]] * 3, {0}),
        ([[5.0, 2.0], [5.0, 1.0], [5.0, 3.0]], {1}),
        ([[np.inf, 0.0], [np.nan, 0.0], [1.0, 2.0]], {2}),
        ([[np.nan, 0.0], [np.nan, 1.0], [np.inf, np.inf]], {2}),
    ],
    ids=["one point", "identical", "constant objective", "infinite", "all infinite"],
)
def test_degenerate_sets(pick, scores, among):
    assert int(pick(jnp.array(scores))) in among


@pytest.mark.parametrize("pick", PICKS)
def test_nothing_to_pick(pick):
    with pytest.raises(ValueError, match="Every row of `scores` has a NaN"):
        pick(jnp.full((3, 2), jnp.nan))
    assert int(jax.jit(pick)(jnp.full((3, 2), jnp.nan))) == -1


def test_an_objective_of_no_weight_may_be_infinite():
    scores = jnp.array([[jnp.inf, 1.0], [0.0, 2.0]])
    assert pareto.pick_weighted_sum(scores, [0.0, 1.0]) == 0
    assert pareto.pick_tchebycheff(scores, [0.0, 1.0]) == 0


def test_traced_once_and_batched_over_preferences(front, preferences):
    traces = 0

    @jax.jit
    @jax.vmap
    def picks(preference):
        nonlocal traces
        traces += 1
        return (
            pareto.pick_weighted_sum(front, preference),
            pareto.pick_tchebycheff(front, preference),
            pareto.pick_achievement(front, preference),
        )

    for scale in (2.0, 1.0):
        together = picks(scale * preferences)
    assert traces == 1
    for row, preference in enumerate(preferences):
        assert pareto.pick_weighted_sum(front, preference) == together[0][row]
        assert pareto.pick_tchebycheff(front, preference) == together[1][row]
        assert pareto.pick_achievement(front, preference) == together[2][row]


def test_a_sweep_over_any_number_shares_a_trace(monkeypatch):
    traces = 0
    least = _picks._least

    def counting(values, eligible):
        nonlocal traces
        traces += 1
        return least(values, eligible)

    monkeypatch.setattr(_picks, "_least", counting)
    scores = np.eye(7, 2)  # a shape that no other test has
    for number in (0.1, 0.2, 0.3):
        pareto.pick_weighted_sum(scores, [number, 1.0])
        pareto.pick_tchebycheff(scores, [number, 1.0], augmentation=number)
        pareto.pick_achievement(scores, [number, 1.0], augmentation=number)
    assert traces == 3


@pytest.mark.parametrize("pick", [pareto.pick_weighted_sum, pareto.pick_tchebycheff])
@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ([0.5, 0.5, 0.5], r"`preference` has shape \(3,\), but there are 2.*shape \(2,\)"),
        ([0.5, -0.25], "`preference` holds -0.25 at position 1.*0 or more"),
        ([0.0, 0.0], "`preference` is 0 for every objective.*positive"),
        ([0.5, np.nan], "`preference` holds nan at position 1; pass finite"),
        ([np.inf, 0.5], "`preference` holds inf at position 0; pass finite"),
    ],
)
def test_wrong_preferences_are_refused(pick, preference, message):
    with pytest.raises(ValueError, match=message):
        pick(np.zeros((3, 2)), preference)


def test_wrong_aspirations_and_ideals_are_refused():
    scores = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"`aspirations` has shape \(3,\)"):
        pareto.pick_achievement(scores, [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"`aspirations` holds nan .* or plus infinity"):
        pareto.pick_achievement(scores, [0.0, np.nan])
    with pytest.raises(ValueError, match="`aspirations` holds -inf at position 1"):
        pareto.pick_achievement(scores, [0.0, -np.inf])
    with pytest.raises(ValueError, match=r"`ideal` has shape \(1,\)"):
        pareto.pick_tchebycheff(scores, [0.5, 0.5], ideal=[0.0])


@pytest.mark.parametrize("pick", PICKS)
def test_wrong_scores_are_refused(pick):
    with pytest.raises(ValueError, match=r"`scores` has shape \(2,\)"):
        pick(np.zeros(2))
