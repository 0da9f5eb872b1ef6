"""Elementwise and scaling transforms, against the papers' single merges in NumPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mapjax as mj
from mapjax import transforms
from mapjax._tensors import base_tensors, tensors
from mapjax.transforms import _ties

KEY = jax.random.key(7)
SHAPES = {"layer_0": {"kernel": (5, 7), "bias": (7,)}, "layer_1": (2, 2, 3, 4)}
SMALL = {"layer_0": (4, 6), "layer_1": (4, 6)}
DEPTHS = [0, 0, 1]


def draw(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )


def make(num_tasks, shapes, dtype="float32", edit=lambda v: v):
    """Make vectors of different sizes, and a leaf that is not merged."""
    trees = [draw(shapes, seed) for seed in range(num_tasks + 1)]

    def stack(*vectors):
        sized = [0.1 * (i + 1) * v for i, v in enumerate(vectors)]
        return jnp.asarray(edit(np.stack(sized)).astype(jnp.dtype(dtype)))

    base = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, jnp.dtype(dtype))), trees[0])
    vectors = jax.tree.map(stack, *trees[1:])
    names = tuple(f"task_{i}" for i in range(num_tasks))
    return mj.TaskVectors({**base, "step": jnp.array(3)}, {**vectors, "step": None}, names)


def numpy_of(tv):
    """Give the vectors and the base in float64, in one order."""
    wide = [np.asarray(v, np.float64) for v in tensors(tv).values()]
    return wide, [np.asarray(b, np.float64) for b in base_tensors(tv)]


def uniforms(tau):
    """Draw a word for two entries, and exchange its halves for the second."""
    found = []
    for key, v in zip(jax.random.split(KEY, len(tau)), tau, strict=True):
        last = v.shape[-1] if v.ndim > 1 else 1
        shape = (*v.shape[1:-1], -(-last // 2))
        words = [jax.random.bits(k, shape, "uint32") for k in jax.random.split(key, len(v))]
        exchanged = (
            np.asarray(words).view(np.uint16).reshape(*np.shape(words), 2)[..., ::-1]
        )
        exchanged = np.ascontiguousarray(exchanged).view(np.uint32)[..., 0]
        both = np.concatenate([words, exchanged], axis=-1)[..., :last]
        found.append(both.reshape(v.shape) / 2**32)
    return found


class Rule(NamedTuple):
    """A transform next to the published merge it is the parts of."""

    name: str
    transform: Callable[[mj.TaskVectors], mj.TaskVectors]
    merged: Callable[[Any, Any], Any]
    random: bool = False
    homogeneous: bool = True


def depths(tau):
    return DEPTHS if len(tau) == len(DEPTHS) else [0, 1]


RULES = (
    Rule("ties", transforms.ties, lambda t, b: reference.ties(t)),
    Rule(
        "ties global",
        lambda tv: transforms.ties(tv, density=0.35, scope="global"),
        lambda t, b: reference.ties(t, 0.35, "global"),
    ),
    Rule(
        "dare",
        lambda tv: transforms.dare(tv, density=0.4, key=KEY),
        lambda t, b: reference.dare(t, uniforms(t), 0.4),
        random=True,
    ),
    Rule(
        "della",
        lambda tv: transforms.della(tv, density=0.6, window=0.5, key=KEY),
        lambda t, b: reference.della(t, uniforms(t), 0.6, 0.5),
        random=True,
    ),
    Rule(
        "breadcrumbs",
        lambda tv: transforms.breadcrumbs(tv, beta=0.6, gamma=0.1),
        lambda t, b: reference.breadcrumbs(t, 0.6, 0.1),
    ),
    Rule("tall_mask", transforms.tall_mask, lambda t, b: reference.tall_mask(t)),
    Rule(
        "consensus",
        lambda tv: transforms.consensus(tv, agreement=min(2, tv.num_tasks)),
        lambda t, b: reference.consensus(t, 0.4, min(2, len(t[0]))),
    ),
    Rule("pcb", transforms.pcb, lambda t, b: reference.pcb(t), homogeneous=False),
    Rule(
        "pcb global",
        lambda tv: transforms.pcb(tv, density=0.8, scope="global"),
        lambda t, b: reference.pcb(t, 0.8, "global"),
        homogeneous=False,
    ),
    Rule(
        "lines",
        lambda tv: transforms.lines(tv, alpha=0.25, beta=0.5),
        lambda t, b: reference.lines(t, depths(t), 0.25, 0.5),
    ),
    Rule("metagpt", transforms.metagpt, lambda t, b: reference.metagpt(t)),
    Rule("model_stock", transforms.model_stock, lambda t, b: reference.model_stock(t)),
    Rule("magmax", transforms.magmax, lambda t, b: reference.magmax(t)),
    Rule("widen", transforms.widen, reference.widen, homogeneous=False),
)
every_rule = pytest.mark.parametrize("rule", RULES, ids=[r.name for r in RULES])


def assert_law(rule, tv, tolerance):
    """Check that coefficients of one give the published merge."""
    edited = rule.transform(tv)
    tau, base = numpy_of(tv)
    parts, _ = numpy_of(edited)
    for part, before, want in zip(parts, tau, rule.merged(tau, base), strict=True):
        assert np.isfinite(part).all()
        scale = np.abs(before).sum() + 1e-30
        np.testing.assert_allclose(part.sum(0), want, rtol=0, atol=tolerance * scale)
    return edited


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_rule
def test_coefficients_of_one_give_the_published_merge(rule, dtype):
    tv = make(3, SHAPES, dtype)
    edited = assert_law(rule, tv, 1e-6 if dtype == "float32" else 4e-3)
    assert edited.names == tv.names
    for v in tensors(edited).values():
        assert v.dtype == dtype
    # What is left alone and the base are the same arrays, not copies.
    for old, new in zip(
        jax.tree.leaves(tv.base), jax.tree.leaves(edited.base), strict=True
    ):
        assert old.unsafe_buffer_pointer() == new.unsafe_buffer_pointer()
    if dtype == "float32":
        merged = mj.merge(edited, jnp.ones(3))
        tau, base = numpy_of(tv)
        merged = [x for x in jax.tree.leaves(merged) if x.dtype == dtype]
        for got, b, change in zip(merged, base, rule.merged(tau, base), strict=True):
            np.testing.assert_allclose(got, b + change, atol=2e-6)


@every_rule
def test_zero_vectors_and_equal_experts(rule):
    def one_is_zero(v):
        return v * (np.arange(len(v)) != 1).reshape(-1, *[1] * (v.ndim - 1))

    def all_are_equal(v):
        return np.stack([v[0]] * len(v))

    for edit in (one_is_zero, all_are_equal, np.zeros_like):
        assert_law(rule, make(3, SHAPES, edit=edit), 1e-6)


@every_rule
def test_one_expert_and_twenty(rule):
    assert_law(rule, make(20, SMALL), 1e-6)
    if rule.name != "dare":  # which is the same for each expert, and slow to compile
        assert_law(rule, make(1, SMALL), 1e-6)


@every_rule
def test_the_order_and_the_unit_of_the_vectors_do_not_matter(rule):
    tv = make(3, SHAPES)
    edited, _ = numpy_of(rule.transform(tv))
    if not rule.random:
        order = np.array([2, 0, 1])
        permuted = make(3, SHAPES, edit=lambda v: v[order])
        for got, want in zip(numpy_of(rule.transform(permuted))[0], edited, strict=True):
            np.testing.assert_allclose(got, want[order], rtol=1e-5, atol=1e-7)
    if rule.homogeneous:
        scaled = make(3, SHAPES, edit=lambda v: -4 * v)
        for got, want in zip(numpy_of(rule.transform(scaled))[0], edited, strict=True):
            np.testing.assert_allclose(got, -4 * want, rtol=1e-6, atol=1e-7)


def assert_same(one, other):
    for a, b in zip(tensors(one).values(), tensors(other).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_extreme_settings_give_plain_results():
    tv = make(3, SHAPES)
    assert_same(transforms.dare(tv, density=1.0, key=KEY), tv)
    assert_same(transforms.breadcrumbs(tv, beta=0.0, gamma=0.0), tv)
    assert_same(transforms.consensus(tv, scale=0.0, agreement=3), tv)
    assert_same(transforms.lines(tv, alpha=1.0), tv)
    assert_same(
        transforms.della(tv, density=1.0, window=0.0, key=KEY),
        transforms.ties(tv, density=1.0),
    )
    magmax = transforms.magmax(tv)
    assert_same(transforms.magmax(magmax), magmax)


def test_a_tiny_density_keeps_one_entry():
    one = make(1, SMALL)
    kept = transforms.ties(one, density=1e-9)
    for v, w in zip(tensors(kept).values(), tensors(one).values(), strict=True):
        assert np.flatnonzero(v) == np.argmax(np.abs(w))
    assert_same(transforms.ties(kept, density=1e-9), kept)
    overall = transforms.ties(one, density=1e-9, scope="global")
    assert sum(np.count_nonzero(v) for v in tensors(overall).values()) == 1
    crumbs = transforms.breadcrumbs(one, beta=0.999, gamma=0.0009)
    assert [np.count_nonzero(v) for v in tensors(crumbs).values()] == [1, 1]


def test_entries_equal_to_the_smallest_one_kept_are_kept():
    vectors = [jnp.array([1.0, -1.0, 1.0, 0.5, 0.0])]
    tv = mj.TaskVectors.from_params(jnp.zeros(5), vectors)
    kept = transforms.ties(tv, density=0.2).vectors
    np.testing.assert_array_equal(kept, [[1, -1, 1, 0, 0]])


def test_signs_without_a_majority_elect_nobody():
    tv = mj.TaskVectors.from_params(jnp.zeros(1), [jnp.ones(1), -jnp.ones(1)])
    np.testing.assert_array_equal(transforms.ties(tv, density=1.0).vectors, 0)


def test_a_wide_angle_leaves_the_base():
    vectors = [jnp.array([1.0, 0.2]), jnp.array([-1.0, 0.2])]
    tv = mj.TaskVectors.from_params(jnp.zeros(2), vectors)
    np.testing.assert_array_equal(transforms.model_stock(tv).vectors, 0)


def test_keys_decide_what_is_dropped():
    tv = mj.TaskVectors.from_params(jnp.zeros((40, 50)), [jnp.ones((40, 50))] * 2)
    sparse = transforms.dare(tv, density=0.3, key=KEY)
    assert_same(sparse, transforms.dare(tv, density=0.3, key=KEY))
    other = transforms.dare(tv, density=0.3, key=jax.random.key(8))
    kept, changed = np.asarray(sparse.vectors) > 0, np.asarray(other.vectors) > 0
    np.testing.assert_allclose(sparse.vectors[kept], 1 / 0.3, rtol=1e-6)
    # Binomial: five standard deviations of the share are 0.036.
    for mask in (kept[0], kept[1]):
        assert abs(mask.mean() - 0.3) < 0.052
    # Tasks and keys are drawn apart: both keep an entry 9 times in 100.
    assert abs((kept[0] & kept[1]).mean() - 0.09) < 0.032
    assert abs((kept & changed).mean() - 0.09) < 0.023


def test_widen_ranks_inputs_of_zeros_alike():
    rng = np.random.default_rng(0)
    base, tau = rng.normal(size=(12, 5)), rng.normal(size=(3, 12, 5))
    base[::2], tau[0, 1] = 0, -base[1]
    want = reference.widen([tau], [base])[0]
    for size in (1.0, 3.0, 1e-3, 7.7):
        b, v = jnp.asarray(size * base, jnp.float32), jnp.asarray(size * tau, jnp.float32)
        got = transforms.widen(mj.TaskVectors(b, v, ("a", "b", "c"))).vectors.sum(axis=0)
        np.testing.assert_allclose(got / size, want, atol=1e-5)


def test_rules_compose():
    tv = make(3, SHAPES)
    composed = transforms.lines(transforms.ties(tv), alpha=0.25, beta=0.5)
    tau, _ = numpy_of(tv)
    want = [v[None] for v in reference.ties(tau)]
    want = reference.lines(want, DEPTHS, 0.25, 0.5)
    for got, w in zip(numpy_of(composed)[0], want, strict=True):
        np.testing.assert_allclose(got.sum(0), w, atol=1e-6)


def test_rules_work_under_jit():
    tv = make(20, SMALL)

    rules = [r for r in RULES if r.name in ("ties", "della", "lines", "widen")]

    @jax.jit
    def all_rules(tv):
        return [rule.transform(tv) for rule in rules]

    for rule, jitted in zip(rules, all_rules(tv), strict=True):
        eager = rule.transform(tv)
        for a, b in zip(tensors(jitted).values(), tensors(eager).values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_another_density_does_not_compile_again():
    tv = make(1, SMALL)
    transforms.ties(tv, density=0.5)
    cache: Any = _ties._ties
    before = cache._cached._cache_size()
    for density in (0.1, 0.3, 0.9):
        transforms.ties(tv, density=density)
    assert cache._cached._cache_size() == before


def test_sharded_vectors_give_the_same():
    tv = make(3, {"w": (8, 12)})
    mesh = Mesh(np.array(jax.devices()).reshape(4), ("model",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    placed = jax.device_put(tv.vectors["w"], sharding)
    sharded = mj.TaskVectors(tv.base, {"w": placed, "step": None}, tv.names)
    for name in ("ties global", "dare"):
        rule = next(rule for rule in RULES if rule.name == name)
        edited = rule.transform(sharded)
        assert edited.vectors["w"].sharding.is_equivalent_to(sharding, 3)
        np.testing.assert_allclose(
            edited.vectors["w"], rule.transform(tv).vectors["w"], rtol=1e-6
        )


def test_complex_vectors_where_no_signs_are_read():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 4, 5)) + 1j * rng.normal(size=(3, 4, 5))
    base, *experts = (
        {"layer_0": jnp.asarray(x, jnp.complex64), "layer_1": jnp.ones(2)} for x in z
    )
    tv = mj.TaskVectors.from_params(base, experts)
    v = np.asarray(tv.vectors["layer_0"], np.complex128)

    def merged(edited):
        return np.asarray(edited.vectors["layer_0"]).sum(0)

    winner = np.argmax(np.abs(v), axis=0)[None]
    np.testing.assert_allclose(
        merged(transforms.magmax(tv)), np.take_along_axis(v, winner, 0)[0], rtol=1e-6
    )
    squares = (np.abs(v) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(
        merged(transforms.metagpt(tv)),
        np.tensordot(squares / squares.sum(), v, 1),
        rtol=1e-5,
    )
    scaled = transforms.lines(tv, alpha=0.5, beta=0.0)
    np.testing.assert_allclose(merged(scaled), v.sum(0) / 2, rtol=1e-6)
    crumbs = np.asarray(transforms.breadcrumbs(tv, beta=0.6, gamma=0.1).vectors["layer_0"])
    for got, x in zip(crumbs, v, strict=True):  # 8 of 20 stay, without the 2 largest
        order = np.argsort(np.abs(x).ravel())[-8:-2]
        np.testing.assert_array_equal(np.flatnonzero(got), np.sort(order))
    for rule in (transforms.ties, transforms.pcb, transforms.widen):
        with pytest.raises(
            ValueError, match=r"compares signs, but leaf \['layer_0'\] is com"
        ):
            rule(tv)
    with pytest.raises(ValueError, match=r"`della` compares signs.*complex64"):
        transforms.della(tv, key=KEY)


@pytest.mark.slow
def test_tensors_without_entries_and_scalars():
    tv = make(2, {"layer_0": (0, 3), "layer_1": (4, 3), "scale": ()})
    tau, base = numpy_of(tv)
    for name in ("ties global", "pcb", "breadcrumbs", "model_stock"):
        rule = next(rule for rule in RULES if rule.name == name)
        edited, _ = numpy_of(rule.transform(tv))
        assert edited[0].shape == (2, 0, 3)
        for got, want in zip(edited[1:], rule.merged(tau[1:], base[1:]), strict=True):
            np.testing.assert_allclose(got.sum(0), want, atol=1e-6)
    for name in ("dare", "della"):  # whose keys go by all tensors
        rule = next(rule for rule in RULES if rule.name == name)
        full = make(2, {"layer": (4, 3), "scale": ()})
        assert_law(rule, full, 1e-6)
        assert numpy_of(rule.transform(tv))[0][0].shape == (2, 0, 3)


def test_lines_takes_layers_and_has_defaults():
    tv = make(2, {"first": (3,), "second": (3,), "third": (3,), "out": ()})
    layers = {"['first']": 1, "['second']": 2, "['third']": 5}
    scaled = transforms.lines(tv, layers=layers.get)
    ratios = {
        path: float(jnp.ravel(v / tensors(tv)[path])[0])
        for path, v in tensors(scaled).items()
    }
    want = {"['first']": 0.5, "['second']": 0.625, "['third']": 1.0, "['out']": 0.5}
    assert ratios == pytest.approx(want)
