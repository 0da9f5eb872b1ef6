"""Designs: what all of them promise, and each against its own truth."""

from itertools import product

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.stats import qmc

from mapjax import design
from mapjax.design import DESIGNS, make_design

KEY = jax.random.key(0)


def design_matrix(c):
    """Quadratic basis: 1, c_i, c_i c_j with i <= j."""
    i, j = np.triu_indices(c.shape[1])
    c = np.asarray(c, np.float64)
    return np.concatenate([np.ones((len(c), 1)), c, c[:, i] * c[:, j]], axis=1)


def unknowns(n):
    return (n + 1) * (n + 2) // 2


@pytest.mark.parametrize("n", range(2, 13))
@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_determines_a_quadratic(name, n):
    p = unknowns(n)
    for count in (p, 2 * p):
        for seed in range(3):
            points = np.asarray(make_design(name, count, n, key=jax.random.key(seed)))
            assert points.shape == (count, n)
            assert points.dtype == np.float32
            assert ((points >= 0) & (points <= 1)).all()
            assert len(np.unique(points, axis=0)) == count
            assert np.linalg.matrix_rank(design_matrix(points)) == p
            start = np.concatenate([design.corners(n), np.full((1, n), 1 / n)])
            np.testing.assert_allclose(points[: n + 2], start[:count], rtol=1e-6)


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_without_corners_determines_a_quadratic(name):
    for n in (2, 5, 9):
        points = DESIGNS[name](2 * unknowns(n), n, key=KEY)
        assert points.shape == (2 * unknowns(n), n)
        assert np.linalg.matrix_rank(design_matrix(points)) == unknowns(n)


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_is_a_function_of_its_key(name):
    first, again = (make_design(name, 30, 3, key=KEY) for _ in range(2))
    other = make_design(name, 30, 3, key=jax.random.key(1))
    assert (first == again).all()
    assert not np.array_equal(np.sort(first, axis=0), np.sort(other, axis=0))


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (0.0, 0.4),
        (-0.5, 1.5),
        ([0.1, 0.0, -1.0], [0.3, 1.0, 2.0]),
        (0.6, 0.9),
        (-2.0, -1.0),
        (0.0, 1e-3),
    ],
)
def test_a_design_stays_in_its_box(name, lower, upper):
    bounds = (np.float32(lower), np.float32(upper))
    points = np.asarray(DESIGNS[name](30, 3, bounds=bounds, key=KEY))
    assert ((points >= bounds[0]) & (points <= bounds[1])).all()
    assert len(np.unique(points, axis=0)) == 30
    centred = (points - points.mean(0)) / points.std(0)
    assert np.linalg.matrix_rank(design_matrix(centred)) == unknowns(3)


def test_base_and_experts_come_first_even_outside_the_box():
    points = np.asarray(make_design("sobol", 12, 3, bounds=(0.0, 0.5), key=KEY))
    np.testing.assert_allclose(points[:4], design.corners(3))
    np.testing.assert_allclose(points[4], 1 / 3, rtol=1e-6)
    assert points[5:].max() <= 0.5


@pytest.mark.parametrize("name", DESIGNS)
def test_small_counts_and_a_single_coefficient(name):
    assert make_design(name, 1, 3, key=KEY).tolist() == [[0, 0, 0]]
    assert make_design(name, 3, 3, key=KEY).tolist() == design.corners(3)[:3].tolist()
    points = np.asarray(make_design(name, 6, 1, key=KEY))
    assert points[:2].tolist() == [[0], [1]]
    assert len(np.unique(points)) == 6
    assert DESIGNS[name](1, 2, key=KEY).shape == (1, 2)


def test_corners_are_the_base_and_the_experts():
    assert design.corners(3).tolist() == [[0, 0, 0], *np.eye(3).tolist()]


@pytest.mark.parametrize("count", [64, 90])
def test_sobol_is_evener_than_chance(count):
    sobol = qmc.discrepancy(np.asarray(design.sobol(count, 5, key=KEY), np.float64))
    chance = [
        qmc.discrepancy(np.random.default_rng(seed).random((count, 5)))
        for seed in range(20)
    ]
    assert sobol < 0.5 * min(chance)


