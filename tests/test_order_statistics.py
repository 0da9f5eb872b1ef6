"""The k-th largest, ranks and standings, against sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mapjax.transforms._order_statistics import (
    _by_bits,
    _histogram,
    _sorted_histogram,
    kth_largest,
    ranks,
    standings,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_kth_largest_is_that_of_a_sort(dtype, x64):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 3, 40)) * 10.0 ** rng.integers(-30, 30, (2, 3, 40))
    values[0, 0, :7] = 0
    values[1, :, 5:9] = values[1, 0, 0]
    values = jnp.asarray(values, dtype)
    rest = jnp.asarray(rng.normal(size=(2, 11)), dtype)
    both = np.concatenate(
        [np.asarray(v, np.float64).reshape(2, -1) for v in (values, rest)], 1
    )

    @jax.jit
    def find(k):
        wide = jnp.promote_types(dtype, "float32")
        values_and_rest = [values.astype(wide), rest.astype(wide)]
        # The way of accelerators runs here as well.
        bit_by_bit = _by_bits(values_and_rest, k, lambda v: v, wide)
        return kth_largest([values, rest], k), bit_by_bit

    for k in (1, 2, 17, 60, 100, 131):
        want = np.sort(both, axis=1)[:, -k]
        for kind in (jnp.int32, jnp.float32):
            for got in find(jnp.asarray(k, kind)):
                np.testing.assert_array_equal(np.asarray(got), want)


def test_what_is_not_a_number_is_below_all_others():
    values = jnp.array([[jnp.nan, 1.0, -jnp.inf, 3.0, -jnp.nan]])
    found = [kth_largest([values], jnp.asarray(k)).item() for k in (1, 2, 3)]
    assert found == [3.0, 1.0, -np.inf]


def test_standings_are_mean_ranks():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 9, 40), 2.0 ** rng.integers(-40, 40, 60)])
    table, kinds = standings(jnp.asarray(x.reshape(4, 25), jnp.float32))
    want = (stats.rankdata(x) - 0.5) / x.size
    np.testing.assert_allclose(
        np.asarray(table)[np.asarray(kinds).ravel()], want, atol=1e-6
    )
    near = jnp.array([1.0, 1.0 + 2**-9, 1.0 + 2**-7])  # told apart by eight digits
    table, kinds = standings(near)
    np.testing.assert_allclose(table[kinds], [1 / 3, 1 / 3, 5 / 6], atol=1e-6)


def test_ranks_are_those_of_numpy():
    x = np.random.default_rng(0).integers(0, 5, (3, 20))
    want = np.argsort(np.argsort(x, axis=1, kind="stable"), axis=1)
    np.testing.assert_array_equal(ranks(jnp.asarray(x, jnp.float32)), want)


def test_both_ways_to_count_agree():
    kinds = jnp.asarray(np.random.default_rng(0).integers(0, 2**16, (50, 60)) // 100)
    want = np.bincount(np.asarray(kinds).ravel(), minlength=2**16)
    for count in (_histogram, _sorted_histogram):
        np.testing.assert_array_equal(count(kinds), want)
    assert _histogram(jnp.array([3, 2**16])).sum() == 1  # the second is no kind
