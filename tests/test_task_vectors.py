"""Task vectors and the linear merge, against NumPy."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mapjax as mj
from mapjax import task_vectors


def random_tree(seed, dtype="float32"):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape)).astype(dtype)

    return {"layer": {"w": draw(3, 4), "b": draw(4)}, "kernel": [draw(2, 2, 3, 1)]}


def numpy_merge(base, experts, c):
    """Follow the definition in float64."""

    def one(b, *e):
        b64 = np.asarray(b, np.float64)
        return b64 + sum(
            x * (np.asarray(v, np.float64) - b64) for x, v in zip(c, e, strict=True)
        )

    return jax.tree.map(one, base, *experts)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-6), ("bfloat16", 2e-2), ("float16", 3e-3), ("float64", 1e-14)],
)
def test_merge_is_the_definition_and_keeps_dtypes(dtype, tolerance, x64):
    base, *experts = (random_tree(seed, dtype) for seed in range(4))
    tv = mj.TaskVectors.from_params(base, experts)
    c = [0.5, -0.25, 0.75]
    merged = mj.merge(tv, c)
    for got, want in zip(
        jax.tree.leaves(merged), jax.tree.leaves(numpy_merge(base, experts, c)), strict=True
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(got, np.float64), want, rtol=0, atol=4 * tolerance
        )


def test_low_precision_sums_are_not_rounded_on_the_way():
    # In bfloat16 arithmetic 1 + 1/512 is 1, sixteen times over; in float32 it is 1 + 1/32.
    base = {"w": jnp.ones(3, jnp.bfloat16)}
    experts = [{"w": jnp.full(3, 2, jnp.bfloat16)} for _ in range(16)]
    tv = mj.TaskVectors.from_params(base, experts)
    merged = mj.merge(tv, jnp.full(16, 1 / 512))
    np.testing.assert_array_equal(np.asarray(merged["w"], np.float32), 1 + 1 / 32)


def test_zeros_give_the_base_and_one_hots_the_experts():
    base, a, b = (random_tree(seed) for seed in range(3))
    tv = mj.TaskVectors.from_params(base, {"a": a, "b": b})
    assert tv.names == ("a", "b")
    assert tv.num_tasks == 2
    for c, want in [([0.0, 0.0], base), ([1.0, 0.0], a), ([0.0, 1.0], b)]:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), mj.merge(tv, c), want
        )


def test_norms_and_cosines_are_numpys():
    base, *experts = (random_tree(seed) for seed in range(4))
    tv = mj.TaskVectors.from_params(base, experts)
    flat = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in [base, *experts]
    ]
    v = np.stack([e - flat[0] for e in flat[1:]]).astype(np.float64)
    norms = np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(tv.norms(), norms, rtol=1e-6)
    np.testing.assert_allclose(
        tv.cosine_similarity(), (v @ v.T) / np.outer(norms, norms), atol=1e-6
    )


def test_an_expert_that_is_the_base_has_no_direction():
    tv = mj.TaskVectors.from_params(random_tree(0), [random_tree(0), random_tree(1)])
    np.testing.assert_array_equal(tv.norms()[0], 0)
    np.testing.assert_array_equal(tv.cosine_similarity()[0], 0)


def test_a_batch_is_a_vmap():
    base, *experts = (random_tree(seed) for seed in range(4))
    tv = mj.TaskVectors.from_params(base, experts)
    c = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    batch = jax.vmap(mj.merge, (None, 0))(tv, c)
    for k in range(5):
        jax.tree.map(
            lambda x, y, k=k: np.testing.assert_allclose(x[k], y, atol=1e-6),
            batch,
            mj.merge(tv, c[k]),
        )


def test_merge_traces_once_and_differentiates():
    traces = []

    class Counting(eqx.Module):
        w: jax.Array

        def tree(self):
            return self.w

    tv = mj.TaskVectors.from_params(Counting(jnp.zeros(3)), [Counting(jnp.arange(3.0))])

    @jax.jit
    def total(c):
        traces.append(c)
        return jnp.sum(mj.merge(tv, c).w)

    assert float(total(jnp.array([2.0]))) == 6
    assert float(total(jnp.array([3.0]))) == 9
    assert len(traces) == 1
    np.testing.assert_allclose(jax.grad(total)(jnp.array([0.1])), [3.0])


def test_derivatives_are_those_of_a_linear_map(x64):
    rng = np.random.default_rng(0)
    tv = mj.TaskVectors.from_params(
        *(lambda x: (x[0], list(x[1:])))(rng.normal(size=(4, 2, 3)))
    )
    c = jnp.asarray(rng.random((5, 3)))

    def energy(c, tv):
        return jnp.sum(mj.merge(tv, c) ** 2)

    def plain(c, tv):
        return jnp.sum((tv.base + jnp.tensordot(c, tv.vectors, 1)) ** 2)

    for transform in (
        lambda f: jax.vmap(jax.grad(f), (0, None)),
        lambda f: jax.vmap(jax.jacfwd(f), (0, None)),
        lambda f: jax.vmap(jax.hessian(f), (0, None)),
        lambda f: jax.grad(lambda c, tv: jax.vmap(f, (0, None))(c, tv).sum()),
        lambda f: jax.vmap(jax.grad(f, argnums=1, allow_int=True), (0, None)),
    ):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10),
            transform(energy)(c, tv),
            transform(plain)(c, tv),
        )


def test_public_merge_does_not_retrace_for_new_numbers():
    tv = mj.TaskVectors.from_params(jnp.zeros(7), [jnp.ones(7)])
    mj.merge(tv, [0.25])
    cache: Any = task_vectors._merge
    before = cache._cached._cache_size()
    for x in (0.5, 0.75, 1.0):
        mj.merge(tv, [x])
    assert cache._cached._cache_size() == before


class WithNorm(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def test_nnx_state_goes_in_and_comes_out():
    states = [nnx.state(WithNorm(nnx.Rngs(seed))) for seed in range(3)]
    tv = mj.TaskVectors.from_params(states[0], states[1:])
    merged = mj.merge(tv, [0.0, 1.0])
    assert isinstance(merged, nnx.State)
    got, want = (nnx.to_pure_dict(s)["linear"]["kernel"] for s in (merged, states[2]))
    np.testing.assert_allclose(got, want, atol=1e-6)
    reasons = set(tv.left_alone.values())
    assert reasons == {"batch statistics", "uint32 leaf", "extended dtype key<fry>"}
    assert len(tv.left_alone) == 4
    model = nnx.merge(nnx.graphdef(WithNorm(nnx.Rngs(0))), merged)
    assert model.linear(jnp.ones((1, 3))).shape == (1, 4)


def test_linen_batch_statistics_are_left_alone_unless_asked_for():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.BatchNorm(use_running_average=True)(linen.Dense(4)(x))

    trees: list = [Model().init(jax.random.key(s), jnp.ones((2, 3))) for s in range(2)]
    trees[1] = {
        **trees[1],
        "batch_stats": jax.tree.map(lambda x: x + 1.0, trees[1]["batch_stats"]),
    }
    kept = mj.TaskVectors.from_params(trees[0], trees[1:])
    np.testing.assert_array_equal(
        mj.merge(kept, [1.0])["batch_stats"]["BatchNorm_0"]["mean"], 0.0
    )
    assert list(kept.left_alone.values()) == ["batch statistics"] * 2
    asked = mj.TaskVectors.from_params(trees[0], trees[1:], statistics=True)
    np.testing.assert_array_equal(
        mj.merge(asked, [1.0])["batch_stats"]["BatchNorm_0"]["mean"], 1.0
    )
    assert asked.left_alone == {}


def test_equinox_modules_and_dataclasses():
    models = [eqx.nn.MLP(2, 3, 4, 2, key=jax.random.key(s)) for s in range(3)]
    tv = mj.TaskVectors.from_params(models[0], models[1:])
    x = jnp.ones(2)
    np.testing.assert_allclose(mj.merge(tv, [1.0, 0.0])(x), models[1](x), atol=1e-6)
    assert set(tv.left_alone.values()) == {"not an array"}

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Pair:
        w: jax.Array
        step: jax.Array

    base, expert = Pair(jnp.zeros(2), jnp.array(1)), Pair(jnp.ones(2), jnp.array(5))
    tv = mj.TaskVectors.from_params(base, [expert])
    merged = mj.merge(tv, [0.5])
    np.testing.assert_array_equal(merged.w, 0.5)
    assert int(merged.step) == 1
    assert tv.left_alone == {".step": "int32 leaf"}


def test_wider_experts_give_back_the_dtype_of_the_base():
    tv = mj.TaskVectors.from_params(jnp.ones(2, jnp.bfloat16), [jnp.full(2, 1.001)])
    assert tv.vectors.dtype == jnp.float32
    np.testing.assert_allclose(tv.vectors[0], 0.001, rtol=1e-4)
    assert mj.merge(tv, [1.0]).dtype == jnp.bfloat16


def test_a_merge_keeps_shardings():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    sharding = NamedSharding(mesh, PartitionSpec("model", "data"))
    trees = [jax.device_put(jnp.full((4, 6), float(s)), sharding) for s in range(3)]
    tv = mj.TaskVectors.from_params(trees[0], trees[1:])
    merged = mj.merge(tv, [0.5, 0.5])
    assert merged.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(merged, 1.5)


BASE = {"a": jnp.ones(2), "b": jnp.ones((2, 3))}


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ({"a": jnp.ones(2)}, r"'x' lacks \['b'\], which the base has"),
        ({**BASE, "c": jnp.ones(1)}, r"'x' has \['c'\], which the base lacks"),
        (
            {"a": jnp.ones(2), "B": jnp.ones((2, 3))},
            r"lacks \['b'\].*has \['B'\].*renamed\?",
        ),
        (
            {**BASE, "b": jnp.ones((3, 2))},
            r"\['b'\] has shape \(3, 2\) in expert 'x' but \(2, 3\)",
        ),
        (
            {**BASE, "a": jnp.ones(2, int)},
            r"\['a'\] has dtype int32 in expert 'x' but float32",
        ),
        (
            {**BASE, "a": "weights"},
            r"\['a'\] is an array in the base but a str in expert 'x'",
        ),
        (
            {**BASE, "a": jnp.array([1, jnp.nan])},
            r"\['a'\] of expert 'x' holds NaN or infinite",
        ),
        (jnp.ones(2), r"'x' is an array, not a tree.*as `\{name: parameters, \.\.\.\}`"),
        (None, r"'x' lacks \['a'\], \['b'\], which the base has"),
    ],
)
def test_an_expert_that_does_not_fit_is_named(expert, message):
    with pytest.raises(ValueError, match=message):
        mj.TaskVectors.from_params(BASE, {"x": expert})


def test_flat_names_beside_a_nested_tree_are_told_how_to_load():
    make = mj.TaskVectors.from_params
    nested = {"l0": {"w": jnp.ones(2), "b": jnp.ones(1)}, "scale": jnp.ones(1)}
    flat = {"l0.w": jnp.ones(2), "l0.b": jnp.ones(1), "scale": jnp.ones(1)}
    remedy = r'Load it nested: `mapjax\.io\.load\(path, separator="\."\)`, or `separator'
    with pytest.raises(ValueError, match=f"names of expert 'x' are flat. {remedy}") as it:
        make(nested, {"x": flat})
    assert "renamed" not in str(it.value)
    with pytest.raises(ValueError, match=f"names of the base are flat. {remedy}"):
        make(flat, {"x": nested})


def test_other_bad_input():
    make = mj.TaskVectors.from_params
    with pytest.raises(ValueError, match="`experts` is empty"):
        make(BASE, [])
    with pytest.raises(ValueError, match=r"unique, but \['x'\] come more than once"):
        make(BASE, [BASE, BASE], names=["x", "x"])
    with pytest.raises(ValueError, match="`names` is 'a', one string"):
        make(BASE, [BASE], names="a")
    with pytest.raises(ValueError, match="1 entries for 2 experts"):
        make(BASE, [BASE, BASE], names=["x"])
    with pytest.raises(ValueError, match="a mapping has its own"):
        make(BASE, {"x": BASE}, names=["x"])
    with pytest.raises(ValueError, match=r"of the base holds NaN or infinite"):
        make({"w": jnp.array([jnp.inf])}, [{"w": jnp.ones(1)}])
    with pytest.raises(ValueError, match=r"no leaf that can be merged.*int32 leaf"):
        make({"w": jnp.ones(1, int)}, [{"w": jnp.ones(1, int)}])

    shapes = {"w": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(ValueError, match=r"no leaf that can be merged.*\['w'\]"):
        make(shapes, [shapes])
    with pytest.raises(ValueError, match=r"\(root\) has shape \(3,\) in expert"):
        make(jnp.ones(2), [jnp.ones(3)])
    wrong: Any
    for wrong in (jnp.array([1j]), [None]):
        with pytest.raises(ValueError, match=r"must be real numbers, one per expert.*'x'"):
            mj.merge(make(BASE, {"x": BASE}), wrong)

    class NoTree:
        pass

    with pytest.raises(
        ValueError, match=r"NoTree, which JAX does not see as a pytree.*register"
    ):
        make(NoTree(), [NoTree()])
    with pytest.raises(
        ValueError, match=r"shape \(3,\), but there are 1 experts.*shape \(1,\)"
    ):
        mj.merge(make(BASE, [BASE]), [1.0, 2.0, 3.0])
    with pytest.warns(UserWarning, match=r"\['w'\] is float64 and was narrowed to float32"):
        make({"w": np.ones(2)}, [{"w": jnp.ones(2)}])


def test_vectors_can_be_kept_wider_than_the_leaves():
    base = {"w": jnp.linspace(-2, 2, 50).astype(jnp.bfloat16)}
    expert = {"w": jnp.linspace(-1, 3.3, 50).astype(jnp.bfloat16)}
    rounded = mj.TaskVectors.from_params(base, [expert])
    exact = mj.TaskVectors.from_params(base, [expert], dtype=jnp.float32)
    assert rounded.vectors["w"].dtype == jnp.bfloat16
    assert exact.vectors["w"].dtype == jnp.float32
    assert not np.array_equal(mj.merge(rounded, [1.0])["w"], expert["w"])
    merged = mj.merge(exact, [1.0])["w"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged, expert["w"])
    # "At least": wider leaves stay as wide as they are.
    wider = jax.tree.map(lambda x: x.astype(jnp.float32), (base, expert))
    kept = mj.TaskVectors.from_params(wider[0], [wider[1]], dtype="bfloat16")
    assert kept.vectors["w"].dtype == jnp.float32
    for dtype in (int, "banana"):
        with pytest.raises(ValueError, match="kept in a floating-point dtype: pass one"):
            mj.TaskVectors.from_params(base, [expert], dtype=dtype)


@pytest.mark.parametrize("other", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float32"])
def test_leaves_of_eight_bits_are_merged(other):
    def of(seed, dtype):
        values = np.random.default_rng(seed).normal(size=20)
        return {"w": jnp.asarray(values, jnp.float32).astype(dtype)}

    base, expert, last = of(0, "float8_e4m3fn"), of(1, other), of(2, "float8_e4m3fn")
    tv = mj.TaskVectors.from_params(base, [expert, last], dtype=jnp.float32)
    c = [0.5, 0.25]
    trees = [np.asarray(x["w"], np.float64) for x in (base, expert, last)]
    want = trees[0] + 0.5 * (trees[1] - trees[0]) + 0.25 * (trees[2] - trees[0])
    merged = mj.merge(tv, c)["w"]
    assert merged.dtype == jnp.float8_e4m3fn
    # Rounded once: to the nearest that three bits of mantissa allow.
    np.testing.assert_allclose(np.asarray(merged, np.float64), want, rtol=0.0626, atol=2e-3)
    np.testing.assert_allclose(
        tv.norms()[0], np.linalg.norm(trees[1] - trees[0]), rtol=1e-5
    )
    by_default = mj.TaskVectors.from_params(base, [expert]).vectors["w"]
    assert by_default.dtype == ("float32" if other == "float32" else "bfloat16")


def test_differences_that_overflow_are_refused():
    base = {"v": jnp.ones(2, "float16"), "w": jnp.array([0, 6e4], "float16")}
    experts = {"x": base, "y": jax.tree.map(jnp.negative, base)}
    make = mj.TaskVectors.from_params
    with pytest.raises(
        ValueError, match=r"\['w'\] of expert 'y'.*overflows float16.*`dtype=jnp.float32`"
    ):
        make(base, experts)
    merged = mj.merge(make(base, experts, dtype=jnp.float32), [0.0, 1.0])
    np.testing.assert_array_equal(merged["w"], experts["y"]["w"])
    # Not looked at while tracing.
    assert not np.isfinite(jax.jit(lambda *x: make(*x).vectors["w"])(base, experts)).all()
    small = jnp.array([384.0], "float8_e4m3fn")
    np.testing.assert_array_equal(make(small, [-small]).vectors.astype(float), -768)
