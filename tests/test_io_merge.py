"""Streamed merges are the merges of `mapjax.merge`, in bounded memory."""

import functools
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from test_io import assert_same, write_hub_folder

import mapjax as mj
import mapjax.io as mio
from mapjax.io import _plan, _recipe

MIB = 2**20
C = [0.5, -0.25, 0.75]


def model(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    return {
        "embed.weight": draw(700, 40),
        "layer.0.w": draw(33, 65),
        "layer.0.b": draw(65),
        "layer.1.w": draw(65, 33),
        "bn.running_mean": draw(65),
        "scale": draw(),
        "steps": np.array([seed]),
    }


@pytest.fixture(params=["float32", "bfloat16"])
def files(request, tmp_path):
    """A base in shards, and experts in shards, in one file and in an .npz."""
    models = [model(seed, request.param) for seed in range(4)]
    write_hub_folder(tmp_path / "base", models[0], shards=3)
    write_hub_folder(tmp_path / "a", dict(reversed(models[1].items())), shards=2)
    safetensors.numpy.save_file(models[2], tmp_path / "b.safetensors")
    mio.save(tmp_path / "c.npz", models[3])
    return (
        models,
        tmp_path / "base",
        [tmp_path / n for n in ("a", "b.safetensors", "c.npz")],
    )


@pytest.fixture
def small_pieces(monkeypatch):
    """Cut what is small as if it were large."""
    monkeypatch.setattr(_plan, "LARGEST_PIECE", 2**12)


def in_memory(models, transform=lambda tv: tv, keep=("bn.running_mean",)):
    left = {name: models[0][name] for name in keep}
    base, *experts = ({k: v for k, v in m.items() if k not in keep} for m in models)
    tv = mj.TaskVectors.from_params(base, experts, dtype=jnp.float32)
    dtype = models[0]["scale"].dtype
    wide = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32) if x.dtype == dtype else x, tv.base
    )
    merged = mj.merge(transform(mj.TaskVectors(wide, tv.vectors, tv.names)), C)
    rounded = {
        name: np.asarray(x).astype(models[0][name].dtype) for name, x in merged.items()
    }
    return {**rounded, **left}


def assert_merged(got, want):
    """Equal to float32 rounded once, up to one rounding of float32 on the way."""
    assert got.keys() == want.keys()
    for name, y in want.items():
        x = np.asarray(got[name])
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        if y.dtype == np.float32:
            np.testing.assert_allclose(x, y, rtol=3e-7, atol=3e-7)
        else:
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            np.testing.assert_allclose(x, y, rtol=2**-7)
            assert np.mean(x != y) < 1e-3  # ties that a last bit of float32 decides


