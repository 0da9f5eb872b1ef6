"""Files that are damaged, dangerous or too large are refused in clear words."""

import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from io_tools import GOOD, entry, safetensors_bytes

import mapjax.io as mio
from mapjax.io import _header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-1], r"should have \d+ bytes but has \d+: it is truncated"),
        (GOOD + b"x", r"should have \d+ bytes but has \d+: .* something was appended"),
        (GOOD[:20], "is no whole safetensors file: its header would take"),
        (GOOD[:5], "is no whole safetensors file"),
        (b"", "is no whole safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\xff" * 8 + GOOD[8:], "its header would take 18446744073709551615 bytes"),
        (safetensors_bytes(b'{"x":'), "the header is damaged"),
        (safetensors_bytes(b'{"\xff"'), "the header is damaged"),
        (safetensors_bytes(b"{" + b'"a":{' * 100_000), "the header is damaged"),
        (safetensors_bytes(b'{"x":1e400}', b""), "'x' lacks a dtype"),
        (safetensors_bytes({"x": {"dtype": "F32"}}), "'x' lacks a dtype, a shape or two"),
        (safetensors_bytes({"x": entry(offsets=(0, 8, 9))}), "'x' lacks a dtype, a shape"),
        (
            safetensors_bytes({"x": entry(shape=(-2,))}),
            "must be lists of numbers, 0 or more",
        ),
        (safetensors_bytes({"x": entry(shape=(2.0,))}), "must be lists of numbers"),
        (safetensors_bytes({"x": entry(shape=(True, 2))}), "must be lists of numbers"),
        (safetensors_bytes({"x": entry(offsets=(8, 0))}), "hold -8"),
        (
            safetensors_bytes({"x": entry(shape=(3,))}),
            r"F32 of shape \(3,\), 12 bytes, but",
        ),
        (safetensors_bytes({"x": entry("F4")}), "has the dtype 'F4'; known are BOOL"),
        (safetensors_bytes({"x": entry(shape=(2**40,) * 9)}), "which no array can have"),
        (safetensors_bytes({"x": entry(shape=(0, 2**70), offsets=(0, 0))}), "no array can"),
        (safetensors_bytes({"x": entry(shape=(1,) * 65)}), "which no array can have"),
        (
            safetensors_bytes({"x": entry(offsets=(4, 12))}),
            "leave a hole before tensor 'x'",
        ),
        (safetensors_bytes({"x": entry(), "y": entry()}), "overlap tensor 'y'"),
        (
            safetensors_bytes({"x": entry(), "y": entry(offsets=(4, 12))}),
            "overlap tensor 'y', which begins at 4 and not at 8",
        ),
        (safetensors_bytes({"x": entry(offsets=(2**70, 2**70 + 8))}), "leave a hole"),
        (
            safetensors_bytes(b'{"x":%b,"x":%b}' % ((json.dumps(entry()).encode(),) * 2)),
            "the name 'x' comes twice",
        ),
        (safetensors_bytes({"x": entry(), "__metadata__": {"a": 1}}), "must map strings"),
    ],
)
def test_safetensors_that_are_damaged(content, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        mio.load(path)
    assert str(path) in str(caught.value)


def test_a_header_longer_than_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(_header, "LONGEST_HEADER", 10)
    (tmp_path / "x.safetensors").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"the header claims \d+ bytes, but at most 10"):
        mio.load(tmp_path / "x.safetensors")


def write_index(folder, weight_map, more=None):
    (folder / "good.safetensors").write_bytes(GOOD)
    index = weight_map if isinstance(weight_map, bytes) else None
    text = index or json.dumps({"weight_map": weight_map, **(more or {})}).encode()
    (folder / "model.safetensors.index.json").write_bytes(text)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "../secret.safetensors"}, "which is not inside its folder"),
        ({"x": "a/../../secret.safetensors"}, "which is not inside its folder"),
        ({"x": "/etc/passwd"}, "points to '/etc/passwd', which is not inside its folder"),
        ({"x": "link.safetensors"}, "points to 'link.safetensors', which is not inside"),
        ({"x": "circle"}, "which is not inside its folder|are missing"),
        ({"x": ""}, "which is not inside its folder"),
        ({"x": "a\0b"}, "which is not inside its folder"),
        ({"x": "n" * 5000}, "which is not inside its folder|are missing"),
        (
            {"x": "none.safetensors"},
            r"1 shards, of which \['none.safetensors'\] are missing",
        ),
        ({"x": "good.safetensors", "y": "good.safetensors"}, "'y' is in good.safetensors"),
        ({"y": "good.safetensors"}, "'y' is in good.safetensors, which does not hold it"),
        ({}, "is no index of safetensors shards: TypeError"),
        ({"x": 3}, "is no index of safetensors shards: TypeError"),
        (b"{", "is no index of safetensors shards: JSONDecodeError"),
        (b"[]", "is no index of safetensors shards: TypeError"),
        (b'{"metadata": {}}', "is no index of safetensors shards: KeyError, 'weight_map'"),
        (b'{"weight_map": {"x": "a", "x": "b"}}', "the name 'x' comes twice"),
        (b"[" * 100_000, "is no index of safetensors shards: RecursionError"),
    ],
)
def test_indices_that_are_damaged_or_point_outside(weight_map, message, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.safetensors").write_bytes(GOOD)
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "circle").symlink_to("circle")
    write_index(folder, weight_map)
    for path in (folder, folder / "model.safetensors.index.json"):
        with pytest.raises(ValueError, match=message):
            mio.load(path)


