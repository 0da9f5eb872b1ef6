"""Transforms in a shared basis, against NumPy on dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax import transforms
from mapjax._group import group
from mapjax._lora import from_lora
from mapjax._low_rank import LowRank
from mapjax.transforms._core_space import core_space, knots

ROWS, COLUMNS, RANK, NAMES = 14, 11, 2, ("a", "b", "c")


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    base = {"dense": rng.normal(size=(ROWS, COLUMNS)).astype("f")}
    given = {}
    for name in NAMES:
        pair = rng.normal(size=(ROWS, RANK)), rng.normal(size=(RANK, COLUMNS))
        given[name] = {"['dense']": (*(x.astype("f") for x in pair), 3.0)}
    tv = from_lora(base, given)
    products = [a.astype(float) @ b * alpha / RANK for a, b, alpha in entries(given)]
    return tv, np.stack(products)


def entries(given):
    return [each["['dense']"] for each in given.values()]


def same(task_vectors):
    return task_vectors


@pytest.mark.parametrize("space", [core_space, knots])
def test_nothing_is_lost_on_the_way(example, space):
    tv, products = example
    found = space(group(tv, "tensor"), same)
    leaf = found.vectors["dense"]
    assert isinstance(leaf, LowRank)
    assert leaf.rank == len(NAMES) * RANK
    np.testing.assert_allclose(leaf.dense(), products, atol=1e-4)
    assert found.groups == group(tv, "tensor").groups
    c = np.array([0.2, 0.5, -0.3], "f")
    want = tv.base["dense"] + np.tensordot(c, products, 1)
    np.testing.assert_allclose(mj.merge(found, c)["dense"], want, atol=1e-4)


@pytest.mark.parametrize(
    ("space", "size"), [(core_space, 1e-3), (core_space, 1e3), (knots, 1e-6), (knots, 1e6)]
)
def test_nothing_is_lost_where_factors_differ_in_size(space, size):
    rng, given = np.random.default_rng(0), {}
    for name, factor in zip(NAMES, (1.0, size, 0.0), strict=True):
        a, b = rng.normal(size=(ROWS, RANK)), rng.normal(size=(RANK, COLUMNS))
        pair = a * factor, b / (factor or 1)
        given[name] = {"['w']": tuple(x.astype("f") for x in pair)}
    products = [a.astype(float) @ b for (a, b) in (e["['w']"] for e in given.values())]
    tv = from_lora({"w": jnp.zeros((ROWS, COLUMNS))}, given)
    np.testing.assert_allclose(space(tv, same).vectors["w"].dense(), products, atol=1e-5)


def numpy_ties(v, density):
    """Trim, elect, and take the mean of those that agree, as TIES says, in parts."""
    flat = v.reshape(len(v), -1)
    keep = round(density * flat.shape[1])
    threshold = np.sort(np.abs(flat), axis=1)[:, -keep][:, None]
    trimmed = np.where(np.abs(flat) >= threshold, flat, 0)
    agree = np.sign(trimmed) == np.sign(trimmed.sum(axis=0))
    agree &= trimmed != 0
    return (trimmed * agree / np.maximum(agree.sum(axis=0), 1)).reshape(v.shape)


def ties(task_vectors):
    return transforms.ties(task_vectors, density=0.5)


def test_cores_are_those_of_the_stacked_singular_vectors(example):
    tv, products = example
    n = len(NAMES) * RANK
    left = np.linalg.svd(np.concatenate(products, axis=1))[0][:, :n]
    right = np.linalg.svd(np.concatenate(products, axis=0))[2][:n]
    # TSV turns with the basis, so that any orthonormal one gives the same.
    cores = left.T @ products @ right.T
    whole = transforms.tsv(
        mj.TaskVectors(
            {"w": jnp.zeros((n, n))}, {"w": jnp.asarray(cores, jnp.float32)}, NAMES
        )
    )
    want = left @ np.asarray(whole.vectors["w"], float) @ right
    found = core_space(tv, transforms.tsv).vectors["dense"].dense()
    np.testing.assert_allclose(found, want, atol=1e-3)


def test_knots_edits_the_right_singular_vectors(example):
    tv, products = example
    u, s, vt = np.linalg.svd(np.concatenate(products, axis=1), full_matrices=False)
    n = len(NAMES) * RANK
    u, s, vt = u[:, :n], s[:n], vt[:n]
    parts = np.stack(np.split(vt, len(NAMES), axis=1))
    want = (u * s) @ numpy_ties(parts, 0.5)
    found = knots(tv, ties).vectors["dense"]
    assert found.rank == n
    np.testing.assert_allclose(found.dense(), want, atol=1e-3)


def test_dense_leaves_go_through_the_same_transform(example):
    tv, _ = example
    rng = np.random.default_rng(1)
    bias = jnp.asarray(rng.normal(size=(3, 40)), jnp.float32)
    both = mj.TaskVectors(
        tv.base | {"bias": jnp.zeros(40), "step": jnp.array(1)},
        tv.vectors | {"bias": bias, "step": None},
        NAMES,
    )
    found = core_space(both, ties).vectors
    np.testing.assert_allclose(found["bias"], numpy_ties(np.asarray(bias), 0.5), atol=1e-6)
    assert found["step"] is None


def test_there_must_be_low_rank_leaves_and_they_must_stay(example):
    tv, _ = example
    dense = mj.TaskVectors.from_params(jnp.zeros((3, 3)), [jnp.ones((3, 3))])
    with pytest.raises(ValueError, match="No leaf of the task vectors is low-rank"):
        core_space(dense, ties)

    def drop(task_vectors):
        vectors = jax.tree.map(lambda v: v[:1], task_vectors.vectors)
        return mj.TaskVectors(task_vectors.base, vectors, NAMES[:1])

    with pytest.raises(ValueError, match="`transform` returned vectors of shapes"):
        knots(tv, drop)


@pytest.mark.parametrize("ranks", [(1, 4), (2, 2), (3, 0)])
@pytest.mark.parametrize("identical", [False, True])
def test_directions_that_are_only_rounding_are_no_part_of_the_edit(ranks, identical):
    """As the published code of KnOTS, which drops them before the transform."""
    rng = np.random.default_rng(1)
    pairs = [
        (rng.normal(size=(ROWS, r)).astype("f"), rng.normal(size=(r, COLUMNS)).astype("f"))
        for r in ranks
    ]
    pairs = [pairs[0]] * 2 if identical else pairs
    names = zip("ab", pairs, strict=True)
    given = {name: {"['w']": pair} if pair[0].size else {} for name, pair in names}
    tv = from_lora({"w": jnp.zeros((ROWS, COLUMNS))}, given)
    products = np.stack([a.astype(float) @ b for a, b in pairs])
    beside = np.concatenate(products, axis=1)
    u, s, vt = np.linalg.svd(beside, full_matrices=False)
    kept = s > 1e-5 * s[0]
    parts = np.stack(np.split(vt[kept], 2, axis=1))
    wanted = numpy_ties(parts, 0.3)
    found = knots(tv, lambda t: transforms.ties(t, density=0.3)).vectors["w"]
    assert found.rank == kept.sum()
    np.testing.assert_allclose(
        found.dense().sum(axis=0), (u * s)[:, kept] @ wanted.sum(axis=0), atol=2e-3
    )
    k = np.linalg.matrix_rank(beside, tol=1e-3)
    m = np.linalg.matrix_rank(np.concatenate(products), tol=1e-3)
    cores = core_space(tv, same).vectors["w"]
    assert cores.rank == m
    seen = []
    core_space(tv, lambda t: seen.append(t.vectors["['w']"].shape) or t)
    assert seen == [(2, k, m)]


def test_other_transforms_multiply_factors_out_once(example, monkeypatch):
    tv, products = example
    dense, shapes = LowRank.dense, []

    def counted(v):
        shapes.append(v.shape)
        return dense(v)

    monkeypatch.setattr(LowRank, "dense", counted)
    edited = transforms.widen(tv)
    assert shapes == [products.shape]
    assert edited.vectors["dense"].dtype == tv.vectors["dense"].dtype == jnp.float32
