"""Low-rank task vectors, against the dense ones they stand for."""

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import mapjax as mj
from mapjax._group import group
from mapjax._lora import from_lora, low_rank, merge_factored
from mapjax._low_rank import LowRank

ROWS, COLUMNS = 12, 10


def draw(rng, *shape):
    return rng.normal(size=shape).astype("f")


def adapters(rng):
    """Two experts, of rank 3 and 2, of which the second lacks an adapter."""
    first = {
        "['dense']": (draw(rng, ROWS, 3), draw(rng, 3, COLUMNS), 6.0),
        "['query']": (draw(rng, ROWS, 3), draw(rng, 3, 2, 5), 1.5),
    }
    return {"a": first, "b": {"['dense']": (draw(rng, ROWS, 2), draw(rng, 2, COLUMNS))}}


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    base = {
        "dense": draw(rng, ROWS, COLUMNS),
        "query": draw(rng, ROWS, 2, 5),
        "bias": draw(rng, COLUMNS),
    }
    given = adapters(rng)
    return base, given, from_lora(base, given)


def numpy_vectors(given):
    """Multiply out in float64, by the definition: alpha / r times A times B."""

    def product(a, b, alpha=None):
        scale = 1.0 if alpha is None else alpha / a.shape[-1]
        return scale * np.tensordot(a.astype(float), b.astype(float), 1)

    first, second = given["a"], given["b"]
    return {
        "dense": np.stack([product(*first["['dense']"]), product(*second["['dense']"])]),
        "query": np.stack([product(*first["['query']"]), np.zeros((ROWS, 2, 5))]),
    }


def test_adapters_merge_as_their_products(example):
    base, given, tv = example
    want = numpy_vectors(given)
    assert tv.names == ("a", "b")
    assert tv.left_alone == {"['bias']": "no vector"}
    c = np.array([0.3, -0.7], "f")
    merged = mj.merge(tv, c)
    np.testing.assert_array_equal(merged["bias"], base["bias"])
    for name, v in want.items():
        leaf = tv.vectors[name]
        assert isinstance(leaf, LowRank)
        assert (leaf.rank, leaf.shape) == (3, (2, *base[name].shape))
        np.testing.assert_allclose(leaf.dense(), v, atol=1e-5)
        np.testing.assert_array_equal(leaf.error, 0)
        np.testing.assert_allclose(
            merged[name], base[name] + np.tensordot(c, v, 1), atol=1e-5
        )
    flat = np.concatenate([v.reshape(2, -1) for v in want.values()], axis=1)
    norms = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(tv.norms(), norms, rtol=1e-5)
    np.testing.assert_allclose(
        tv.cosine_similarity(), flat @ flat.T / np.outer(norms, norms), atol=1e-5
    )


def test_adapters_have_groups_too(example):
    base, given, tv = example
    want = numpy_vectors(given)
    c = np.array([[0.3, 0.9], [-0.7, 0.2]], "f")
    for merge in (mj.merge, lambda tv, c: undo(merge_factored(tv, c))):
        merged = merge(group(tv, "tensor"), c)
        for name, column in (("dense", 0), ("query", 1)):
            np.testing.assert_allclose(
                merged[name],
                base[name] + np.tensordot(c[:, column], want[name], 1),
                atol=1e-5,
            )


def undo(tree):
    """Multiply the factors of a tree out."""
    return jax.tree.map(
        lambda x: x.dense() if hasattr(x, "dense") else x,
        tree,
        is_leaf=lambda x: hasattr(x, "dense"),
    )


def test_bfloat16_factors_are_multiplied_in_float32():
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(draw(rng, *s), jnp.bfloat16) for s in ((ROWS, 4), (4, COLUMNS)))
    base = jnp.asarray(draw(rng, ROWS, COLUMNS), jnp.bfloat16)
    merged = mj.merge(from_lora(base, {"x": {"(root)": (a, b, 8.0)}}), [0.5])
    exact = np.asarray(base, float) + np.asarray(a, float) @ np.asarray(b, float)
    assert merged.dtype == jnp.bfloat16
    want = np.asarray(jnp.asarray(exact, jnp.bfloat16), "f")
    np.testing.assert_array_equal(np.asarray(merged, "f"), want)


def sizes(jaxpr):
    """List the shapes of all intermediate results."""
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)
        yield from (v.aval.shape for v in equation.outvars)


def test_a_merge_holds_one_dense_layer_per_candidate(example):
    *_, tv = example
    found = list(sizes(jax.make_jaxpr(mj.merge)(tv, jnp.ones(2)).jaxpr))
    assert (ROWS, COLUMNS) in found
    assert max(map(math.prod, found)) == ROWS * COLUMNS


