"""Benchmarks: suites hold what they promise."""

import hashlib
import importlib
import inspect
import sys
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench_tools import toy_suite

from benchmarks.suites import SUITES, _cache, digits8, mhc8


@pytest.fixture(scope="module")
def digits():
    return digits8.load(0, base_steps=20, expert_steps=60)


def test_digits8_are_eight_views_of_scikit_learns_digits(digits):
    from sklearn.datasets import load_digits

    views = {
        "identity": lambda x: x,
        "mirror_rows": np.flipud,
        "mirror_columns": np.fliplr,
        "half_turn": lambda x: np.rot90(x, 2),
        "transpose": np.transpose,
        "quarter_turn": np.rot90,
        "quarter_back": lambda x: np.rot90(x, -1),
        "invert": lambda x: 1 - x,
    }
    assert digits.names == tuple(views)
    images: Any = load_digits()
    labels = {
        (x / 16).astype("f").tobytes(): y
        for x, y in zip(images.images, images.target, strict=True)
    }
    identity = digits.validation.tasks[0]
    for task in digits.validation.tasks:
        np.testing.assert_array_equal(task.targets, identity.targets)
        for image, original, target in zip(
            task.inputs[:20], identity.inputs, task.targets, strict=False
        ):
            original = np.asarray(original).reshape(8, 8)
            assert labels[original.tobytes()] == target
            np.testing.assert_array_equal(
                image.reshape(8, 8), views[task.name](original), err_msg=task.name
            )


def test_digits8_experts_are_best_at_home_and_splits_do_not_meet(digits):
    table = np.asarray(digits.validation(np.eye(9, 8, k=-1)))
    others = table[1:] - 2 * np.eye(8)
    assert np.all(np.diagonal(table[1:]) > np.maximum(others.max(axis=0), table[0]) + 0.05)
    rows = [
        {np.asarray(x).tobytes() for x in evaluator.tasks[0].inputs}
        for evaluator in (digits.validation, digits.test)
    ]
    assert [len(x) for x in rows] == [500, 500]
    assert not rows[0] & rows[1]


def test_digits8_holds_out_two_views_that_no_model_has_seen(digits):
    identity = np.asarray(digits.test.tasks[0].inputs[:20]).reshape(-1, 8, 8)
    turned, inverted = (
        np.asarray(t.inputs[:20]).reshape(-1, 8, 8) for t in digits.held_out.tasks
    )
    np.testing.assert_array_equal(turned, np.rot90(identity, 2, (1, 2)).transpose(0, 2, 1))
    np.testing.assert_array_equal(inverted, 1 - np.rot90(identity, 2, (1, 2)))
    assert not {*digits.held_out.task_names} & {*digits.names}


def test_a_fingerprint_tells_models_apart():
    assert toy_suite().fingerprint() == toy_suite().fingerprint()
    assert toy_suite().fingerprint() != toy_suite(seed=1).fingerprint()


def test_every_suite_of_the_command_line_has_a_loader():
    for name, entry in SUITES.items():
        module = importlib.import_module(f"benchmarks.suites.{entry.module}")
        assert callable(module.load), name
        assert {*entry.options} <= {*inspect.signature(module.load).parameters}, name


def test_training_is_done_once_for_the_same_ingredients(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    calls = []

    def train():
        calls.append(1)
        return {"layer": {"w": np.full(2, len(calls), np.float32)}}

    data = np.arange(3)
    first = _cache.trained("x", train, 0, {"steps": 5}, data)
    again = _cache.trained("x", train, 0, {"steps": 5}, data)
    np.testing.assert_array_equal(first["layer"]["w"], again["layer"]["w"])
    others = [(1, {"steps": 5}, data), (0, {"steps": 6}, data), (0, {"steps": 5}, data + 1)]
    for other in others:
        _cache.trained("x", train, *other)
    assert len(calls) == 1 + len(others)


def test_a_package_is_read_from_the_cache_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    (tmp_path / "a.whl").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    assert _cache.fetch("a==1", "a.whl", digest) == tmp_path / "a.whl"
    with pytest.raises(RuntimeError, match=r"SHA-256 .* not 0000.*Delete it"):
        _cache.fetch("a==1", "a.whl", "0000")
    monkeypatch.setattr(sys, "executable", "/bin/false")  # in place of Python with pip
    with pytest.raises(
        RuntimeError, match=r"b==1 could not be downloaded. Put b\.whl into"
    ):
        _cache.fetch("b==1", "b.whl", digest)


def test_mhc8_computes_the_lstm_of_keras():
    rng = np.random.default_rng(0)

    def weights(rows, columns):
        return {
            "kernel": rng.normal(size=(rows, columns)),
            "bias": rng.normal(size=columns),
        }

    lstm = weights(21, 256) | {"recurrent_kernel": 0.3 * rng.normal(size=(64, 256))}
    params = {"lstm": lstm, "hidden": weights(64, 64), "last": weights(64, 1)}
    peptides = ["SIINFEKL", "ACDEFGHIKLMNPQR", "BX"]

    def one(peptide):
        h, c = np.zeros(64), np.zeros(64)
        for letter in peptide:  # padding carries the state on: it is simply not there
            x = np.full(21, 0.005)
            x["ACDEFGHIKLMNPQRSTVWYX".find(letter if letter != "B" else "X")] = 0.9
            z = x @ lstm["kernel"] + h @ lstm["recurrent_kernel"] + lstm["bias"]
            hard = np.clip(0.2 * z + 0.5, 0, 1)
            c = hard[64:128] * c + hard[:64] * np.tanh(z[128:192])
            h = hard[192:] * np.tanh(c)
        h = np.tanh(h @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return (h @ params["last"]["kernel"] + params["last"]["bias"])[0]

    got = mhc8.predict(
        jax.tree.map(jnp.float32, params), jnp.asarray(mhc8.encode(peptides))
    )
    np.testing.assert_allclose(got, [one(p) for p in peptides], rtol=1e-4, atol=1e-4)


def test_mhc8_reads_binders_of_the_wanted_alleles(tmp_path):
    path = tmp_path / "wheel.zip"
    lines = [
        "mhc,peptide,IC50(nM),measurement_type",
        "HLA-A*03:01,AAA,500.0,x",
        "HLA-A*03:01,aaa,9000.0,x",  # the same again: the first counts
        "HLA-A*03:01,CCC,500.1,x",
        "HLA-A*03:01,CCD,,x",
        f"HLA-A*03:01,{16 * 'A'},1.0,x",
        "HLA-C*01:02,AAD,1.0,x",
    ]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(mhc8._TABLE, "\n".join(lines))
    with zipfile.ZipFile(path) as wheel:
        inputs, targets = mhc8.read_peptides(wheel)["A03:01"]
    np.testing.assert_array_equal(inputs, mhc8.encode(["AAA", "CCC"]))
    np.testing.assert_array_equal(targets, [1, 0])


def test_mhc8_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="'h5py', which is not installed: pip install"):
        mhc8.load(0)
