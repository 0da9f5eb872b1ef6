"""What would be lost or changed without a word is refused, or kept."""

import functools
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from test_io import assert_same

import mapjax as mj
import mapjax.io as mio


def write(path, **arrays):
    mio.save(path, {n: np.asarray(x, np.float32) for n, x in arrays.items()})
    return path


TRANSFORMS = [
    {},
    {"transform": mio.TIES()},
    {"transform": lambda tv: tv},
    {"transform": lambda tv: tv, "elementwise": True},
]


@pytest.mark.parametrize("how", TRANSFORMS)
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (7e4, np.float16),
        (3.4e38, jnp.bfloat16),
        (500, ml_dtypes.float8_e4m3fn),
        (7e4, ml_dtypes.float8_e5m2),
    ],
)
def test_an_overflow_by_rounding_ends_the_merge(tmp_path, value, dtype, how):
    base = write(tmp_path / "base.safetensors", w=np.zeros(5))
    expert = write(tmp_path / "expert.safetensors", w=np.full(5, value))
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"Tensor 'w' .* as it is rounded\. Repair"):
        mio.merge_files(base, [expert], out, [1.0], dtype=dtype, **how)
    assert not out.exists()
    mio.merge_files(base, [expert], out, [0.5], dtype=dtype, **how)
    assert np.isfinite(mio.load(out)["w"]).all()