def test_the_same_as_in_memory_and_like_the_base(files, tmp_path, small_pieces):
    models, base, experts = files
    plan = mio.merge_files(base, experts, tmp_path / "out", C)
    want = in_memory(models)
    assert_merged(mio.load(tmp_path / "out"), want)
    assert plan.left_alone == {"bn.running_mean": "batch statistics", "steps": "int64 leaf"}
    assert set(plan.merged) == set(models[0]) - set(plan.left_alone)
    assert plan.bytes_read == 4 * sum(x.nbytes for x in models[0].values())
    shards = {p.name for p in base.iterdir()} - {"training_args.bin"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == shards
    for shard in base.glob("*.safetensors"):
        theirs = safetensors.numpy.load_file(tmp_path / "out" / shard.name)
        assert theirs.keys() == safetensors.numpy.load_file(shard).keys()
    # A definition in float64 that nothing here shares.
    exact = np.asarray(models[0]["layer.0.w"], np.float64)
    for c, m in zip(C, models[1:], strict=True):
        exact = exact + c * (
            np.asarray(m["layer.0.w"], np.float64)
            - np.asarray(models[0]["layer.0.w"], np.float64)
        )
    got = np.asarray(mio.load(tmp_path / "out")["layer.0.w"], np.float64)
    limit = 2**-8 if models[0]["scale"].dtype == ml_dtypes.bfloat16 else 1e-6
    np.testing.assert_allclose(got, exact, rtol=limit, atol=1e-6)


def test_other_dtypes_and_outputs(files, tmp_path):
    models, base, experts = files
    path = tmp_path / "out.safetensors"
    mio.merge_files(tmp_path / "c.npz", {"a": experts[0]}, path, [1.0], dtype=np.float16)
    merged = mio.load(path)
    assert merged["layer.0.w"].dtype == np.float16
    assert_same({"x": merged["bn.running_mean"]}, {"x": models[3]["bn.running_mean"]})
    want = np.asarray(models[1]["layer.0.w"], np.float32)
    np.testing.assert_allclose(
        np.asarray(merged["layer.0.w"], np.float32), want, rtol=2**-10
    )
    plan = mio.merge_files(
        base, experts[:1], tmp_path / "all", [1.0], statistics=True, dry_run=True
    )
    assert "bn.running_mean" in plan.merged
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("separator", [None, ".", "/"])
def test_the_same_tensors_are_left_alone_in_memory_and_on_disk(separator, tmp_path):
    names = ["w", "batch_stats_scale", "bn.running_mean", "bn/running_var"]
    names += ["batch_stats.bn.mean", "opt_state.0.nu.w", "a/opt_state", "running_mean.0"]
    models = [
        {n.replace(".", separator or "."): np.full(2, i, np.float32) for n in names}
        for i in (1, 2)
    ]
    for i, tensors in enumerate(models):
        mio.save(tmp_path / f"{i}.safetensors", tensors)
    paths = [tmp_path / f"{i}.safetensors" for i in (0, 1)]
    plan = mio.merge_files(paths[0], paths[1:], tmp_path / "m.safetensors", [-1.0])
    reasons = ["batch statistics"] * 3 + ["optimizer state"] * 2
    assert sorted(plan.left_alone.values()) == reasons
    base, expert = (mio.load(path, separator=separator) for path in paths)
    tv = mj.TaskVectors.from_params(base, [expert])
    assert sorted(tv.left_alone.values()) == reasons
    merged = mio.load(tmp_path / "m.safetensors", separator=separator)
    jax.tree.map(np.testing.assert_array_equal, merged, mj.merge(tv, [-1.0]))


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_ties_is_that_of_transforms(files, scope, tmp_path, small_pieces):
    models, base, experts = files
    transform = mio.TIES(density=0.3, scope=scope)
    mio.merge_files(base, experts, tmp_path / "out", C, transform=transform)
    ties = functools.partial(mj.transforms.ties, density=0.3, scope=scope)
    assert_merged(mio.load(tmp_path / "out"), in_memory(models, ties))
    # With so little memory that every tensor is counted in pieces.
    mio.merge_files(
        base, experts, tmp_path / "less", C, transform=transform, memory=5 * MIB
    )
    assert_same(mio.load(tmp_path / "less"), mio.load(tmp_path / "out"))


def test_transforms_of_whole_tensors(files, tmp_path):
    models, base, experts = files
    seen = {}

    def ties(tv):
        ((name, leaf),) = tv.base.items()
        seen[name] = leaf.shape
        return mj.transforms.ties(tv, density=0.3)

    mio.merge_files(base, experts, tmp_path / "out", C, transform=ties)
    want = in_memory(models, functools.partial(mj.transforms.ties, density=0.3))
    assert_merged(mio.load(tmp_path / "out"), want)
    assert seen["embed.weight"] == (700, 40)


def test_random_transforms_do_not_depend_on_memory_or_shards(
    files, tmp_path, monkeypatch, key
):
    models, base, experts = files
    dare = functools.partial(mj.transforms.dare, density=0.5)
    monkeypatch.setattr(_recipe, "BLOCK", 2**12)
    outputs = []
    for i, (first, most) in enumerate(
        [(base, 2**12), (base, 2**20), (tmp_path / "base.safetensors", 2**13)]
    ):
        monkeypatch.setattr(_plan, "LARGEST_PIECE", most)
        if not first.exists():
            safetensors.numpy.save_file(dict(reversed(models[0].items())), first)
        path = tmp_path / f"out_{i}{first.suffix}"
        mio.merge_files(first, experts, path, C, transform=dare, elementwise=True, key=key)
        outputs.append(mio.load(path))
    assert_same(outputs[1], outputs[0])
    assert_same(dict(sorted(outputs[2].items())), dict(sorted(outputs[0].items())))
    base_w, got = (
        np.asarray(x["embed.weight"], np.float64) for x in (models[0], outputs[0])
    )
    dropped = (got == base_w).mean()  # all three dropped: an eighth
    assert abs(dropped - 0.125) < 0.01
    first, second = (got == base_w).ravel()[: 2**13].reshape(2, -1)
    assert (first != second).mean() > 0.1  # blocks do not share their masks
    whole = tmp_path / "whole"
    mio.merge_files(base, experts, whole, C, transform=dare, key=key)
    assert (
        abs(
            (np.asarray(mio.load(whole)["embed.weight"], np.float64) == base_w).mean()
            - 0.125
        )
        < 0.01
    )


def test_tied_tensors_stay_tied(tmp_path):
    for i in range(2):
        x = np.full((2, 3), i, np.float32)
        mio.save(tmp_path / f"{i}.safetensors", {"embed": x, "head": x})
    base, out = tmp_path / "0.safetensors", tmp_path / "out.safetensors"
    mio.merge_files(base, [tmp_path / "1.safetensors"], out, [0.5])
    assert out.stat().st_size == base.stat().st_size
    merged = mio.load(out)
    assert merged["head"] is merged["embed"]
    assert merged["head"][0, 0] == 0.5


def test_small_floats_and_doubles(tmp_path):
    for dtype in ("float8_e4m3fn", "float8_e5m2", "float16", "float64"):
        base, expert = np.array([1, 2, -4]).astype(dtype), np.array([2, 2, 4]).astype(dtype)
        mio.save(tmp_path / "base.safetensors", {"x": base})
        mio.save(tmp_path / "expert.npz", {"x": expert})
        out = tmp_path / f"{dtype}.safetensors"
        mio.merge_files(
            tmp_path / "base.safetensors", [tmp_path / "expert.npz"], out, [0.5]
        )
        assert_same(mio.load(out), {"x": np.array([1.5, 2, 0]).astype(dtype)})
    big = np.array([1.0, 1 + 2**-40])
    mio.save(tmp_path / "base.safetensors", {"x": big})
    mio.merge_files(
        tmp_path / "base.safetensors",
        [tmp_path / "base.safetensors"],
        tmp_path / "d.safetensors",
        [0.3],
    )
    assert_same(mio.load(tmp_path / "d.safetensors"), {"x": big})


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            {},
            {"coefficients": [1.0, 2.0]},
            r"`coefficients` is \[1.0, 2.0\], but must be 1",
        ),
        (
            {},
            {"coefficients": [np.nan]},
            r"`coefficients` is \[nan\], but must be 1 finite",
        ),
        ({}, {"memory": 2**10}, "`memory` is 1024 bytes, but at least .* are needed for 1"),
        (
            {},
            {"memory": 10, "transform": lambda tv: tv},
            "the whole tensor 'w' takes about",
        ),
        ({}, {"dtype": np.int32}, "`dtype` must be a floating-point dtype"),
        ({}, {"transform": "ties"}, "`transform` is 'ties', but must be a function"),
        (
            {},
            {"key": 3},
            "`elementwise` and `key` are for a `transform` that is a function",
        ),
        (
            {},
            {"transform": lambda tv: tv, "key": 3},
            "`key` is 3, but must be one typed key",
        ),
        ({}, {"experts": []}, "There are no experts: pass at least one path"),
        ({}, {"experts": "x"}, "`experts` is one path: pass a list"),
        (
            {},
            {"output": "expert.safetensors"},
            "`output` is .*, which is read: pass another",
        ),
        ({"w": None}, {}, r"Expert '.*expert\.safetensors' lacks w, which the base has"),
        ({"v": np.ones(1)}, {}, "has v, which the base lacks"),
        ({"w": np.ones(3)}, {}, r"Leaf w has shape \(3,\) in expert"),
        ({"w": np.ones((2, 3), int)}, {}, "Leaf w has dtype int64 in expert"),
    ],
)
def test_errors_before_anything_is_written(change, arguments, message, tmp_path):
    arrays = {"w": np.ones((2, 3), np.float32), "n": np.arange(2)}
    mio.save(tmp_path / "base.safetensors", arrays)
    changed = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    mio.save(tmp_path / "expert.safetensors", changed)
    before = sorted(tmp_path.iterdir())
    arguments = {
        "experts": [tmp_path / "expert.safetensors"],
        "output": "out",
        "coefficients": [0.5],
    } | arguments
    arguments["output"] = tmp_path / arguments["output"]
    with pytest.raises(ValueError, match=message):
        mio.merge_files(tmp_path / "base.safetensors", **arguments, dry_run=True)
    assert sorted(tmp_path.iterdir()) == before