def test_candidates_share_the_product_with_the_base(example):
    *_, tv = example
    x, candidates = draw(np.random.default_rng(2), 7, ROWS), jnp.ones((5, 2))

    def outputs(c):
        return x @ merge_factored(tv, c)["dense"]

    found = list(sizes(jax.make_jaxpr(jax.vmap(outputs))(candidates).jaxpr))
    assert (7, COLUMNS) in found  # one product for all candidates
    # Never a merged layer, of one candidate or of all; the largest are outputs.
    assert not {(ROWS, COLUMNS), (5, ROWS, COLUMNS)} & set(found)
    assert max(map(math.prod, found)) == 5 * 7 * COLUMNS
    c = jnp.asarray(draw(np.random.default_rng(3), 5, 2))
    dense = jax.vmap(partial(mj.merge, tv))(c)["dense"]
    np.testing.assert_allclose(jax.vmap(outputs)(c), x @ dense, atol=1e-4)


def test_a_factored_matrix_multiplies_as_layers_of_equinox_do(example):
    rng, (*_, tv) = np.random.default_rng(5), example
    leaf, dense = (f(tv, [0.5, 0.3])["dense"] for f in (merge_factored, mj.merge))
    for x in (draw(rng, COLUMNS), draw(rng, COLUMNS, 3), draw(rng, 2, COLUMNS, 3)):
        np.testing.assert_allclose(leaf @ x, dense @ x, atol=1e-4)
    x, c = jnp.asarray(draw(rng, COLUMNS)), jnp.asarray(draw(rng, 5, 2))
    each = jax.vmap(lambda c: merge_factored(tv, c)["dense"] @ x)
    assert (ROWS, COLUMNS) not in list(sizes(jax.make_jaxpr(each)(c).jaxpr))
    merged = jax.vmap(partial(mj.merge, tv))(c)
    np.testing.assert_allclose(each(c), merged["dense"] @ x, atol=1e-4)
    np.testing.assert_allclose(leaf.T.dense(), dense.T, atol=1e-5)
    np.testing.assert_array_equal(leaf[2:, 1], leaf.dense()[2:, 1])
    assert (leaf.ndim, leaf.dtype) == (2, dense.dtype)


def test_an_evaluator_takes_factors_as_a_rule(example):
    *_, tv = example
    rng = np.random.default_rng(4)
    x, y = draw(rng, 30, ROWS), draw(rng, 30, COLUMNS)

    def predict(params, x):
        return x @ params["dense"] + params["bias"]

    tasks = [mj.Task("t", predict, x, y, mj.metrics.mean_squared_error)]
    rule = jax.tree_util.Partial(merge_factored, tv)
    factored = mj.Evaluator(rule, tasks, num_coefficients=2, chunk_size=4)
    dense = mj.Evaluator(tv, tasks, chunk_size=4)
    c = draw(rng, 6, 2)
    np.testing.assert_allclose(factored(c), dense(c), rtol=1e-5)
    assert factored.coefficient_names == ("a", "b")
    for one, other in zip(
        factored.value_and_jacobian(c), dense.value_and_jacobian(c), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def dense_vectors(rank=4):
    rng = np.random.default_rng(5)
    base = {
        "w": np.zeros((20, 16), "f"),
        "u": np.zeros((20, 16), "f"),
        "kernel": np.zeros((2, 3, 4, 24), "f"),
        "small": np.zeros((2, 2), "f"),
        "bias": np.zeros(16, "f"),
    }
    low = draw(rng, 20, rank) @ draw(rng, rank, 16)
    experts = [
        {k: draw(rng, *v.shape) for k, v in base.items()} | {"u": low} for _ in range(2)
    ]
    return mj.TaskVectors.from_params(base, experts)


def test_the_best_factors_are_those_of_the_singular_values():
    tv = dense_vectors()
    low = low_rank(tv, rank=5)
    for name, rows in (("w", 20), ("kernel", 24)):
        for i, m in enumerate(np.asarray(tv.vectors[name], float)):
            u, s, vt = np.linalg.svd(m.reshape(rows, -1), full_matrices=False)
            best = (u[:, :5] * s[:5]) @ vt[:5]
            leaf = low.vectors[name]
            assert leaf.rank == 5
            np.testing.assert_allclose(leaf.dense()[i], best.reshape(m.shape), atol=1e-4)
            lost = np.linalg.norm(m.reshape(rows, -1) - best) / np.linalg.norm(m)
            np.testing.assert_allclose(leaf.error[i], lost, rtol=1e-4)
    np.testing.assert_allclose(low.vectors["u"].error, 0, atol=1e-5)
    # Factors would be no smaller than these.
    assert low.vectors["small"] is tv.vectors["small"]
    assert low.vectors["bias"] is tv.vectors["bias"]
    again = low_rank(low, rank=5)
    np.testing.assert_allclose(
        again.vectors["w"].dense(), low.vectors["w"].dense(), atol=1e-4
    )


def test_energy_takes_the_least_rank_that_is_enough_for_all():
    tv = dense_vectors()
    found = low_rank(group(tv, "w|u"), energy=0.7)
    values = np.linalg.svd(np.asarray(tv.vectors["w"], float), compute_uv=False) ** 2
    share = np.cumsum(values, axis=1) / values.sum(axis=1, keepdims=True)
    rank = found.vectors["w"].rank
    assert (share[:, rank - 1] >= 0.7).all()
    assert (share[:, rank - 2] < 0.7).any()
    assert (np.asarray(found.vectors["w"].error) <= np.sqrt(0.3)).all()
    assert found.vectors["u"].rank <= 4
    assert found.groups == group(tv, "w|u").groups
    # All of it: full matrices stay as they are, and a low-rank one is exact.
    whole = low_rank(tv, energy=1 - 1e-9)
    assert whole.vectors["w"] is tv.vectors["w"]
    np.testing.assert_allclose(whole.vectors["u"].dense(), tv.vectors["u"], atol=1e-4)


def test_nothing_comes_of_a_zero_vector():
    same = np.ones((8, 8), "f")
    tv = mj.TaskVectors.from_params(same, [same])
    low = low_rank(tv, rank=1)
    np.testing.assert_array_equal(low.vectors.error, 0)
    np.testing.assert_array_equal(low.vectors.dense(), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`rank` is None and `energy` is None: pass one"),
        ({"rank": 2, "energy": 0.5}, "`rank` is 2 and `energy` is 0.5: pass one"),
        ({"rank": 0}, "`rank` is 0, but must be an int of at least 1"),
        ({"rank": 25}, "`rank` is 25, but must be from 1 to 24"),
        ({"energy": 0.0}, r"`energy` is 0.0, but must be a share in \(0, 1\]"),
        ({"energy": 1.5}, "`energy` is 1.5"),
    ],
)
def test_ranks_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        low_rank(dense_vectors(), **options)