def test_files_that_macos_puts_beside_others_are_not_read(tmp_path):
    for name in ("model.safetensors", "model.safetensors.index.json", "config.json"):
        (tmp_path / f"._{name}").write_bytes(b"\0\5\x16\7")
    with pytest.raises(ValueError, match="folder without a checkpoint"):
        mio.load(tmp_path)
    write(tmp_path / "model.safetensors", w=np.ones(2))
    (tmp_path / "config.json").write_text("{}")
    mio.save(tmp_path / "copy", mio.load(tmp_path), like=tmp_path)
    names = sorted(file.name for file in (tmp_path / "copy").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_adapters_as_an_expert_are_told_from_parameters(tmp_path):
    base = write(tmp_path / "base.safetensors", w=np.ones((2, 2)))
    lora = write(tmp_path / "lora.npz", **{"w.lora_A.weight": [[1, 2]]})
    with pytest.raises(
        ValueError, match=r"has w\.lora_A.* make task .* `mapjax\.from_lora`"
    ):
        mio.merge_files(base, [lora], tmp_path / "out.safetensors", [0.5])


def test_the_format_of_a_file_is_no_tied_tensor(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {"pt": np.ones(2, np.float32)}
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    assert_same(mio.load(path), arrays)


def test_a_name_with_a_nul_is_refused(tmp_path):
    for suffix in (".safetensors", ".npz", ".msgpack"):
        with pytest.raises(ValueError, match=r"name 'a\\x00b' holds a NUL"):
            write(tmp_path / f"x{suffix}", **{"a\0b": np.ones(2)})


def test_dots_and_slashes_in_one_checkpoint_are_told_apart(tmp_path):
    path = write(tmp_path / "x.safetensors", **{"a.b": np.ones(2), "a/b": np.zeros(2)})
    assert_same(mio.load(path, like=mio.load(path)), mio.load(path))
    mio.save(tmp_path / "y.safetensors", mio.load(path), like=path)
    assert_same(mio.load(tmp_path / "y.safetensors"), mio.load(path))


def test_a_folder_is_not_given_the_name_of_a_file(tmp_path):
    (tmp_path / "base").mkdir()
    base = write(tmp_path / "base" / "model.safetensors", w=np.ones(2))
    out = tmp_path / "merged.safetensors"
    with pytest.raises(ValueError, match=r"makes a folder: pass .*merged, or convert"):
        mio.merge_files(tmp_path / "base", [base], out, [0.5])
    assert not out.exists()


def test_quantised_checkpoints_are_not_merged(tmp_path):
    for i in range(2):
        codes = np.full((4, 8), i, np.int8)
        arrays = {"w": codes, "w_scale": np.ones(4, np.float32), "ids": np.arange(3)[None]}
        arrays |= {"steps": np.array([i]), "opt_state.w": codes + 1, "used": codes > 0}
        mio.save(tmp_path / f"{i}.safetensors", arrays)
        mio.save(tmp_path / f"kept_{i}.safetensors", arrays | {"w": np.zeros((4, 8), int)})
    out = tmp_path / "out.safetensors"
    with pytest.raises(
        ValueError, match=r"'w' holds whole numbers \(int8\) that are others"
    ):
        mio.merge_files(
            tmp_path / "0.safetensors", [tmp_path / "1.safetensors"], out, [0.5]
        )
    assert not out.exists()
    paths = tmp_path / "kept_0.safetensors", [tmp_path / "kept_1.safetensors"]
    mio.merge_files(*paths, out, [0.5])
    assert mio.load(out)["steps"] == [0]


def test_a_base_in_half_precision_overflows_by_its_own_dtype(tmp_path):
    base, expert = np.zeros(3, np.float16), np.full(3, 40_000, np.float16)
    for name, w in {"base": base, "expert": expert}.items():
        mio.save(tmp_path / f"{name}.safetensors", {"w": w})
    paths = tmp_path / "base.safetensors", [tmp_path / "expert.safetensors"]
    with pytest.raises(ValueError, match=r"'w' .* as it is rounded"):
        mio.merge_files(*paths, tmp_path / "out.safetensors", [2.0])


def test_dtypes_without_a_sign_and_complex_tensors(tmp_path):
    base = tmp_path / "base.safetensors"
    mio.save(base, {"w": np.ones(2, np.float32), "z": np.array([1 + 2j], np.complex64)})
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="`dtype` is float8_e8m0fnu, which has no sign"):
        mio.merge_files(base, [base], out, [1.0], dtype=ml_dtypes.float8_e8m0fnu)
    mio.merge_files(base, [base], out, [1.0], dtype=np.float16)
    want = {"w": np.ones(2, np.float16), "z": np.array([1 + 2j], np.complex64)}
    assert_same(dict(sorted(mio.load(out).items())), want)


@pytest.mark.parametrize(
    "how",
    [
        *TRANSFORMS,
        {"transform": mio.TIES(scope="global")},
        {"transform": mj.transforms.ties},
        {"transform": mj.transforms.magmax, "elementwise": True},
        {"transform": mj.transforms.model_stock},
        {
            "transform": functools.partial(mj.transforms.dare, density=0.5),
            "key": jax.random.key(0),
        },
    ],
)
def test_tensors_without_numbers_stay(tmp_path, how):
    base = write(tmp_path / "base.safetensors", e=np.zeros((0, 3)), w=np.ones((2, 2)))
    expert = write(tmp_path / "expert.safetensors", e=np.zeros((0, 3)), w=np.eye(2))
    out = tmp_path / "out.safetensors"
    plan = mio.merge_files(base, [expert, expert], out, [0.5, 0.5], **how)
    assert set(plan.merged) == {"e", "w"}
    assert mio.load(out)["e"].shape == (0, 3)
    only = write(tmp_path / "only.safetensors", e=np.zeros((0, 3)))
    mio.merge_files(only, [only, only], out, [0.5, 0.5], **how)
    assert list(mio.load(out)) == ["e"]


def test_new_arrays_are_no_ties_for_being_equal(tmp_path):
    like = write(tmp_path / "like.safetensors", b=np.zeros(3), w=np.ones((2, 2)))
    params = mio.load(like)
    for new in (np.zeros(3, np.float32), params["b"]):
        with pytest.raises(ValueError, match="`params` has 'new', which `like` lacks"):
            mio.save(tmp_path / "x.safetensors", {**params, "new": new}, like=like)
    mio.save(tmp_path / "x.safetensors", {**params, "head": params["w"]}, like=like)
    assert set(mio.load(tmp_path / "x.safetensors")) == {"b", "w"}


def test_biases_that_begin_as_one_array_are_not_tied(tmp_path):
    zeros = np.zeros(3, np.float32)
    base = write(tmp_path / "base.safetensors", a=zeros, b=zeros)
    mio.save(tmp_path / "one.safetensors", {"a": zeros, "b": zeros})
    assert set(safetensors.numpy.load_file(tmp_path / "one.safetensors")) == {"a", "b"}
    expert = write(tmp_path / "expert.safetensors", a=zeros + 1, b=zeros + 2)
    out = tmp_path / "out.safetensors"
    for first in (base, tmp_path / "one.safetensors"):
        mio.merge_files(first, [expert], out, [1.0])
        assert_same(mio.load(out), mio.load(expert))


def tied(path, kept, *names, value=1.0):
    x = np.full((2, 3), value, np.float32)
    aliases = {name: kept for name in names}
    safetensors.numpy.save_file({kept: x}, path, metadata=aliases)
    return path


def test_tied_tensors_are_found_under_their_other_names(tmp_path):
    base = tied(tmp_path / "base.safetensors", "embed", "head")
    experts = [
        tied(tmp_path / "a.safetensors", "head", "embed", value=2),
        tied(tmp_path / "b.safetensors", "head", value=3),
        tied(tmp_path / "c.safetensors", "embed", value=5),
        write(tmp_path / "d.npz", head=np.full((2, 3), 9)),
    ]
    out = tmp_path / "out.safetensors"
    for how in TRANSFORMS[1:]:
        mio.merge_files(base, experts[:1], out, [1.0], **how)
        assert mio.load(out)["embed"].shape == (2, 3)
    mio.merge_files(base, experts, out, [1.0, 1.0, 1.0, 1.0])
    merged = mio.load(out)
    assert merged["head"] is merged["embed"]
    np.testing.assert_array_equal(merged["embed"], np.full((2, 3), 1 + 1 + 2 + 4 + 8))
    # A base that does not tie them takes both from the one of the expert.
    base = write(tmp_path / "b2.safetensors", embed=np.ones((2, 3)), head=np.zeros((2, 3)))
    mio.merge_files(base, experts[:1], out, [1.0])
    assert_same(mio.load(out), dict.fromkeys(("embed", "head"), merged["embed"] * 0 + 2))


def test_tensors_that_only_the_base_ties_are_told(tmp_path):
    base = tied(tmp_path / "base.safetensors", "embed", "head")
    both = {"embed": np.ones((2, 3)), "head": np.zeros((2, 3))}
    expert = write(tmp_path / "both.safetensors", **both)
    message = r"both\.safetensors has 'embed' and 'head' as two tensors, but they are tied"
    with pytest.raises(ValueError, match=message):
        mio.merge_files(base, [expert], tmp_path / "out.safetensors", [1.0])


@pytest.mark.parametrize("name", ["out.npz", "out", "out.bin"])
def test_one_file_is_called_safetensors(tmp_path, name):
    base = write(tmp_path / "base.npz", w=np.ones(3))
    with pytest.raises(ValueError, match=r"`output` is .* makes one \.safetensors file"):
        mio.merge_files(base, [base], tmp_path / name, [1.0], dry_run=True)
    assert not (tmp_path / name).exists()


def test_a_folder_for_output_may_be_a_link(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    write(tmp_path / "base" / "model.safetensors", w=np.ones(3))
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    arguments = tmp_path / "base", [tmp_path / "base"]
    mio.merge_files(*arguments, tmp_path / "link", [1.0])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="link exists already"):
        mio.merge_files(*arguments, tmp_path / "link", [1.0], dry_run=True)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ValueError, match="circle exists already"):
        mio.merge_files(*arguments, tmp_path / "circle", [1.0], dry_run=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=r"^\. is the current folder, which a new folder"):
        mio.merge_files(*arguments, ".", [1.0], dry_run=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: path.name == "empty")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is a mount point, which a new folder"):
        mio.save(tmp_path / "empty", {"w": np.ones(3)})


