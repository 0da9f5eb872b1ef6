"""From a configuration to a front, to pictures, to a merged checkpoint."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_tools import BASE, EXPERTS, NAMES, files, run, run_json
from plot_tools import make_solution

import mapjax as mj
import mapjax.io
from mapjax.cli import main
from mapjax.cli._config import read_config
from mapjax.cli._files import stamp
from mapjax.cli._front import _load
from mapjax.cli._rules import merge_arguments
from mapjax.evaluation import _files
from mapjax.io import RunFolder

__all__ = ["files"]  # a fixture

EVALUATE = """
import jax.numpy as jnp
import numpy as np
import mapjax as mj

X = np.random.default_rng(1).normal(size=(64, 12)).astype(np.float32)

def predict(params, x):
    return x @ params["layer"]["w"] + params["layer"]["b"]

def tasks(task_vectors):
    found = []
    for i, name in enumerate(task_vectors.names):
        expert = mj.merge(task_vectors, np.eye(2)[i])
        metric = mj.metrics.mean_squared_error
        found.append(mj.Task(name, predict, X, predict(expert, X), metric=metric))
    return found

def box(c):
    return jnp.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)

def broken(c):
    raise RuntimeError("the cluster is down")

def decides(task_vectors):
    y = np.zeros(64, int)
    return [mj.Task(name, predict, X, y) for name in task_vectors.names]

def mistaken(params, x):
    raise ValueError("of the user's own model")

def tasks_of_mistakes(task_vectors):
    return [mj.Task(name, mistaken, X, X) for name in task_vectors.names]

def mistakes(c):
    raise ValueError("of the user's own code")

def fills_the_disk(c):
    raise OSError(28, "of the user's own disk")

number = 3

def makes_nothing(task_vectors):
    return 3

def stops(c):
    if stops.left == 0:
        raise KeyboardInterrupt
    stops.left -= 1
    return box(c)

