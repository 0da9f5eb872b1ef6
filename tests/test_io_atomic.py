"""A file is written whole or not at all."""

import os
import shutil

import numpy as np
import pytest

import mapjax.io as mio
from mapjax import _atomic


def write(path):
    mio.save(path, {"w": np.ones(3)})
    return path


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.msgpack", "x"])
def test_a_failing_save_keeps_what_was_there(name, tmp_path, monkeypatch):
    path = tmp_path / name
    if path.suffix:
        mio.save(path, {"w": np.zeros(2)})
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        OSError, match="No space left on device while writing; nothing was l"
    ):
        mio.save(path, {"w": np.ones(2)})
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_link_stays_one(tmp_path):
    real = write(tmp_path / "real.safetensors")
    link = tmp_path / "folder" / "link.safetensors"
    link.parent.mkdir()
    link.symlink_to(real)
    for path in (real, link):
        path.with_name(path.name + _atomic.SIDECAR).write_text("of what was there before")
    mio.save(link, {"w": np.zeros(5)})
    assert link.is_symlink()
    assert mio.load(link)["w"].shape == mio.load(real)["w"].shape == (5,)


@pytest.mark.parametrize("name", ["x" * 243 + ".safetensors", "ü" * 125 + ".npz"])
def test_the_longest_names(name, tmp_path):
    assert mio.load(write(tmp_path / name))["w"].shape == (3,)


def test_a_disk_without_room_is_found_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(_atomic.shutil, "disk_usage", lambda _: usage)
    for name in ("x.safetensors", "x.npz", "x.msgpack", "x"):
        with pytest.raises(
            OSError, match=r"\d+ bytes are needed but 100 are free.*Make room"
        ):
            mio.save(tmp_path / name, {"w": np.ones(100)})
    assert not list(tmp_path.iterdir())
