"""What all parts read alike: the ends of a box, wherever it is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax import design, search
from mapjax._checks import read_bounds
from mapjax._run import Run

KEY = jax.random.key(0)


def never(c):
    raise AssertionError("evaluated")


def two_corners(c):
    return jnp.stack([jnp.sum(c**2), jnp.sum((c - 1) ** 2)])


def tune(bounds):
    tv = mj.TaskVectors.from_params(jnp.zeros((2, 2)), [jnp.eye(2), jnp.ones((2, 2))])
    tasks = [mj.Task(n, lambda p, x: x @ p, jnp.eye(2), jnp.arange(2)) for n in "ab"]
    return mj.adamerging(mj.Evaluator(tv, tasks), bounds=bounds, num_steps=1, key=KEY)


def drive(bounds):
    return Run(never, num_coefficients=2, budget=9, bounds=bounds, key=KEY).domain.box


READERS = {
    "driver": drive,
    "tuner": tune,
    "design": lambda bounds: design.sobol(4, 2, bounds=bounds, key=KEY),
    "make_design": lambda b: design.make_design("sobol", 9, 2, bounds=b, key=KEY),
    "evolve": lambda bounds: search.evolve(
        two_corners, search.NSGA3(8, 2, 2), 1, bounds, key=KEY
    ),
    "polish": lambda bounds: search.polish(
        two_corners, np.full((1, 2), 0.5), np.eye(2), bounds, num_steps=1
    ),
}


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (("a", "b"), "two numbers, or two arrays of 2"),
        ((np.zeros(3), 1.0), "two numbers, or two arrays of 2"),
        ((0.5, 0.5), "coefficient 0 are 0.5 and 0.5, but every lower bound must be below"),
        (([0.0, 1.0], 1.0), "coefficient 1 are 1.0 and 1.0, but every lower bound must be"),
        ((0.0, np.nan), "both finite"),
    ],
)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_wrong_bounds_are_told_alike(reader, bounds, message):
    with pytest.raises(ValueError, match=f"`bounds` .*{message}"):
        reader(bounds)


@pytest.mark.parametrize("bounds", [1.0, None, (0, 1, 2), "01", {0: 0.0, 1: 1.0}, {0, 1}])
def test_what_has_no_two_ends_is_refused(bounds):
    with pytest.raises(ValueError, match=r"must be \(lower, upper\)"):
        read_bounds(bounds, 3, np.float32)


def test_simplex_is_offered_where_it_is_taken():
    with pytest.raises(ValueError, match="also take 'simplex'"):
        drive((0.0, np.ones(3)))
    with pytest.raises(ValueError, match="also take 'simplex'"):
        READERS["make_design"]((0.0, np.ones(3)))
    for name in ("tuner", "design", "evolve", "polish"):
        with pytest.raises(ValueError, match=r"two arrays of 2\.$"):
            READERS[name]((0.0, np.ones(3)))


@pytest.mark.parametrize(
    ("bounds", "n", "lower", "upper"),
    [
        ((0, 1), 3, [0, 0, 0], [1, 1, 1]),
        (np.array([0.0, 1.0]), 3, [0, 0, 0], [1, 1, 1]),
        (jnp.array([0.0, 1.0]), 2, [0, 0], [1, 1]),
        (([0.0], [1.0]), 3, [0, 0, 0], [1, 1, 1]),
        ((0.0, [1.0, 2.0]), 2, [0, 0], [1, 2]),
        # Of a square the rows are the ends, not the columns.
        (np.array([[0.0, 0.1], [1.0, 2.0]]), 2, [0, 0.1], [1, 2]),
        ([(0.0, 0.5), (1.0, 2.0)], 2, [0, 0.5], [1, 2]),
    ],
)
def test_two_entries_are_the_lower_and_the_upper_end(bounds, n, lower, upper):
    for dtype in (np.float32, np.float64):
        found = read_bounds(bounds, n, dtype)
        np.testing.assert_array_equal(found, np.array([lower, upper], dtype))
        assert {end.dtype for end in found} == {np.dtype(dtype)}


@pytest.mark.parametrize("name", ["design", "make_design", "evolve", "polish"])
def test_an_array_of_two_numbers_is_a_pair(name):
    one, other = READERS[name](np.array([0.0, 0.5])), READERS[name]((0.0, 0.5))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_box_whose_width_overflows_is_refused():
    with pytest.raises(ValueError, match="both finite"):
        read_bounds((-3e38, 3e38), 2, np.float32)