def test_other_formats_and_nothing_to_merge(tmp_path):
    mio.save(tmp_path / "a.msgpack", {"w": np.ones(2)})
    mio.save(tmp_path / "b.npz", {"n": np.arange(2)})
    with pytest.raises(
        ValueError, match=r"a\.msgpack is msgpack, which is not merged in pi"
    ):
        mio.merge_files(tmp_path / "a.msgpack", [tmp_path / "b.npz"], tmp_path / "o", [1.0])
    with pytest.raises(ValueError, match="has no tensor that can be merged, but 'n'"):
        mio.merge_files(tmp_path / "b.npz", [tmp_path / "b.npz"], tmp_path / "o", [1.0])


def merge_with_itself(folder, transform):
    base = folder / "base.npz"
    mio.merge_files(base, [base], folder / "o.safetensors", [1.0], transform=transform)


@pytest.mark.parametrize("transform", [None, mio.TIES(), lambda tv: tv])
def test_numbers_that_are_none_end_the_merge(transform, tmp_path):
    mio.save(tmp_path / "base.npz", {"v": np.ones(9), "w": np.array([1.0, np.nan])})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="Tensor 'w' holds NaN or infinite values"):
        merge_with_itself(tmp_path, transform)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            lambda tv: tv.vectors,
            "`transform` made dict of the vectors of 'v', but must return",
        ),
        (
            lambda tv: mj.TaskVectors(
                {"v": tv.base["v"][:1]}, {"v": tv.vectors["v"][:, :1]}, tv.names
            ),
            r"`transform` changed the shape of 'v' from \(9,\) to \(1,\)",
        ),
    ],
)
def test_transforms_that_return_something_else(transform, message, tmp_path):
    mio.save(tmp_path / "base.npz", {"v": np.ones(9)})
    with pytest.raises(ValueError, match=message):
        merge_with_itself(tmp_path, transform)
    assert not (tmp_path / "o.safetensors").exists()


def test_a_failing_write_leaves_nothing(files, tmp_path, small_pieces, monkeypatch):
    _, base, experts = files
    before = sorted(tmp_path.iterdir())
    real, count = os.pwrite, 0

    def full(*arguments):
        nonlocal count
        count += 1
        if count > 5:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        OSError, match="No space left on device while writing; nothing was left"
    ):
        mio.merge_files(base, experts, tmp_path / "out", C)
    assert sorted(tmp_path.iterdir()) == before