def test_a_step_of_rows_is_refused(tmp_path):
    path = write(tmp_path / "x.safetensors", x=np.arange(12).reshape(6, 2))
    with mio.open_checkpoint(path) as checkpoint:
        for step in (2, -1):
            with pytest.raises(ValueError, match=f"`index` has the step {step} on the"):
                checkpoint.read("x", (slice(None, None, step),))
        found = checkpoint.read("x", (slice(1, 3), slice(None, None, -1)))
    np.testing.assert_array_equal(found, [[3, 2], [5, 4]])


def test_wide_numbers_are_not_lost_on_their_way_to_devices(tmp_path):
    path = tmp_path / "x.safetensors"
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = {"n": np.arange(3), "w": np.array([0.1, np.inf])}  # such as numbers of places
    mio.save(path, params)
    found = mio.load(path, sharding=sharding)
    assert (found["n"].dtype, found["w"].dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(found["n"], params["n"])
    for name, wide in (("n", np.array([2**40 + 5])), ("w", np.array([1e300]))):
        mio.save(path, params | {name: wide})
        with pytest.raises(ValueError, match=f"'{name}' holds .*64 numbers that 32 bits"):
            mio.load(path, sharding=sharding)
        with jax.enable_x64(True):
            assert mio.load(path, sharding=sharding)[name][0] == wide[0]


def test_the_name_of_the_notes_is_no_tensor(tmp_path):
    params = {"__metadata__": np.ones(2), "w": np.ones(2)}
    with pytest.raises(ValueError, match="called '__metadata__', which in safetensors"):
        mio.save(tmp_path / "x.safetensors", params)
    mio.save(tmp_path / "x.npz", params)
    assert_same(mio.load(tmp_path / "x.npz"), params)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
