import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moocore import is_nondominated
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from mapjax import pareto

POINTS, OBJECTIVES = 24, 3

# Few levels, so that ties, duplicates and constant objectives come up all the time.
levels = st.sampled_from([0.0, 1.0, 2.0, 3.0])
some_scores = hnp.arrays(np.float32, (POINTS, OBJECTIVES), elements=levels)
some_missing = hnp.arrays(
    np.float32,
    (POINTS, OBJECTIVES),
    elements=st.sampled_from([0.0, 1.0, 2.0, np.nan, np.inf, -np.inf]),
)


def brute_force_matrix(scores):
    matrix = np.zeros((len(scores), len(scores)), dtype=bool)
    for i, a in enumerate(scores):
        for j, b in enumerate(scores):
            matrix[i, j] = all(a <= b) and any(a < b)
    return matrix


@given(some_missing)
def test_matrix_and_front_match_the_definition(scores):
    matrix = brute_force_matrix(scores)
    np.testing.assert_array_equal(pareto.dominance_matrix(scores), matrix)
    front = ~matrix.any(axis=0) & ~np.isnan(scores).any(axis=1)
    np.testing.assert_array_equal(pareto.non_dominated(scores), front)


@given(some_scores)
def test_front_matches_moocore(scores):
    truth = is_nondominated(scores, keep_weakly=True)
    np.testing.assert_array_equal(pareto.non_dominated(scores), truth)


@given(some_scores)
def test_ranks_match_pymoo(scores):
    truth = NonDominatedSorting().do(scores, return_rank=True)[1]
    np.testing.assert_array_equal(pareto.non_dominated_ranks(scores), truth)


@given(some_missing, st.permutations(range(POINTS)))
def test_ranks_follow_the_points(scores, order):
    ranks = np.asarray(pareto.non_dominated_ranks(scores))
    np.testing.assert_array_equal(pareto.non_dominated_ranks(scores[order]), ranks[order])
    missing = np.isnan(scores).any(axis=1)
    np.testing.assert_array_equal(ranks == POINTS, missing)


@pytest.mark.parametrize("num_objectives", [2, 5, 8])
def test_ranks_of_a_population_match_pymoo(num_objectives):
    scores = np.random.default_rng(0).random((200, num_objectives)).astype(np.float32)
    truth = NonDominatedSorting().do(scores, return_rank=True)[1]
    np.testing.assert_array_equal(pareto.non_dominated_ranks(scores), truth)


def test_front_of_many_points_matches_moocore_in_bounded_memory():
    scores = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
    np.testing.assert_array_equal(pareto.non_dominated(scores), is_nondominated(scores))
    compiled = jax.jit(pareto.non_dominated).lower(scores).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 20_000**2 / 10


def test_crowding_matches_pymoo():
    rng = np.random.default_rng(0)
    scores = rng.random((40, 3)).astype(np.float32)
    scores[:, 2] = 1.0  # a constant objective adds nothing
    truth = 3 * calc_crowding_distance(scores)  # pymoo takes the mean over objectives
    np.testing.assert_allclose(pareto.crowding_distance(scores), truth, rtol=1e-5)


def test_crowding_measures_each_front_alone():
    scores = np.random.default_rng(1).random((40, 3)).astype(np.float32)
    ranks = np.asarray(pareto.non_dominated_ranks(scores))
    assert ranks.max() >= 2
    crowding = np.asarray(pareto.crowding_distance(scores, ranks))
    for rank in range(ranks.max() + 1):
        truth = 3 * calc_crowding_distance(scores[ranks == rank])
        np.testing.assert_allclose(crowding[ranks == rank], truth, rtol=1e-5)


@given(some_missing)
def test_crowding_is_never_nan(scores):
    ranks = pareto.non_dominated_ranks(scores)
    crowding = np.asarray(pareto.crowding_distance(scores, ranks))
    assert (crowding >= 0).all()
    assert (crowding[np.isnan(scores).any(axis=1)] == 0).all()


@pytest.mark.parametrize(
    ("scores", "front", "ranks"),
    [
        ([[1.0, 2.0]], [True], [0]),
        ([[1.0, 2.0]] * 3, [True] * 3, [0] * 3),
        ([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]], [True, False, True], [0, 1, 0]),
        ([[1.0, np.nan], [2.0, 2.0], [np.nan, 0]], [False, True, False], [3, 0, 3]),
        ([[np.nan, np.nan]] * 3, [False] * 3, [3] * 3),
    ],
    ids=["one point", "identical", "constant objective", "NaN rows", "all NaN"],
)
def test_degenerate_sets(scores, front, ranks):
    scores = jnp.array(scores)
    assert pareto.non_dominated(scores).tolist() == front
    assert pareto.non_dominated_ranks(scores).tolist() == ranks


def test_traced_once_and_batched():
    traces = 0

    @jax.jit
    @jax.vmap
    def ranks(scores):
        nonlocal traces
        traces += 1
        return pareto.non_dominated_ranks(scores), pareto.non_dominated(scores)

    batch = jax.random.uniform(jax.random.key(0), (3, POINTS, OBJECTIVES))
    for scale in (1.0, 2.0):
        together = ranks(scale * batch)
    assert traces == 1
    for scores, rank, front in zip(batch, *together, strict=True):
        np.testing.assert_array_equal(pareto.non_dominated_ranks(scores), rank)
        np.testing.assert_array_equal(front, rank == 0)


def test_dtypes(x64):
    scores = np.random.default_rng(0).random((POINTS, OBJECTIVES))
    close = np.stack([scores[0], scores[0] + 1e-12])
    assert pareto.non_dominated(close).tolist() == [True, False]
    assert pareto.crowding_distance(scores).dtype == jnp.float64
    assert pareto.crowding_distance(scores.astype(np.float32)).dtype == jnp.float32
    assert pareto.non_dominated(np.array([[1, 2], [2, 3]])).tolist() == [True, False]


@pytest.mark.parametrize(
    "function",
    [
        pareto.dominance_matrix,
        pareto.non_dominated,
        pareto.non_dominated_ranks,
        pareto.crowding_distance,
    ],
)
def test_wrong_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"`scores` has shape \(3,\).*`x\[None\]`"):
        function(np.zeros(3))
    with pytest.raises(ValueError, match=r"`scores` has shape \(0, 2\)"):
        function(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="`scores` has dtype complex"):
        function(np.zeros((3, 2), dtype=np.complex64))


def test_wrong_ranks_are_refused():
    with pytest.raises(ValueError, match=r"`ranks` has shape \(2,\).*3 points"):
        pareto.crowding_distance(np.zeros((3, 2)), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="dtype float32, but must be one int"):
        pareto.crowding_distance(np.zeros((3, 2)), np.zeros(3, np.float32))
