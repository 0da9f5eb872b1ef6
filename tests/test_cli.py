"""The commands do what the library does, and say what is wrong before they begin."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cli_tools import BASE, EXPERTS, NAMES, RANDOM, files, run, run_json, tensors

import mapjax.io

__all__ = ["files"]  # a fixture


def test_merge_is_the_merge_of_the_library(capsys, files):
    c = [0.6, -0.4]
    options = ["-o", "out.safetensors", "--coefficients", "0.3", "-0.2", "--scale", "2"]
    plan = run_json(capsys, "merge", *NAMES, *options)
    assert plan["coefficients"] == c
    assert sorted(plan["merged"]) == ["layer.b", "layer.w"]
    assert plan["left_alone"] == {"steps": "int64 leaf"}
    merged = mapjax.io.load("out.safetensors")
    for name in plan["merged"]:
        truth = BASE[name].astype(float)
        for x, expert in zip(c, EXPERTS.values(), strict=True):
            truth = truth + x * (expert[name].astype(float) - BASE[name])
        np.testing.assert_allclose(merged[name], truth, rtol=1e-6, atol=1e-6)
    card = (files / "out.safetensors.md").read_text()
    assert "| mnist | mnist.safetensors | 0.6 |" in card
    assert "Rule: linear. Coefficients in full: `[0.6, -0.4]`" in card
    assert f"mapjax {mj_version()}" in card


def mj_version():
    from importlib.metadata import version

    return version("mapjax")


def test_a_dry_run_writes_nothing(capsys, files):
    before = sorted(files.iterdir())
    out, _ = run(capsys, "merge", *NAMES, "-o", "out.safetensors", "--dry-run")
    assert "Would merge 2 tensors by linear with [1.0, 1.0]" in out
    assert "from the base: steps (int64 leaf)" in out
    assert sorted(files.iterdir()) == before


def test_paths_in_the_home_folder(capsys, files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    paths = ["~/base.safetensors", "~/mnist.safetensors", "--output=~/merged.safetensors"]
    run(capsys, "merge", *paths, "--coefficients=-1", "--json")
    assert (files / "merged.safetensors").exists()
    assert not (files / "~").exists()


def test_merge_writes_another_dtype(capsys, files):
    run(capsys, "merge", *NAMES, "-o", "out.safetensors", "--dtype", "bfloat16")
    assert mapjax.io.load("out.safetensors")["layer.w"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "magic"], "The rule is 'magic'; choose from linear, ties"),
        (["--density", "0.5"], "The rule 'linear' has no option 'density'; it takes no"),
        (["--rule", "ties", "--density", "2"], "`density` is 2.0, but must be in (0, 1]"),
        (["--rule", "ties", "--options", "window=1"], "'ties' has no option 'window'"),
        (
            ["--rule", "ties", "--options", "scope"],
            "--options has 'scope'; write name=value",
        ),
        (["--rule", "pcb", "--options", "scope=global"], "has no option 'scope'"),
        (["--coefficients", "1"], "--coefficients has 1 numbers for 2 experts"),
        (["--coefficients", "a", "b"], "Error parsing --coefficients"),
        (
            ["--rule", "ties", "--density", "0.2", "--options", "density=0.5"],
            "--density and --options both say density",
        ),
        (["--memory", "plenty"], "--memory is 'plenty'; write it as 4GiB"),
        (["--memory", "-4GB"], "--memory is '-4GB'; write it as 4GiB"),
        (["--dtype", "int8"], "--dtype is 'int8'; use float32"),
        (["--dtype", "nothing"], "--dtype is 'nothing'"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_wrong_arguments_of_merge_exit_with_2(capsys, files, arguments, message):
    _, err = run(capsys, "merge", *NAMES, "-o", "out", *arguments, code=2)
    assert message in " ".join(err.split())
    assert len(list(files.iterdir())) == 3


def test_a_file_that_is_no_recipe_is_kept(capsys, files):
    (files / "out.safetensors.md").write_text("my notes")
    for more in ([], ["--dry-run"]):
        _, err = run(capsys, "merge", *NAMES, "-o", "out.safetensors", *more, code=1)
        assert "would go to out.safetensors.md, which is something else" in err
    assert (files / "out.safetensors.md").read_text() == "my notes"
    assert not (files / "out.safetensors").exists()
    (files / "out.safetensors.md").unlink()
    for scale in ("1", "2"):
        run(capsys, "merge", *NAMES, "-o", "out.safetensors", "--scale", scale)
    assert "`[2.0, 2.0]`" in (files / "out.safetensors.md").read_text()


def test_missing_and_damaged_files(capsys, files):
    _, err = run(capsys, "merge", *NAMES, "nothing.npz", "-o", "out", code=2)
    assert err == "mapjax: EXPERT 3 is nothing.npz, where there is nothing.\n"
    _, err = run(capsys, "merge", NAMES[0], "-o", "out", code=2)
    assert "There are no experts" in err
    (files / "bad.safetensors").write_bytes(b"\0" * 64)
    _, err = run(capsys, "merge", NAMES[0], "bad.safetensors", "-o", "out", code=1)
    assert err.startswith("mapjax: bad.safetensors")
    assert "Traceback" not in err
    _, err = run(capsys, "merge", *NAMES, "-o", "usps.safetensors/out", code=1)
    assert "usps.safetensors" in err


def test_inspect_says_what_is_true(capsys, files):
    report = run_json(capsys, "inspect", *NAMES)
    base, mnist, _ = report["checkpoints"]
    assert (base["name"], mnist["name"]) == ("base", "mnist")
    assert base["format"] == "safetensors"
    assert base["num_numbers"] == 12 * 9 + 9 + 2
    assert base["dtypes"] == {"float32": 2, "int64": 1}
    vectors = [
        np.concatenate([(e[n] - BASE[n]).ravel() for n in ("layer.w", "layer.b")])
        for e in EXPERTS.values()
    ]
    norms = [np.linalg.norm(v) for v in vectors]
    found = report["norms"]
    assert found["share_read"] == 1
    np.testing.assert_allclose(
        [e["norm"] for e in found["experts"].values()], norms, rtol=1e-5
    )
    cosine = vectors[0] @ vectors[1] / norms[0] / norms[1]
    np.testing.assert_allclose(found["cosine"], [[1, cosine], [cosine, 1]], atol=1e-5)
    assert [e["shares_base"] for e in found["experts"].values()] == ["shared"] * 2
    assert report["merge"]["num_merged"] == 2
    assert report["merge"]["left_alone"] == {"steps": "int64 leaf"}
    assert report["merge"]["bytes_written"] == base["nbytes"]
    assert report["errors"] == report["notes"] == []
    out, _ = run(capsys, "inspect", *NAMES)
    assert "Would merge 2 tensors and take 1 from the base." in out
    assert f"{cosine:.3f}" in out


def test_inspect_tells_an_expert_called_base_from_the_base(capsys, files):
    (files / "sub").mkdir()
    (files / "mnist.safetensors").rename(files / "sub" / "base.safetensors")
    for others in (["sub/base.safetensors"], ["sub/base.safetensors", NAMES[2]]):
        report = run_json(capsys, "inspect", NAMES[0], *others)
        paths = [row["path"] for row in report["checkpoints"]]
        assert paths == [NAMES[0], *others]
        assert report["norms"]["experts"]["base"]["shares_base"] == "shared"
        assert report["merge"]["num_merged"] == 2
        assert len(report["norms"]["experts"]) == len(others)
    (files / NAMES[0]).write_bytes(b"")
    report = run_json(capsys, "inspect", NAMES[0], *others, code=1)
    assert len(report["errors"]) == 1
    assert report["merge"] is None


def test_inspect_reads_nothing_if_fast(capsys, files):
    report = run_json(capsys, "inspect", *NAMES, "--fast")
    assert report["norms"] is None
    assert report["merge"]["seconds"] is None
    alone = run_json(capsys, "inspect", NAMES[0])
    assert alone["merge"] is None
    assert len(alone["checkpoints"]) == 1
    _, err = run(capsys, "inspect", *NAMES, "--fast", "--full", code=2)
    assert "pass one" in err


def test_samples_estimate_norms(capsys, files, monkeypatch):
    from mapjax.cli import _report

    base = {"w": np.zeros((400, 500), np.float32), "b": np.zeros(10, np.float32)}
    expert = {n: RANDOM.normal(size=x.shape).astype(np.float32) for n, x in base.items()}
    mapjax.io.save("b.safetensors", base)
    mapjax.io.save("e.safetensors", expert)
    monkeypatch.setattr(_report, "_MOST_NUMBERS", 60_000)
    some = run_json(capsys, "inspect", "b.safetensors", "e.safetensors")["norms"]
    every = run_json(capsys, "inspect", "b.safetensors", "e.safetensors", "--full")["norms"]
    truth = np.sqrt(sum((x.astype(float) ** 2).sum() for x in expert.values()))
    assert 0.2 < some["share_read"] < 0.4
    assert every["share_read"] == 1
    assert every["experts"]["e"]["norm"] == pytest.approx(truth, rel=1e-6)
    assert some["experts"]["e"]["norm"] == pytest.approx(truth, rel=0.02)


def test_inspect_finds_every_error_at_once(capsys, files):
    other = tensors(1.0)
    for name in ("w", "b"):
        other[f"layer.{name}"] += 1
    mapjax.io.save("other.safetensors", other)
    mapjax.io.save("copy.safetensors", BASE)
    report = run_json(capsys, "inspect", *NAMES, "other.safetensors", "copy.safetensors")
    kinds = {n: e["shares_base"] for n, e in report["norms"]["experts"].items()}
    assert kinds["other"] == "another?"
    assert kinds["copy"] == "is the base"
    assert "'other' is" in report["notes"][0]
    assert "does not look fine-tuned" in report["notes"][0]
    assert report["norms"]["cosine"][3] == [None] * 4
    renamed = {"layer.x" if n == "layer.w" else n: x for n, x in BASE.items()}
    mapjax.io.save("renamed.safetensors", renamed)
    mapjax.io.save("shape.safetensors", BASE | {"layer.b": np.ones(8, np.float32)})
    nan = BASE | {"layer.b": np.full(9, np.nan, np.float32)}
    mapjax.io.save("nan.safetensors", nan)
    (files / "bad.npz").write_bytes(b"PK\x03\x04rubbish")
    wrong = [f"{name}.safetensors" for name in ("renamed", "shape", "nan")]
    report = run_json(capsys, "inspect", *NAMES, *wrong, "bad.npz", code=1)
    errors = report["errors"]
    assert len(errors) == 4
    for word in ("bad.npz", "layer.x", "(8,)", "'layer.b' holds NaN"):
        assert sum(word in error for error in errors) == 1, word
    _, err = run(capsys, "inspect", *NAMES, *wrong, code=1)
    assert err == "mapjax: 3 errors were found.\n"


def test_inspect_takes_tensors_without_numbers(capsys, files):
    mapjax.io.save("empty.safetensors", {"w": np.zeros((0, 3), np.float32)})
    report = run_json(capsys, "inspect", "empty.safetensors", "empty.safetensors")
    assert report["norms"] is None
    assert report["merge"]["merged"] == ["w"]


@pytest.mark.parametrize("command", ["inspect", "merge", "front", "plot", "pick"])
def test_help_has_examples(capsys, command):
    out, _ = run(capsys, command, "--help")
    assert f"mapjax {command} " in out.split("For example:")[1]


def test_help_and_completion_know_every_command(capsys):
    out, _ = run(capsys, "--help")
    completion, _ = run(capsys, "--tyro-print-completion", "bash")
    for command in ("demo", "inspect", "merge", "front", "plot", "pick"):
        assert command in out
        assert command in completion
    assert "--coefficients" in completion
    assert "Exit codes" in out
    _, err = run(capsys, "mrege", code=2)
    assert "mrege" in err


def test_help_imports_nothing_but_the_package():
    code = (
        "import mapjax, sys; before = set(sys.modules); from mapjax.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'jax', 'flax', 'orbax', 'matplotlib', 'safetensors', 'sklearn'}))"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - begun < 20


def test_dtypes_other_than_float32_are_inspected(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("base", "a")):
        w = jnp.full(4, 1.0 + i / 8, jnp.bfloat16)
        mapjax.io.save(f"{name}.safetensors", {"w": w, "v": np.ones(2)})
    report = run_json(capsys, "inspect", "base.safetensors", "a.safetensors")
    assert report["norms"]["experts"]["a"]["norm"] == pytest.approx(0.25)
    assert report["checkpoints"][0]["dtypes"] == {"bfloat16": 1, "float64": 1}
    assert jax.config.read("jax_enable_x64") is False