def test_ranks_that_are_no_integers_and_vectors_without_matrices_are_refused():
    unchecked: Any = low_rank.__wrapped__  # the type checks of tests would be first
    with pytest.raises(ValueError, match=r"`rank` is 2\.0, but must be an int of at"):
        unchecked(dense_vectors(), rank=2.0)
    flat = mj.TaskVectors.from_params({"bias": jnp.zeros(3)}, [{"bias": jnp.ones(3)}])
    with pytest.raises(ValueError, match="`rank` is 1, but none of `task_vectors` is a"):
        low_rank(flat, rank=1)


A, B, K = np.ones((3, 1), "f"), np.ones((1, 4), "f"), np.ones((3, 2, 1), "f")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "`adapters` is empty"),
        ({"x": {}}, "`adapters` is empty"),
        ({"x": {"w": (A, B)}}, r"'x' for w: the base has no such leaf.*\['w'\]"),
        ({"x": {"['step']": (A, B)}}, r"is not merged \(int32 leaf\)"),
        ({"x": {"['w']": (A,)}}, r"must be `\(A, B\)` or"),
        ({"x": {"['w']": (B.T, A.T)}}, r"shapes \(4, 1\) and \(1, 3\) do not .*\(3, 4\)"),
        ({"x": {"['w']": (A, np.nan * B)}}, r"\['w'\] of B of adapter 'x' holds NaN"),
        (
            {"x": {"['w']": (A, 1j * B)}},
            r"'x' for \['w'\]: B is complex64, but the leaf is f",
        ),
        ({"x": {"['w']": (A, "B")}}, r"'x' for \['w'\]: A and B must be arrays of numbers"),
        (
            {"x": {"['w']": (A, B, None)}},
            r"'x' for \['w'\]: alpha is None, but must be one",
        ),
        (
            {"x": {"['w']": (A, B, np.nan)}},
            r"'x' for \['w'\]: alpha is nan, but must be one",
        ),
        ({"x": {"['w']": (A, B, [1.0])}}, r"alpha is \[1.0\], but must be one finite"),
        ({"x": {"['w']": (A[:, :0], B[:0], 1.0)}}, r"'x' for \['w'\] is of rank 0: leave"),
        (
            {"x": {"['k']": (A, np.ones((1, 2, 2)))}, "y": {"['k']": (K, np.ones((1, 2)))}},
            r"'y' for \['k'\]: A has the first 2 of the leaf's axes.* 'x' has 1. Reshape",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused(given, message):
    base = {"w": jnp.zeros((3, 4)), "k": jnp.zeros((3, 2, 2)), "step": jnp.array(1)}
    with pytest.raises(ValueError, match=message):
        from_lora(base, given)


def test_a_base_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"Leaf \(root\) of the base holds NaN"):
        from_lora(jnp.full((3, 4), jnp.nan), {"x": {"(root)": (A, B)}})