def test_latin_hypercube_hits_every_slice_once():
    points = np.asarray(
        design.latin_hypercube(40, 4, bounds=(-1.0, 3.0), key=KEY), np.float64
    )
    slices = np.floor((points + 1) / 4 * 40).astype(int)
    assert (np.sort(slices, axis=0) == np.arange(40)[:, None]).all()


@pytest.mark.parametrize(("n", "degree"), [(2, 2), (3, 2), (3, 3), (5, 2)])
def test_simplex_lattice_is_the_enumerated_one(n, degree):
    grid = np.array(list(product(range(degree + 1), repeat=n)))
    grid = grid[grid.sum(axis=1) <= degree] / degree
    smaller = [np.asarray(design.corners(n))] if degree > 1 else []
    if degree == 3:
        halves = np.array(list(product(range(3), repeat=n)))
        smaller.append(halves[halves.sum(axis=1) <= 2] / 2)
    expected = np.unique(np.float32(np.concatenate([grid, *smaller])), axis=0)
    points = np.asarray(design.simplex_lattice(len(expected), n, key=KEY))
    np.testing.assert_allclose(np.unique(points, axis=0), expected, rtol=1e-6)
    assert set(map(tuple, points[: n + 1])) == set(map(tuple, design.corners(n).tolist()))


def test_dirichlet_is_even_on_the_simplex():
    points = np.asarray(design.dirichlet(2000, 4, key=KEY), np.float64)
    for marginal in (*points.T, 1 - points.sum(axis=1)):
        assert stats.kstest(marginal, stats.beta(1, 4).cdf).pvalue > 1e-3


def test_mixture_amount_is_even_in_proportions_and_amount():
    points = design.mixture_amount(2000, 4, bounds=(0.0, 9.0), amounts=(0.5, 2.5), key=KEY)
    points = np.asarray(points, np.float64)
    amount = points.sum(axis=1)
    assert stats.kstest(amount, stats.uniform(0.5, 2.0).cdf).pvalue > 1e-3
    for proportion in (points / amount[:, None]).T:
        assert stats.kstest(proportion, stats.beta(1, 3).cdf).pvalue > 1e-3


def test_mixture_amount_keeps_merges_near_the_experts():
    near, wide = (
        np.asarray(make_design(name, 90, 8, key=KEY)).sum(axis=1)
        for name in ("mixture_amount", "sobol")
    )
    assert near.max() <= 8**0.5 + 1e-5
    assert np.median(near) < 2 < 3.5 < np.median(wide)


@pytest.mark.parametrize(("n", "levels"), [(2, 4), (3, 3), (8, 3)])
def test_mixture_lies_on_a_grid_with_at_least_three_levels(n, levels):
    points = np.asarray(design.mixture(2 * unknowns(n), n, key=KEY), np.float64)
    grid = points * (levels - 1)
    np.testing.assert_allclose(grid, grid.round(), atol=1e-5)
    assert len(np.unique(points[:, 0])) == levels
    assert points[: n + 1].tolist() == design.corners(n).tolist()


def test_mixture_takes_the_whole_grid_if_it_must():
    points = np.asarray(design.mixture(27, 3, key=KEY))
    assert len(np.unique(points, axis=0)) == 27


def test_d_optimal_takes_the_best_of_all_candidates():
    pool = np.random.default_rng(0).random((60, 2)).astype(np.float32)
    points = design.d_optimal(14, 2, candidates=pool, key=KEY)
    chosen = design_matrix(points)
    for k in range(7, 14):
        # By brute force: which candidate, added to those before, raises the determinant?
        before = chosen[:k].T @ chosen[:k]
        gains = [
            np.linalg.slogdet(before + np.outer(row, row))[1]
            for row in design_matrix(pool)
            if not (chosen[:k] == row).all(axis=1).any()
        ]
        taken = np.linalg.slogdet(before + np.outer(chosen[k], chosen[k]))[1]
        assert taken >= max(gains) - 1e-9


@pytest.mark.parametrize("n", [2, 5, 8])
def test_d_optimal_has_the_largest_determinant(n):
    def information(name):
        x = design_matrix(make_design(name, 2 * unknowns(n), n, key=KEY))
        return np.linalg.slogdet(x.T @ x)[1] / unknowns(n)

    best = information("d_optimal")
    assert all(information(name) < best for name in DESIGNS if name != "d_optimal")