stops.left = 1
"""

CONFIG = """
output = "run"
base = "base.safetensors"
evaluator = "evaluate_for_cli:tasks"
separator = "."
budget = 5
rounds = 1
verify = 2
num_points = 10
num_generations = 2
transform = { name = "ties", density = 0.5 }
[experts]
mnist = "mnist.safetensors"
usps = "usps.safetensors"
"""

BOX = """
output = "run"
evaluator = "evaluate_for_cli:box"
num_coefficients = 2
budget = 7
rounds = 1
num_points = 10
num_generations = 2
"""


@pytest.fixture
def configured(files, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "evaluate_for_cli", raising=False)
    (files / "evaluate_for_cli.py").write_text(EVALUATE)
    (files / "c.toml").write_text(CONFIG)
    (files / "box.toml").write_text(BOX)
    return files


@pytest.fixture
def finished(configured):
    """A run of which only the end is there."""
    with RunFolder("run") as run:
        paths = {n: str(configured / f"{n}.safetensors") for n in ("base", *EXPERTS)}
        run.begin(
            key=jax.random.key(0),
            base=paths.pop("base"),
            experts=paths,
            rule="linear",
            rule_options={},
            mergeable=True,
            files={p: stamp(Path(p)) for p in map(str, configured.glob("*.safetensors"))},
        )
        run.save(make_solution(2, surrogate=None))
    return configured


@pytest.mark.parametrize("rule", ["linear", "ties"])
def test_what_is_evaluated_is_what_files_are_merged_to(rule, files):
    paths = [files / name for name in NAMES]
    for path in paths:
        tensors = mapjax.io.load(path)
        half = {n: x.astype(jnp.bfloat16) for n, x in tensors.items() if n != "steps"}
        mapjax.io.save(path, tensors | half)
    config = CONFIG.replace('"ties", density = 0.5', f'"{rule}"')
    config = read_config(config, files)
    merged = mj.merge(_load(config), [0.3, 0.6])
    out = files / "m.safetensors"
    how = merge_arguments(config.rule)
    mapjax.io.merge_files(paths[0], paths[1:], out, [0.3, 0.6], **how)
    jax.tree.map(np.testing.assert_array_equal, merged, mapjax.io.load(out, separator="."))


def test_a_run_that_moved_with_its_checkpoints_is_picked_from(capsys, finished):
    new = finished / "new"
    new.mkdir()
    for name in ("run", *NAMES):
        (finished / name).rename(new / name)
    run(capsys, "pick", new / "run", "--save", "merged.safetensors")
    assert str(new / "base.safetensors") in (finished / "merged.safetensors.md").read_text()


def test_checkpoints_that_were_written_again_are_not_merged(capsys, finished):
    run(capsys, "pick", "run", "--save", "merged.safetensors")
    os.utime("usps.safetensors", (1, 1))
    _, err = run(capsys, "pick", "run", "--save", "no.safetensors", code=1)
    assert "usps.safetensors was written again after the run began" in err
    assert not Path("no.safetensors").exists()


@pytest.mark.slow
def test_from_files_to_a_front_to_pictures_to_a_merged_file(capsys, configured):
    found = run_json(capsys, "front", "c.toml")
    assert found["task_names"] == ["mnist", "usps"]
    assert found["directions"] == ["minimize", "minimize"]
    assert set(found["references"]) >= {"base", "mnist", "usps"}
    # The experts' targets are their own outputs: each is perfect at its own task.
    assert found["references"]["mnist"]["scores"][0] == pytest.approx(0, abs=1e-9)
    assert len(RunFolder("run").notes["files"]) == 3
    lines = (configured / "run" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 1 + found["num_evaluations"]
    assert found["num_evaluations"] == 5 + found["num_verified"]

    # The same command says the same, and evaluates nothing.
    out, _ = run(capsys, "front", "c.toml")
    assert "Front of" in out
    assert "mapjax pick run --preference mnist=1" in out
    assert (configured / "run" / "samples.jsonl").read_text().splitlines() == lines

    pictures = run_json(capsys, "plot", "run")
    names = {os.path.basename(path) for path in pictures["files"]}
    assert names >= {"front.png", "pairs.png", "parallel.png", "predicted_vs_verified.png"}
    assert names >= {"contours_mnist.png", "contours_usps.png"}
    assert all(Path(p).read_bytes().startswith(b"\x89PNG") for p in pictures["files"])
    assert pictures["left_out"] == {}

    args = ["--preference", "mnist=3", "usps=1", "--save", "merged.safetensors"]
    picked = run_json(capsys, "pick", "run", *args)
    solution = mapjax.io.RunFolder("run").load()
    c = np.asarray(solution.pick({"mnist": 3.0, "usps": 1.0}))
    assert list(picked["coefficients"].values()) == c.tolist()
    index = np.flatnonzero((np.asarray(solution.front.coefficients) == c).all(axis=1))[0]
    expected = np.asarray(solution.front.scores)[index].tolist()
    assert list(picked["predicted"].values()) == expected
    tv = mj.TaskVectors.from_params(BASE, EXPERTS)
    truth = mj.merge(mj.transforms.ties(tv, density=0.5), c)
    merged = mapjax.io.load("merged.safetensors")
    for name in BASE:
        np.testing.assert_allclose(merged[name], truth[name], rtol=1e-5, atol=1e-6)
    card = (configured / "merged.safetensors.md").read_text()
    assert "Rule: ties(density=0.5)" in card
    assert "Chosen from a front for: mnist=3 usps=1." in card
    assert "| expert mnist, measured |" in card
    assert "| this merge, predicted |" in card
    assert f"Real evaluations: {found['num_evaluations']}" in card

    # What cannot be had is said, and not saved.
    args = ["--require", "mnist=-1", "--save", "no.safetensors"]
    out, err = run(capsys, "pick", "run", *args, code=1)
    assert "No merge of the front reaches mnist=-1; this one misses least." in err
    assert not (configured / "no.safetensors").exists()
    out, _ = run(capsys, "pick", "run", "--require", "mnist=100", "--verified")
    assert "measured scores" in out
    for args, message in [
        (
            ["--preference", "svhn=1"],
            "--preference names 'svhn'; the tasks are mnist, usps",
        ),
        (["--require", "mnist"], "--require has 'mnist'; write each task once"),
        (["--require", "mnist=1", "mnist=2"], "write each task once"),
        (["--preference", "mnist=-1"], "weight below 0"),
        (["--preference", "mnist=1", "--method", "knee"], "A knee needs no preference"),
        (["--method", "best"], "best"),
    ]:
        _, err = run(capsys, "pick", "run", *args, code=2)
        assert message in " ".join(err.split())


@pytest.mark.slow
def test_a_black_box_a_higher_budget_and_another_config(capsys, configured):
    first = run_json(capsys, "front", "box.toml")
    assert (first["num_evaluations"], first["num_verified"]) == (7, 0)
    assert first["verified"] is None
    samples = configured / "run" / "samples.jsonl"
    before = samples.read_text()
    (configured / "box.toml").write_text(BOX.replace("= 7\nrounds = 1", "= 9\nrounds = 2"))
    # Points of the new design that were evaluated before count as evaluated.
    assert run_json(capsys, "front", "box.toml")["num_evaluations"] in (8, 9)
    assert samples.read_text().startswith(before)
    (configured / "box.toml").write_text(BOX.replace("cli:box", "cli:broken"))
    _, err = run(capsys, "front", "box.toml", code=1)
    assert "another configuration: `evaluator` was 'evaluate_for_cli:box' and is" in err
    _, err = run(capsys, "pick", "run", "--save", "x.safetensors", code=1)
    assert "The run does not know its merges as sums of files" in err
    with mapjax.io.RunFolder("run"):
        _, err = run(capsys, "front", "box.toml", code=1)
    assert "run is in use by process" in err


@pytest.mark.slow
def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(capsys, configured):
    (configured / "stop.toml").write_text(BOX.replace("cli:box", "cli:stops"))
    _, err = run(capsys, "front", "stop.toml", code=130)
    message = "Stopped. Evaluations kept in run: 1. Go on with: mapjax front stop.toml"
    assert f"mapjax: {message}\n" == err
    _, err = run(capsys, "plot", "run", code=1)
    assert "holds no solution, only samples: run it to its end" in err
    sys.modules["evaluate_for_cli"].stops.left = 100
    assert run_json(capsys, "front", "stop.toml")["num_evaluations"] == 7


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            BOX.replace("budget", "buget"),
            2,
            "unknown key 'buget'; the known ones are output",
        ),
        (BOX.replace("num_coefficients = 2", ""), 2, "lacks `base` and `experts`"),
        (BOX.replace("cli:box", "cli:nothing"), 2, "evaluate_for_cli has no 'nothing'"),
        (BOX.replace("cli:box", "cli:number"), 2, "which is no function"),
        (BOX.replace("_cli:", "_nobody:"), 2, "there is no module 'evaluate_for_nobody'"),
        (BOX.replace("budget = 7", "budget = 1"), 1, "`budget` is 1, but the base and 2"),
        (
            CONFIG.replace("cli:tasks", "cli:decides").replace(
                "rounds", 'surrogate = "gradient"\nrounds'
            ),
            1,
            "mapjax: The metrics of ['mnist', 'usps'] are not differentiable",
        ),
        (CONFIG.replace("cli:tasks", "cli:makes_nothing"), 1, "returned a int, but must"),
        (CONFIG.replace("0.5", "5"), 2, "`density` is 5.0, but must be in (0, 1]"),
        (CONFIG.replace('"ties"', '"magic"'), 2, "The rule is 'magic'"),
        (CONFIG.replace("usps.safe", "gone.safe"), 2, "`usps` is"),
        (
            CONFIG.replace('"base.safetensors"', '"evaluate_for_cli.py"'),
            1,
            "no known format",
        ),
        ("a = [", 2, "The configuration is no TOML"),
        (None, 2, "CONFIG is no.toml, where there is no file"),
    ],
)
def test_wrong_configurations(capsys, configured, text, code, message):
    if text is not None:
        (configured / "no.toml").write_text(text)
    _, err = run(capsys, "front", "no.toml", code=code)
    assert message in " ".join(err.split())
    assert not (configured / "run" / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (BOX.replace("cli:box", "cli:broken"), RuntimeError, "the cluster is down"),
        (BOX.replace("cli:box", "cli:mistakes"), ValueError, "of the user's own code"),
        (BOX.replace("cli:box", "cli:fills_the_disk"), OSError, "of the user's own disk"),
        (
            CONFIG.replace("cli:tasks", "cli:tasks_of_mistakes"),
            ValueError,
            "of the user's own model",
        ),
    ],
)
def test_what_the_evaluator_raises_is_shown_whole(configured, text, kind, message):
    (configured / "b.toml").write_text(text)
    with pytest.raises(kind, match=message):
        main(["front", "b.toml"])


def test_a_full_disk_is_told_with_the_file(capsys, configured, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "os", SimpleNamespace(fsync=full))
    _, err = run(capsys, "front", "box.toml", code=1)
    assert "samples.jsonl: No space left on device while saving samples." in err


def test_a_run_that_was_refused_before_any_evaluation_can_be_corrected(capsys, configured):
    for names in ('["a"]', '["b"]'):
        (configured / "b.toml").write_text(f"{BOX}task_names = {names}\n")
        _, err = run(capsys, "front", "b.toml", code=1)
        assert "`task_names` has 1 entry" in err


def test_a_surrogate_that_is_not_kept_is_a_note(capsys, configured, monkeypatch):
    monkeypatch.setattr(mj, "map_front", lambda *_, **__: make_solution(2))
    _, err = run(capsys, "front", "box.toml")
    assert err.startswith("Note: The surrogate is not in ")
    assert "since it holds a function. Front and samples are kept" in err
    assert err.count("\n") == 1


def test_another_seed_of_a_rule_that_draws_is_refused(capsys, configured, monkeypatch):
    monkeypatch.setattr(mj, "map_front", lambda *_, **__: make_solution(2))
    config = CONFIG.replace('"ties"', '"dare"')
    (configured / "c.toml").write_text(f"seed = 0\n{config}")
    run(capsys, "front", "c.toml")
    before = {p.name: p.read_bytes() for p in (configured / "run").iterdir()}
    (configured / "c.toml").write_text(f"seed = 1\n{config}")
    _, err = run(capsys, "front", "c.toml", code=1)
    assert "`rule_options` was {'density': 0.5, 'seed': 0} and is" in err
    after = {p.name: p.read_bytes() for p in (configured / "run").iterdir()}
    assert after == before


def test_pictures_of_tasks_have_names_of_their_own():
    from mapjax.cli._plot import _pictures

    names = ("a/b", "a b", "a b 2")
    pictures = _pictures(make_solution(3, task_names=names))
    found = [name for name in pictures if name.startswith("contours")]
    assert found == ["contours_a_b", "contours_a_b_2", "contours_a_b_2_2"]


def test_no_run_is_told(capsys, files):
    for command in ("plot", "pick"):
        _, err = run(capsys, command, "nowhere", code=2)
        assert err == "mapjax: RUN is nowhere, where there is no folder.\n"
        _, err = run(capsys, command, ".", code=1)
        assert "holds no solution" in err
