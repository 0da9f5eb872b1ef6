"""What the tests of the commands share: three small checkpoints, and a way to run."""

import json

import numpy as np
import pytest

import mapjax.io
from mapjax.cli import main

RANDOM = np.random.default_rng(0)


def tensors(scale):
    return {
        "layer.w": (scale * RANDOM.normal(size=(12, 9))).astype(np.float32),
        "layer.b": (scale * RANDOM.normal(size=9)).astype(np.float32),
        "steps": np.array([3, 4]),
    }


BASE = tensors(1.0)
EXPERTS = {
    name: {n: x if n == "steps" else BASE[n] + x for n, x in tensors(0.1).items()}
    for name in ("mnist", "usps")
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, params in {"base": BASE, **EXPERTS}.items():
        mapjax.io.save(tmp_path / f"{name}.safetensors", params)
    return tmp_path


NAMES = ["base.safetensors", "mnist.safetensors", "usps.safetensors"]


def run(capsys, *args, code=0):
    """Run a command; give what it printed on both streams."""
    try:
        main([str(arg) for arg in args])
        found = 0
    except SystemExit as stop:
        found = stop.code or 0
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def run_json(capsys, *args, code=0):
    out, _ = run(capsys, *args, "--json", code=code)
    return json.loads(out)