def test_d_optimal_reaches_the_known_optimum_of_a_square():
    # The nine points of the 3 x 3 grid, once each, are the best nine distinct ones.
    pool = np.array(list(product((0.0, 0.5, 1.0), repeat=2)))
    pool = np.concatenate([pool, np.random.default_rng(0).uniform(0.2, 0.8, (50, 2))])
    points = np.asarray(design.d_optimal(9, 2, candidates=pool, key=KEY))
    assert set(map(tuple, points)) == set(product((0.0, 0.5, 1.0), repeat=2))


@pytest.mark.parametrize("maker", DESIGNS.values(), ids=DESIGNS)
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 2), {}, "`num_points` is 0, but must be an int of at least 1"),
        ((5, 0), {}, "`num_coefficients` is 0, but must be an int of"),
        ((5, 2), {"bounds": (1.0, 0.0)}, "coefficient 0 are 1.0 and 0.0, but every lower"),
        ((5, 2), {"bounds": (0.0, 0.5, 1.0)}, r"must be \(lower, upper\): two numbers"),
        ((5, 2), {"bounds": (0.0, np.inf)}, "both finite"),
        ((5, 2), {"bounds": (np.zeros(3), 1.0)}, "two arrays of 2"),
        ((5, 2), {"key": jax.random.PRNGKey(0)}, "must be one typed key"),
        ((5, 2), {"key": jax.random.split(KEY)}, "must be one typed key"),
    ],
)
def test_bad_input_says_what_and_where(maker, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        maker(*arguments, **{"key": KEY, **options})


def test_an_unknown_design_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"`design` is 'grid'.*'d_optimal'.*'sobol'"):
        make_design("grid", 5, 2, key=KEY)


def test_corners_need_a_coefficient():
    with pytest.raises(ValueError, match="`num_coefficients` is 0"):
        design.corners(0)


def test_amounts_must_be_in_order():
    with pytest.raises(ValueError, match=r"`amounts` are 1.0 and 0.5"):
        design.mixture_amount(5, 2, amounts=(1.0, 0.5), key=KEY)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (np.zeros((9, 3)), r"`candidates` has shape \(9, 3\).*2 columns"),
        (np.full((9, 2), 1.5), r"`candidates\[0\]` lies outside `bounds`"),
        (np.full((9, 2), np.nan), r"`candidates\[0\]` lies outside `bounds`"),
        (np.full((9, 2), 0.5), "make 4 distinct points, fewer than `num_points`=9"),
    ],
)
def test_bad_candidates_are_refused(candidates, message):
    with pytest.raises(ValueError, match=message):
        design.d_optimal(9, 2, candidates=candidates, key=KEY)


def test_amounts_that_are_asked_for_are_kept_where_there_is_room():
    for n, amounts in ((2, (0.8, 1.0)), (1, (0.5, 1.0))):
        sums = design.mixture_amount(200, n, amounts=amounts, key=KEY).sum(axis=1)
        assert amounts[0] <= sums.min() < sums.max() <= amounts[1]
    # No room for more than a tenth each: filled to the far corner.
    sums = design.mixture_amount(50, 2, bounds=(0, 0.1), amounts=(0.5, 1.0), key=KEY).sum(1)
    assert (sums <= 0.2 + 1e-6).all()


@pytest.mark.parametrize(
    "name", ["axial", "dirichlet", "mixture_amount", "simplex_lattice"]
)
def test_a_box_below_the_base_is_the_mirror_of_one_above(name):
    above, below = (
        DESIGNS[name](30, 4, bounds=bounds, key=KEY) for bounds in ((0, 1), (-1, 0))
    )
    np.testing.assert_array_equal(below, -above)


def test_multiscale_is_densest_near_the_base_on_both_sides():
    sides = (design.multiscale(256, 8, bounds=b, key=KEY) for b in ((0, 1), (-1, 0)))
    means = [float(np.abs(points).mean()) for points in sides]
    assert means == pytest.approx([0.21, 0.21], abs=0.01)
