"""The parts of a streamed merge: thresholds, work in pieces, and the memory it takes."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import mapjax as mj
import mapjax.io as mio
from mapjax import _tree, task_vectors
from mapjax.io import _plan, _stream, _ties
from mapjax.io._npz import NpzCheckpoint

MIB = 2**20


def test_the_kth_largest_is_exact():
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=10_000)).astype(np.float32)
    values[::7] = values[0]
    values[5:9] = 0
    for k in (1, 5, 1234, 9_999, 10_000):
        histogram = _ties.Histogram()
        for _ in range(2):
            for part in np.split(values, 4):
                histogram.add(part)
            if histogram._bin is None:
                histogram.narrow(k)
        want = np.sort(values)[-k]
        assert histogram.kth_largest(k) == want
        assert _ties.kth_largest(values.copy(), k) == want


def test_the_first_error_ends_the_work():
    done = []

    def work(piece):
        done.append(piece)
        if piece.start == 3:
            raise KeyError("three")

    pieces = [_plan.Piece("w", i, 1, 5) for i in range(1000)]
    with pytest.raises(KeyError, match="three"):
        _stream.run(pieces, work, workers=2, memory=10)
    assert len(done) < 100


def test_many_leaves_are_compared_in_time_that_grows_with_them():
    leaves = [_tree.Leaf(f"layer_{i}", 0, "not an array") for i in range(10_000)]
    begun = time.monotonic()
    _tree.check_same_leaves(leaves, leaves, "a")
    # 5 s or more if all names are gone through for each.
    assert time.monotonic() - begun < 1


def test_a_transform_compiles_once_for_all_tensors_of_a_shape(tmp_path):
    for i in range(2):
        x = {f"layer_{n}": np.full((3, 5), i + n, np.float32) for n in range(6)}
        mio.save(tmp_path / f"{i}.npz", x)
    cache: Any = task_vectors._merge
    before = cache._cached._cache_size()
    seen = []

    def rule(tv):
        seen.extend(tv.base)
        return mj.transforms.ties(tv, density=0.5)

    paths = [tmp_path / f"{i}.npz" for i in range(2)]
    mio.merge_files(paths[0], paths[1:], tmp_path / "m.safetensors", [0.5], transform=rule)
    assert sorted(seen) == [f"layer_{n}" for n in range(6)]
    assert cache._cached._cache_size() <= before + 1


PROGRAM = """
import resource, sys, pathlib, numpy as np
import mapjax.io as mio
folder, memory, rule = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
transform = None if rule == "linear" else mio.TIES(0.2, rule)
def merge(name, out):
    files = [folder / f"{name}_{i}.safetensors" for i in range(3)]
    return mio.merge_files(files[0], files[1:], folder / out, [0.5, 0.25],
                           transform=transform, memory=memory)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
merge("small", "warm.safetensors")   # what JAX and the programs take themselves
before = peak()
plan = merge("large", "out.safetensors")
print(plan.peak_memory, peak() - before)
"""


@pytest.mark.parametrize("rule", ["linear", pytest.param("global", marks=pytest.mark.slow)])
def test_memory_stays_within_what_was_said(rule, tmp_path):
    # 60 MiB a file and 180 to read, within 12.
    rng = np.random.default_rng(0)
    for i in range(3):
        x = rng.normal(size=15 * MIB).astype(np.float32)
        mio.save(
            tmp_path / f"large_{i}.safetensors", {"w": x[: 11 * MIB], "v": x[11 * MIB :]}
        )
        mio.save(tmp_path / f"small_{i}.safetensors", {"w": x[: MIB // 2]})
    limit = 12 * MIB
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(limit), rule],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said, used = map(int, ran.stdout.split())
    assert said <= limit
    assert used <= limit, (said / MIB, used / MIB)
    merged = mio.load(tmp_path / "out.safetensors")
    assert merged["w"].size == 11 * MIB


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("transform", [None, mio.TIES(0.5)])
def test_arrays_in_the_order_of_fortran_are_read_once(
    compressed, transform, tmp_path, monkeypatch
):
    monkeypatch.setattr(_plan, "LARGEST_PIECE", 2**12)
    arrays = {i: np.random.default_rng(i).normal(size=(300, 100)) for i in range(2)}
    paths = [tmp_path / f"{i}.npz" for i in range(2)]
    save = np.savez_compressed if compressed else np.savez
    for i, path in enumerate(paths):
        save(path, w=np.asfortranarray(arrays[i], np.float32))
        mio.save(tmp_path / f"{i}.safetensors", {"w": arrays[i].astype(np.float32)})
    wholes = []
    read = NpzCheckpoint._read_bytes

    def counted(self, name, member, position, out):
        wholes.append(out.size)
        read(self, name, member, position, out)

    monkeypatch.setattr(NpzCheckpoint, "_read_bytes", counted)
    how: dict[str, Any] = {"transform": transform, "memory": 4 * MIB}
    out = tmp_path / "m.safetensors"
    plan = mio.merge_files(paths[0], paths[1:], out, [0.5], **how)
    assert wholes == [30_000, 30_000]
    assert 2 * 120_000 < plan.peak_memory <= 4 * MIB
    flat = [tmp_path / f"{i}.safetensors" for i in range(2)]
    mio.merge_files(flat[0], flat[1:], tmp_path / "n.safetensors", [0.5], **how)
    assert out.read_bytes() == (tmp_path / "n.safetensors").read_bytes()
    how["memory"] = 250_000
    with pytest.raises(ValueError, match=r"is 250000 bytes.* in Fortran's order"):
        mio.merge_files(paths[0], paths[1:], out, [0.5], **how)