@pytest.mark.parametrize("of", [np.asarray, np.ndarray.tolist])
def test_adapters_of_integers_and_lists_are_not_truncated(of):
    a, b = np.arange(3)[:, None], np.arange(4)[None]
    tv = from_lora(jnp.zeros((3, 4)), {"x": {"(root)": (of(a), of(b), 0.5)}})
    np.testing.assert_array_equal(tv.vectors.dense()[0], 0.5 * a * b)
    np.testing.assert_array_equal(mj.merge(tv, [1.0]), 0.5 * a * b)


def test_a_leaf_of_three_axes_multiplies_as_the_dense_one(example):
    *_, tv = example
    c = jnp.array([0.5, 2.0])
    x = draw(np.random.default_rng(6), ROWS, 7, 2)
    want = x @ mj.merge(tv, c)["query"]
    np.testing.assert_allclose(x @ merge_factored(tv, c)["query"], want, atol=1e-5)


def test_norms_of_complex_factors_are_those_of_their_products():
    rng = np.random.default_rng(7)
    pairs = [
        tuple(draw(rng, *s) + 1j * draw(rng, *s) for s in ((ROWS, 2), (2, COLUMNS)))
        for _ in range(2)
    ]
    base = jnp.zeros((ROWS, COLUMNS), "complex64")
    tv = from_lora(base, {"x": {"(root)": pairs[0]}, "y": {"(root)": pairs[1]}})
    x, y = (a @ b for a, b in pairs)
    norms = np.linalg.norm(x), np.linalg.norm(y)
    np.testing.assert_allclose(tv.norms(), norms, rtol=1e-5)
    cosine = np.vdot(x, y).real / math.prod(norms)
    np.testing.assert_allclose(tv.cosine_similarity()[0, 1], cosine, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mj.merge(tv, [0.0, 1.0]), y, rtol=1e-4, atol=1e-4)


def test_factors_that_cancel_have_a_norm():
    rng = np.random.default_rng(8)
    for _ in range(20):  # the rounding of some is below zero
        a, b = draw(rng, ROWS, 2), draw(rng, 1, COLUMNS)
        pair = np.hstack([a, -a]), np.vstack([b, 0.3 * b, b, 0.3 * b])
        tv = from_lora(jnp.zeros((ROWS, COLUMNS)), {"x": {"(root)": pair}})
        np.testing.assert_allclose(tv.norms(), 0, atol=0.02)
        np.testing.assert_array_equal(np.isfinite(tv.cosine_similarity()), True)


def test_the_error_has_the_rounding_of_the_factors():
    rng = np.random.default_rng(9)
    exact = draw(rng, 20, 2) @ draw(rng, 2, 16)
    tv = mj.TaskVectors.from_params(jnp.zeros((20, 16), "bfloat16"), [exact])
    tv = eqx.tree_at(lambda tv: tv.vectors, tv, tv.vectors.astype("bfloat16"))
    low, v = low_rank(tv, rank=2).vectors, np.asarray(tv.vectors[0], float)
    a, b = (np.asarray(x[0], float) for x in (low.a, low.b))
    want = np.linalg.norm(v - a @ b) / np.linalg.norm(v)
    np.testing.assert_allclose(low.error[0], want, rtol=1e-4)
    assert want > 1.1 * np.linalg.norm(np.linalg.svd(v)[1][2:]) / np.linalg.norm(v)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"['w']": (A, B)},
            r"`adapters\[\"\['w'\]\"\]` is a tuple: pass `{name: {key path",
        ),
        (
            [{"['w']": (A, B)}],
            r"`adapters` is a list: pass `{name: {key path: \(A, B, alpha",
        ),
    ],
)
def test_adapters_without_names_are_refused(given, message):
    unchecked: Any = from_lora.__wrapped__  # the type checks of tests would be first
    with pytest.raises(ValueError, match=message):
        unchecked({"w": jnp.zeros((3, 4))}, given)


def test_complex_inputs_keep_their_imaginary_part():
    rng = np.random.default_rng(0)
    a, b, c, x, y = (
        jnp.asarray(draw(rng, *s)) for s in ((2, 4, 3), (2, 3, 5), (2,), (6, 4), (6, 4))
    )
    factors, x = LowRank(a, b, jnp.ones(2), jnp.zeros(2)), x + 1j * y
    np.testing.assert_allclose(factors.apply(x, c), x @ factors.combine(c), rtol=1e-4)