def test_folders_of_shards_that_do_not_fit(tmp_path):
    write_index(tmp_path, {"x": "good.safetensors"})
    other = {"y": entry(), "x": entry(offsets=(8, 16))}
    (tmp_path / "good.safetensors").write_bytes(safetensors_bytes(other, b"\0" * 16))
    with pytest.raises(
        ValueError, match=r"holds tensor 'y', which .*index\.json does not na"
    ):
        mio.load(tmp_path)
    (tmp_path / "b.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has several indices"):
        mio.load(tmp_path)
    for index in tmp_path.glob("*.json"):
        index.unlink()
    (tmp_path / "more.safetensors").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"Tensor 'x' is both in .* and in"):
        mio.load(tmp_path)
    (tmp_path / "more.safetensors").unlink()
    (tmp_path / "link.safetensors").symlink_to("/etc/passwd")
    with pytest.raises(
        ValueError, match=r"'link\.safetensors', which is not inside its fol"
    ):
        mio.load(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("/tmp/mapjax-was-hacked",)


def npz_bytes(members, compress=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compress) as archive:
        warnings.simplefilter("ignore")  # of a name that comes twice
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def npy(array=None, header=b"", data=b""):
    file = io.BytesIO()
    if array is not None:
        np.save(file, array)
    else:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)
    return file.getvalue()


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            npz_bytes([("x.npy", npy(np.array([Bomb()])))]),
            "'x' is pickled, and a pickle can",
        ),
        (
            npz_bytes([("archive/data.pkl", b"\x80\x02")]),
            "is a PyTorch file, which is a pick",
        ),
        (npz_bytes([("readme.txt", b"hello")]), r"holds 'readme\.txt', which is no array"),
        (npz_bytes([("x.npy", npy(np.ones(2)))] * 2), "the name 'x' comes twice"),
        (
            npz_bytes([("x.npy", npy(np.ones(2))[:-1])]),
            r"\(2,\), 16 bytes, but 15 are there",
        ),
        (npz_bytes([("x.npy", npy(header=HUGE))]), "4398046511104 bytes, but 0 are there"),
        (
            npz_bytes([("x.npy", npy(header=b"{'descr': os.system('x')}"))]),
            "is no array of N",
        ),
        (npz_bytes([("x.npy", npy(header=b"(" * 9000))]), "is no array of NumPy"),
        (npz_bytes([("x.npy", b"nothing")]), "'x' is no array of NumPy"),
        (npz_bytes([("x.npy", npy(np.array(["a"])))]), "is <U1, and what it means was not"),
        (
            npz_bytes([("x.npy", npy(np.zeros(1, "V1")))]),
            r"is \|V1, and what it means was n",
        ),
        (
            npz_bytes([("x.npy", npy(np.zeros(1, "i4,f4")))]),
            "and what it means was not noted",
        ),
        (
            npz_bytes([("x.npy", npy(np.ones(2)))])[:-30],
            "is no whole .npz file: BadZipFile",
        ),
        (
            npz_bytes([("x.npy", npy(np.ones(2)))], zipfile.ZIP_BZIP2),
            "'x' is encrypted or compressed in an unknown way",
        ),
    ],
)
def test_npz_that_are_damaged_or_pickles(content, message, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mio.load(tmp_path / "x.npz")
    assert not Path("/tmp/mapjax-was-hacked").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_a_wrong_checksum(save, tmp_path):
    save(tmp_path / "x.npz", x=np.arange(100.0))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[250] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"checksum|is no whole \.npz file"):
        mio.load(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.bin", pickle.dumps([1], 4), "is a pickle, which can run any program"),
        ("x.npy", npy(np.ones(2)), "is one NumPy array: save a dict"),
        ("x.h5", b"\x89HDF\r\n", "is HDF5: load it with h5py"),
        ("x.gguf", b"GGUF123", "is GGUF, which is quantised"),
        ("x.gz", b"\x1f\x8b123", "is compressed by gzip"),
        ("x.npz", b"PK\x05\x06" + bytes(18), "is an empty archive"),
        (
            "x.what",
            b"hello",
            r"is in no known format; it begins with b'hello'\. Pass safet",
        ),
        ("x.msgpack", b"", "is no whole msgpack file of flax"),
        ("x.msgpack", b"\x82\xa1a", "is no whole msgpack file of flax"),
        ("x.msgpack", b"\x93\x01\x02\x03", "holds list, not a dict of arrays"),
        ("x.msgpack", b"\x81\xa1a\xa1b", r"Leaf \['a'\] is str, not an array of numbers"),
    ],
)
def test_files_of_other_formats(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mio.load(tmp_path / name)


def test_folders_and_paths_without_a_checkpoint(tmp_path):
    with pytest.raises(OSError, match=r"there is no such file or folder: .*nothing"):
        mio.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is a folder without a checkpoint"):
        mio.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"holds \['pytorch_model.bin'\], which are pickles"
    ):
        mio.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no file and no folder"):
        mio.load(tmp_path / "pipe")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_orbax_that_is_damaged_or_unfinished(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "good", {"w": jnp.ones(3)})
    shutil.copytree(tmp_path / "good", tmp_path / "1.orbax-checkpoint-tmp")
    with pytest.raises(ValueError, match=r"1\.orbax-checkpoint-tmp was never finished"):
        mio.load(tmp_path / "1.orbax-checkpoint-tmp")
    for file in (tmp_path / "good" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"good: orbax says .* use another step"):
        mio.load(tmp_path / "good")
    (tmp_path / "good" / "_METADATA").write_bytes(b"{")
    with pytest.raises(ValueError, match="good: orbax says"):
        mio.load(tmp_path / "good")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"like": {"v": np.ones(2)}},
            "lacks 'v', which `like` has and has 'w', which `like`",
        ),
        ({"like": {"w": np.ones(3)}}, r"'w' has shape \(2,\), but \(3,\) in `like`"),
        ({"like": {"w": np.arange(2)}}, "'w' is float64, but int64 in `like`, and neither"),
        ({"item": "params"}, "has no item 'params', but 'w'"),
        ({"sharding": {"v": None, "u": 1}}, "`sharding` has 'u', which .* lacks"),
        ({"like": {"w": "text"}}, r"Leaf \['w'\] is str, not an array of numbers"),
    ],
)
def test_wishes_that_the_file_cannot_meet(arguments, message, tmp_path):
    mio.save(tmp_path / "x.npz", {"w": np.ones(2)})
    with pytest.raises(ValueError, match=message):
        mio.load(tmp_path / "x.npz", **arguments)


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        ("x.pt", {"w": np.ones(2)}, r"whose suffix '\.pt' names no format: use"),
        ("x.npz", {}, "`params` has no arrays to save"),
        ("x.npz", np.ones(2), "The tree is a single array: pass a dict"),
        (
            "x.npz",
            {"a": {"b": np.ones(1)}, "a.b": np.ones(1)},
            "Two leaves have the name 'a.b'",
        ),
        ("x.npz", {"f": len}, r"Leaf \['f'\] is builtin_function_or_method, not an array"),
        ("x.npz", {"k": jax.random.key(0)}, "give random keys as `jax.random.key_data`"),
        (
            "x.npz",
            {"s": np.array(["a"])},
            "Tensor 's' is <U1, which .npz files cannot hold",
        ),
        (
            "x.safetensors",
            {"c": np.ones(1, complex)},
            "'c' is complex128, which safetensors",
        ),
        ("folder/x.npz/y.npz", {"w": np.ones(1)}, "cannot lie in it"),
    ],
)
def test_what_cannot_be_saved(path, params, message, tmp_path):
    (tmp_path / "folder").mkdir()
    mio.save(tmp_path / "folder" / "x.npz", {"w": np.ones(2)})
    with pytest.raises((ValueError, OSError), match=message):
        mio.save(tmp_path / path, params)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "x.npz"]


def test_like_must_fit(tmp_path):
    mio.save(tmp_path / "x.npz", {"w": np.ones(2)})
    with pytest.raises(
        ValueError, match="`params` lacks 'w', which `like` has and has 'v'"
    ):
        mio.save(tmp_path / "y.npz", {"v": np.ones(2)}, like=tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"`params`: 'w' has shape \(3,\), but \(2,\) in"):
        mio.save(tmp_path / "y.npz", {"w": np.ones(3)}, like=tmp_path / "x.npz")
    mio.save(tmp_path / "z.safetensors", {"w": np.ones(3)})
    with pytest.raises(ValueError, match=r"is a folder: pass the path of a file"):
        mio.save(tmp_path, {"w": np.ones(3)}, like=tmp_path / "z.safetensors")
