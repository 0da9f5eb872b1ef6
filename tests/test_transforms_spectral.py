"""Spectral and closed-form transforms, against the papers' formulas in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_spectral as reference

import mapjax as mj
from mapjax import transforms
from mapjax._algebra import singular
from mapjax.transforms import _matrices, _wudi

# Two wide kernels of one shape, a convolution that is a tall one, and a bias.
SHAPES = {"a": (6, 9), "b": (6, 9), "conv": (2, 2, 5, 6), "bias": (5,)}
MATRICES = ("a", "b", "conv")
NUM_TASKS = 3
TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2}

STEPS = {"num_steps": 12, "learning_rate": 0.05}
RULES = {
    "tsv": transforms.tsv,
    "iso_c": transforms.iso_c,
    "iso_cts": lambda tv: transforms.iso_cts(tv, common=0.5),
    "wudi": lambda tv: transforms.wudi(tv, ridge=0.1),
    "wudi_descent": lambda tv: transforms.wudi_descent(tv, **STEPS),
    "opcm": transforms.opcm,
    "doge": lambda tv: transforms.doge(tv, scale=2.0, shared=0.35, **STEPS),
}
REFERENCES = {
    "tsv": lambda t: reference.tsv(t).sum(0),
    "iso_c": reference.iso_c,
    "iso_cts": lambda t: reference.iso_cts(t, 0.5),
    "wudi": lambda t: reference.wudi(t, 0.1),
    "wudi_descent": lambda t: reference.wudi_descent(t, 12, 0.05),
}


def draw(seed=0, num_tasks=NUM_TASKS, dtype="float32", shapes=SHAPES):
    """Make vectors on a base of zeros, so that merges are the updates themselves."""
    rng = np.random.default_rng(seed)
    vectors = {
        k: jnp.asarray(rng.normal(size=(num_tasks, *s)), dtype) for k, s in shapes.items()
    }
    base = {k: jnp.zeros(s, dtype) for k, s in shapes.items()}
    return mj.TaskVectors(base, vectors, tuple(f"task{i}" for i in range(num_tasks)))


def parts(tv):
    """See the vectors in float64, those of matrices as `[tasks, in, out]`."""
    out = {}
    for k, v in tv.vectors.items():
        v = np.asarray(v, np.float64)
        out[k] = v.reshape(len(v), -1, v.shape[-1]) if v.ndim > 2 else v
    return out


def opcm_reference(t):
    places = {i for i, k in enumerate(t) if k in MATRICES}
    return dict(zip(t, reference.opcm(list(t.values()), places), strict=True))


def with_vectors(tv, change):
    return dataclasses.replace(tv, vectors=jax.tree.map(change, tv.vectors))


def merged(tv):
    return {k: v.sum(0) for k, v in parts(tv).items()}


def assert_close(got, want, tolerance, keys=None):
    for k in keys or want:
        size = max(1e-6, np.abs(want[k]).max())
        np.testing.assert_allclose(got[k] / size, want[k] / size, atol=tolerance, err_msg=k)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", list(REFERENCES))
def test_sums_are_the_published_merges(rule, dtype):
    tv = draw(dtype=dtype)
    edited = RULES[rule](tv)
    assert edited.names == tv.names
    for k, v in edited.vectors.items():
        assert v.shape == tv.vectors[k].shape
        assert v.dtype == dtype
    t = parts(tv)
    want = {k: REFERENCES[rule](t[k]) for k in MATRICES}
    assert_close(merged(edited), want, TOLERANCE[dtype])
    # And as a user merges them; tensors that are no matrices are averaged.
    user = mj.merge(edited, jnp.ones(NUM_TASKS))
    conv = np.asarray(user["conv"], np.float64).reshape(-1, 6)
    want = {"conv": want["conv"], "bias": t["bias"].mean(0)}
    got = {"conv": conv, "bias": np.asarray(user["bias"], np.float64)}
    assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", ["opcm", "doge"])
def test_sums_of_rules_over_the_whole_model_are_the_published_merges(rule, dtype):
    tv = draw(dtype=dtype)
    t = parts(tv)
    got = merged(RULES[rule](tv))
    if rule == "opcm":
        want = opcm_reference(t)
    else:
        found = reference.doge(
            [t[k] for k in MATRICES], 2.0, steps=12, rate=0.05, sixth=0.35
        )
        want = {k: m.sum(0) for k, m in zip(MATRICES, found, strict=True)}
        np.testing.assert_array_equal(got["bias"], 0)
    assert_close(got, want, TOLERANCE[dtype])


def test_parts_belong_to_their_tasks():
    tv = draw()
    t = parts(tv)
    assert_close(parts(RULES["tsv"](tv)), {k: reference.tsv(t[k]) for k in MATRICES}, 2e-4)
    doge = reference.doge([t[k] for k in MATRICES], 2.0, steps=12, rate=0.05, sixth=0.35)
    assert_close(parts(RULES["doge"](tv)), dict(zip(MATRICES, doge, strict=True)), 1e-3)

    # WUDI is linear in (S_i + e) tau_i: the merge of task i's share of the right-hand side.
    wudi = parts(RULES["wudi"](tv))
    for k in MATRICES:
        n = np.sum(t[k] ** 2, (1, 2))
        s = t[k] @ np.swapaxes(t[k], 1, 2) / n[:, None, None]
        e = 0.1 * NUM_TASKS / t[k].shape[1] * np.eye(t[k].shape[1])
        want = np.linalg.inv(s.sum(0) + e) @ (s + e) @ t[k]
        assert_close({k: wudi[k]}, {k: want}, 2e-4)

    # Isotropic directions belong to those who use them, by their energy on both sides.
    iso = parts(transforms.iso_c(tv))
    for k in MATRICES:
        u, s, vt = np.linalg.svd(t[k].sum(0), full_matrices=False)
        energy = np.sum((t[k] @ vt.T) ** 2, 1) + np.sum(
            (np.swapaxes(t[k], 1, 2) @ u) ** 2, 1
        )
        share = energy / energy.sum(0)
        want = s.mean() * np.einsum("ik,tk,ko->tio", u, share, vt)
        assert_close({k: iso[k]}, {k: want}, 2e-4)


def test_descent_moves_the_parts_of_wudi_towards_its_closed_form():
    tv = draw(shapes={"a": (6, 9)})
    end = parts(transforms.wudi(tv, ridge=1e-5))["a"]
    far = np.linalg.norm(parts(tv)["a"] - end, axis=(1, 2))
    near = parts(transforms.wudi_descent(tv, num_steps=2000, learning_rate=3e-3))["a"]
    assert (np.linalg.norm(near - end, axis=(1, 2)) < 0.1 * far).all()


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"opcm"}))
def test_the_order_of_the_tasks_does_not_matter(rule):
    tv = draw()
    order = np.array([2, 0, 1])
    shuffled = parts(RULES[rule](with_vectors(tv, lambda v: v[order])))
    direct = parts(RULES[rule](tv))
    assert_close(shuffled, {k: v[order] for k, v in direct.items()}, 1e-3)


def test_opcm_goes_in_order():
    tv = draw()
    backwards = merged(transforms.opcm(with_vectors(tv, lambda v: v[::-1])))
    assert np.abs(backwards["a"] - merged(transforms.opcm(tv))["a"]).max() > 0.1
    # Its merge is as long as the tasks are on average.
    total = np.sqrt(sum(np.sum(v**2) for v in merged(transforms.opcm(tv)).values()))
    np.testing.assert_allclose(total, np.mean(tv.norms()), rtol=1e-5)


@pytest.mark.parametrize("rule", ["tsv", "iso_c", "iso_cts", "wudi", "opcm"])
def test_longer_vectors_make_longer_vectors(rule):
    tv = draw()
    longer = parts(RULES[rule](with_vectors(tv, lambda v: 1000 * v)))
    assert_close(longer, {k: 1000 * v for k, v in parts(RULES[rule](tv)).items()}, 1e-3)


def test_identical_experts_share_alike():
    one = draw()
    same = with_vectors(one, lambda v: jnp.repeat(v[:1], NUM_TASKS, 0))
    t = parts(same)["a"][0]
    u, s, vt = np.linalg.svd(t, full_matrices=False)
    wanted = {
        # The top 6 // 3 directions, once; published code would add arbitrary ones.
        "tsv": u[:, :2] * s[:2] @ vt[:2],
        "iso_c": NUM_TASKS * s.mean() * u @ vt,
        "wudi": None,
        "wudi_descent": None,
        "iso_cts": None,
        "doge": None,
    }
    for rule, want in wanted.items():
        got = parts(RULES[rule](same))["a"]
        assert np.isfinite(got).all(), rule
        assert_close({"a": got}, {"a": np.repeat(got[:1], NUM_TASKS, 0)}, 1e-3)
        if want is not None:
            assert_close({"a": got.sum(0)}, {"a": want}, 1e-3)
    # With S the same for all, N S tau = N S tau_1: the merge is the expert itself.
    assert_close(merged(transforms.wudi(same, ridge=1e-5)), {"a": t}, 1e-2)


def test_an_expert_like_the_base_changes_nothing():
    tv = draw()
    more = with_vectors(tv, lambda v: v.at[1].set(0))
    others = {k: v[[0, 2]] for k, v in parts(tv).items()}
    alone = {
        "tsv": lambda t: reference.tsv(t, 2).sum(0),
        "iso_c": reference.iso_c,
        "wudi": lambda t: reference.wudi(t, 0.1),
        "wudi_descent": lambda t: reference.wudi_descent(t, 12, 0.05),
    }
    for rule, transform in RULES.items():
        edited = transform(more)
        got = parts(edited)
        assert all(np.isfinite(v).all() for v in got.values()), rule
        for k in MATRICES:
            np.testing.assert_allclose(got[k][1], 0, atol=1e-6, err_msg=rule)
        if rule in alone:
            want = {k: alone[rule](others[k]) for k in MATRICES}
            assert_close(merged(edited), want, 1e-3)
    # First of all in line, and of all.
    empty = with_vectors(tv, jnp.zeros_like)
    for rule, transform in RULES.items():
        for v in parts(transform(empty)).values():
            np.testing.assert_array_equal(v, 0, err_msg=rule)
    first = parts(transforms.opcm(with_vectors(tv, lambda v: v.at[0].set(0))))
    assert all(np.isfinite(v).all() for v in first.values())


def test_a_single_expert_is_left_alone():
    tv = draw(num_tasks=1, shapes={"a": SHAPES["a"]})
    for rule in ("tsv", "wudi", "opcm"):
        assert_close(parts(RULES[rule](tv)), parts(tv), 1e-4)
    flat = parts(transforms.iso_c(tv))["a"][0]
    s = np.linalg.svd(parts(tv)["a"][0], compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(flat, compute_uv=False), s.mean(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(24, 96), (96, 24)])
def test_wudi_loses_no_digits_of_updates_with_one_large_direction(shape):
    rng = np.random.default_rng(0)
    large = rng.normal(size=(3, shape[0], 1)) @ rng.normal(size=(3, 1, shape[1]))
    v = (large + 1e-2 * rng.normal(size=(3, *shape))).astype(np.float32)
    for taus, ridge, tolerance in ((v, 1e-2, 2e-4), (v[:1], 1e-6, 1e-6)):
        tv = mj.TaskVectors.from_params({"w": jnp.zeros(shape)}, [{"w": x} for x in taus])
        want = reference.wudi(taus.astype(float), ridge)
        assert_close(merged(transforms.wudi(tv, ridge=ridge)), {"w": want}, tolerance)


def test_twenty_experts():
    tv = draw(num_tasks=20, shapes={"a": SHAPES["a"], "bias": SHAPES["bias"]})
    t = parts(tv)
    # One triplet each, though there is room for 6 only.
    want = {"a": reference.tsv(t["a"], 1).sum(0)}
    assert_close(merged(transforms.tsv(tv)), want, 1e-3)
    # No room for directions of one's own, so that all are common.
    assert_close(merged(transforms.iso_cts(tv)), {"a": reference.iso_c(t["a"])}, 1e-3)
    assert_close(merged(transforms.wudi(tv)), {"a": reference.wudi(t["a"], 0.01)}, 1e-3)
    assert_close(merged(transforms.opcm(tv)), opcm_reference(t), 1e-3)


@pytest.mark.parametrize("shape", [(20_000, 6), (6, 20_000)])
def test_long_matrices_keep_their_small_directions(shape):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(side, 6)))[0] for side in shape)
    m = (left * np.geomspace(1, 3e-4, 6)) @ right.T
    tv = mj.TaskVectors.from_params({"w": jnp.zeros(shape)}, [{"w": np.float32(m)}])
    kept = merged(transforms.tsv(tv))["w"]
    assert np.linalg.norm(kept - m) < 3e-5  # of values from 1 down to 3e-4
    flat = np.linalg.svd(merged(transforms.iso_c(tv))["w"], compute_uv=False)
    np.testing.assert_allclose(flat, np.geomspace(1, 3e-4, 6).mean(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(128, 128), (20_000, 6), (6, 20_000)])
def test_rounding_is_no_direction(shape):
    rng = np.random.default_rng(0)
    for rank in (1, 3):
        a, b = rng.normal(size=(shape[0], rank)), rng.normal(size=(rank, shape[1]))
        product = a.astype(np.float32) @ b.astype(np.float32)
        assert np.sum(np.asarray(singular(jnp.asarray(product)).values) > 0) == rank


def test_tasks_without_a_common_direction_are_added():
    blocks = np.zeros((2, 6, 6))
    rng = np.random.default_rng(0)
    blocks[0, :3, :3], blocks[1, 3:, 3:] = rng.normal(size=(2, 3, 3))
    tv = mj.TaskVectors.from_params(
        jnp.zeros((6, 6)), [jnp.asarray(b, jnp.float32) for b in blocks]
    )
    np.testing.assert_allclose(transforms.tsv(tv, rank=3).vectors, blocks, atol=1e-5)
    np.testing.assert_allclose(transforms.wudi(tv, ridge=1e-4).vectors, blocks, atol=2e-2)
    # Each keeps its own directions, and all six weigh the same.
    iso = np.asarray(transforms.iso_c(tv).vectors)
    for part in iso:
        s = np.linalg.svd(part, compute_uv=False)
        np.testing.assert_allclose(s, [s[0]] * 3 + [0] * 3, atol=1e-5)
    cosine = np.sum(iso[0] * blocks[1])
    np.testing.assert_allclose(cosine, 0, atol=1e-4)


def test_input_axes_say_which_way_a_kernel_lies():
    tv = draw(shapes={"a": (6, 9), "conv": (2, 2, 3, 2)})
    turned = dataclasses.replace(
        tv,
        base=jax.tree.map(jnp.transpose, tv.base),
        vectors={
            "a": tv.vectors["a"].transpose(0, 2, 1),
            "conv": tv.vectors["conv"].transpose(0, 4, 3, 1, 2),  # [out, in, height, width]
        },
    )
    want = transforms.wudi(tv).vectors
    got = transforms.wudi(turned, input_axes="trailing").vectors
    np.testing.assert_allclose(got["a"].transpose(0, 2, 1), want["a"], atol=1e-4)
    got = got["conv"].transpose(0, 3, 4, 2, 1)
    np.testing.assert_allclose(got, want["conv"], atol=1e-4)

    def chosen(path, shape):
        return {"['a']": (0,), "['conv']": ()}[path]

    got = transforms.wudi(tv, input_axes=chosen).vectors
    np.testing.assert_allclose(got["a"], want["a"], atol=1e-5)
    np.testing.assert_allclose(got["conv"], tv.vectors["conv"] / NUM_TASKS, rtol=1e-6)


def test_compose_and_jit():
    tv = draw()

    def both(tv):
        return transforms.tsv(transforms.iso_c(tv))

    assert_close(parts(jax.jit(both)(tv)), parts(both(tv)), 1e-3)


def test_no_number_retraces():
    tv = draw(shapes={"a": (6, 9)})
    transforms.wudi(tv, ridge=0.1)
    traced = _wudi._wudi._cached._cache_size
    before = traced()
    transforms.wudi(tv, ridge=0.2)
    transforms.wudi(dataclasses.replace(tv, names=("x", "y", "z")), ridge=0.3)
    assert traced() == before


def test_bad_arguments_are_explained():
    tv = draw()
    with pytest.raises(
        ValueError, match=r"`rank` is 7, but leaf \['a'\] is a 6 x 9 matrix"
    ):
        transforms.tsv(tv, rank=7)
    with pytest.raises(ValueError, match="`rank` is 0"):
        transforms.tsv(tv, rank=0)
    with pytest.raises(ValueError, match=r"`alpha` is 1\.5: pass a number from 0 to 1"):
        transforms.opcm(tv, alpha=1.5)
    with pytest.raises(ValueError, match=r"`common` is -1\.0: pass a number from 0 to 1"):
        transforms.iso_cts(tv, common=-1.0)
    with pytest.raises(ValueError, match=r"`ridge` is 0\.0: pass a positive number"):
        transforms.wudi(tv, ridge=0.0)
    with pytest.raises(ValueError, match="`ridge` is nan, but must be one finite number"):
        transforms.wudi(tv, ridge=float("nan"))
    with pytest.raises(
        ValueError, match="`num_steps` is -1, but must be an int of at least 0"
    ):
        transforms.wudi_descent(tv, num_steps=-1)
    with pytest.raises(ValueError, match="`learning_rate` is 0"):
        transforms.wudi_descent(tv, learning_rate=0.0)
    with pytest.raises(ValueError, match="`scale` is 0"):
        transforms.doge(tv, scale=0.0)
    with pytest.raises(ValueError, match="`density` is 0"):
        transforms.doge(tv, density=0.0)
    with pytest.raises(ValueError, match="`shared` is 2"):
        transforms.doge(tv, shared=2.0)


def test_bad_input_axes_are_explained():
    tv = draw()
    for rule in (transforms.tsv, transforms.iso_c, transforms.wudi, transforms.doge):
        with pytest.raises(ValueError, match="edits matrices, but no tensor is one"):
            rule(draw(shapes={"bias": (5,)}))
    with pytest.raises(
        ValueError, match=r"gave \(0, 1\) for leaf \['a'\] of shape \(6, 9\)"
    ):
        transforms.tsv(tv, input_axes=lambda path, shape: (0, 1))
    unchecked = _matrices.matrix_shapes.__wrapped__
    with pytest.raises(ValueError, match="`input_axes` is 'rows': pass 'leading'"):
        unchecked(tv, "rows", "tsv")
