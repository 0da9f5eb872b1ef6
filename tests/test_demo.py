"""`mapjax demo` writes what it says, repeats itself, and refuses bad arguments at once."""

import importlib.metadata
import importlib.util
import json
import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from plot_tools import make_solution, plot, points

import mapjax as mj
from mapjax._result import Point
from mapjax.cli import _demo, main

NEEDED = ("mlxtend", "sklearn", "pyfiglet", "matplotlib", "safetensors", "tyro")
MISSING = [name for name in NEEDED if not importlib.util.find_spec(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"PACKAGES MISSING: install {MISSING} to test the demo"
)

BUDGET = 12


def run(capsys, output):
    options = [
        "--budget",
        str(BUDGET),
        "--expert-steps",
        "60",
        "--preference",
        "1",
        "0",
        "2",
    ]
    main(["demo", "--output", str(output), *options])
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def table(printed):
    """Rows of the table: name to numbers; predictions under the name and a star."""
    rows, name = {}, ""
    for line in printed.splitlines():
        found = re.fullmatch(r"( *\S.*?) +((?:\d+\.\d+ *){5,})", line)
        if found:
            name = f"{name}*" if found[1] == "  predicted" else found[1]
            rows[name] = [float(number) for number in found[2].split()]
    return rows


@pytest.mark.slow
def test_demo(capsys, tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    from mapjax.adapters import digits3

    datasets = digits3.load()
    monkeypatch.setattr(digits3, "load", lambda: datasets)  # read once for both runs
    printed = run(capsys, tmp_path)
    rows = table(printed)
    measured = ["base", "expert mnist5k", "expert optdigits", "expert figlet_digits"]
    measured += ["uniform merge", "best single scale"]
    both = [name for name in rows if re.fullmatch(r"verified \d+", name)]
    assert both[0] == "verified 1"
    assert 3 <= len(both) <= 5
    both.append("your preference")
    assert sorted(rows) == sorted([*measured, *both, *(f"{name}*" for name in both)])
    # The best on the first task comes first.
    firsts = [rows[name][3] for name in both[:-1]]
    assert firsts == sorted(firsts, reverse=True)
    samples = (tmp_path / "samples.jsonl").read_text().splitlines()
    num_verified = len(samples) - 1 - BUDGET
    assert 5 <= num_verified <= 8
    assert f"{BUDGET} to fit, {num_verified} to verify" in printed
    base = json.loads(samples[1])
    assert base["coefficients"] == [0, 0, 0]
    np.testing.assert_allclose(
        rows["base"][3:6], 100 * np.array(base["scores"]), atol=0.051
    )
    for name in ("front", "pairs", "parallel", "contours", "predicted_vs_verified"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    # The parameters that were saved score what the table says of them.
    params = {"params": {}}
    for name, array in load_file(tmp_path / "merged.safetensors").items():
        top, layer, leaf = name.split(".")
        params[top].setdefault(layer, {})[leaf] = jnp.asarray(array)
    scores = [
        np.mean(digits3.predict(params, jnp.asarray(x)).argmax(axis=1) == y)
        for x, y in (dataset.validation for dataset in datasets.values())
    ]
    np.testing.assert_allclose(
        rows["your preference"][3:6], 100 * np.array(scores), atol=0.1
    )

    # A second run starts afresh and says the same, but for seconds and the folder.
    monkeypatch.setattr(_demo, "_draw", lambda *_: None)
    elsewhere = tmp_path / "again"
    again = run(capsys, elsewhere)
    assert table(again) == rows
    for name in ("samples.jsonl", "merged.safetensors"):
        assert (elsewhere / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_uniform_merge_is_drawn_where_it_is_no_sample(tmp_path, monkeypatch):
    names = ("a", "b", "c")
    whole = make_solution(3, task_names=names, coefficient_names=names)
    kept = np.arange(len(whole.samples)) != whole.references()["uniform"]
    samples = mj.Samples(whole.samples.coefficients[kept], whole.samples.scores[kept])
    solution = make_solution(3, task_names=names, coefficient_names=names, samples=samples)
    c = np.full(3, 1 / 3, np.float32)
    uniform = Point("uniform merge", c, *[np.full(3, 0.5, np.float32)] * 4)
    drawn = {}
    for name in ("front", "contours"):
        draw = getattr(plot, name)
        monkeypatch.setattr(
            plot, name, lambda x, draw=draw, name=name: drawn.setdefault(name, draw(x))
        )
    _demo._draw(solution, uniform, tmp_path)
    np.testing.assert_allclose(points(drawn["front"], "uniform merge"), [[0.5, 0.5, 0.5]])
    np.testing.assert_allclose(
        points(drawn["front"], "front, verified"), solution.verified.scores
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preference", "1", "-1", "1"], "--preference is 1 -1 1, but"),
        (["--preference", "0", "0", "0"], "one of them above zero"),
        (["--preference", "1", "nan", "1"], "not negative"),
        (["--preference", "1", "1"], "Expected 3 values"),
        (["--budget", "3"], "--budget is 3"),
        (["--budget", "many"], "many"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", str(2**31)], "--seed is 2147483648"),
        (["--expert-steps", "0"], "--expert-steps is 0"),
        (["--output", __file__], "test_demo.py is a file. Pass a folder"),
        (["--output", f"{__file__}/sub"], "test_demo.py is a file. Pass a folder"),
        (["--verbose"], "verbose"),
    ],
)
def test_wrong_arguments_exit_with_2_before_any_work(
    capsys, tmp_path, monkeypatch, arguments, message
):
    from mapjax.adapters import digits3

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits3, "load", lambda: pytest.fail("work was begun"))
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", *arguments])
    assert exit_info.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_not_taken_for_that_of_a_demo(capsys, tmp_path, monkeypatch):
    from mapjax.adapters import digits3

    monkeypatch.setattr(digits3, "load", lambda: pytest.fail("work was begun"))
    for name in ("run.json", "samples.jsonl"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--output", str(tmp_path)])
    assert exit_info.value.code == 2
    assert "which holds a run of `mapjax front`" in " ".join(
        capsys.readouterr().err.split()
    )
    assert (tmp_path / "samples.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("package", "extra"),
    [("tyro.extras", "cli"), ("matplotlib", "demo"), ("safetensors", "demo")],
)
def test_a_missing_package_exits_with_1_and_names_the_extra(
    capsys, tmp_path, monkeypatch, package, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--output", str(tmp_path)])
    assert exit_info.value.code == 1
    assert f'pip install "mapjax[{extra}]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_data_exit_with_1_and_name_the_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--output", str(tmp_path)])
    assert exit_info.value.code == 1
    assert 'pip install "mapjax[demo]"' in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"mapjax {importlib.metadata.version('mapjax')}\n"
