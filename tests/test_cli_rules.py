"""Rules give the same from files as in memory."""

import numpy as np
import pytest
from cli_tools import BASE, EXPERTS, NAMES, files, run_json

import mapjax as mj
import mapjax.io
from mapjax.cli._rules import edit, merge_arguments, read_rule

__all__ = ["files"]  # a fixture

OPTIONS = {
    "ties": ["--density", "0.3"],
    "dare": ["--density", "0.5", "--seed", "4"],
    "della": ["--density", "0.5", "--options", "window=0.1"],
    "wudi_descent": ["--options", "num_steps=3"],
    "doge": ["--options", "num_steps=3"],
    "tsv": ["--options", "input_axes=trailing"],
}


@pytest.mark.parametrize("rule", [*OPTIONS, "magmax", "model_stock", "widen"])
def test_rules_of_files_are_those_of_memory(capsys, files, rule):
    """What `front` evaluates is what `merge` and `pick` write."""
    given = ["--rule", rule, *OPTIONS.get(rule, [])]
    report = run_json(capsys, "merge", *NAMES, "-o", "out.safetensors", *given)
    assert report["rule"].startswith(rule)
    words = dict(zip(given[::2], given[1::2], strict=True))
    options = {"density": float(words["--density"])} if "--density" in words else {}
    if "--options" in words:
        name, _, value = words["--options"].partition("=")
        options[name] = (
            value if rule == "tsv" else float(value) if "." in value else int(value)
        )
    chosen = read_rule(rule, options, int(words.get("--seed", 0)))
    assert report["rule"] == str(chosen)
    edited = edit(mj.TaskVectors.from_params(BASE, EXPERTS), chosen)
    truth, merged = mj.merge(edited, [1.0, 1.0]), mapjax.io.load("out.safetensors")
    for name in BASE:
        np.testing.assert_allclose(merged[name], truth[name], rtol=1e-4, atol=1e-5)
    # Of two experts that are nearly orthogonal the model stock is nearly the base.
    moved = np.abs(merged["layer.w"] - BASE["layer.w"]).max()
    assert moved > 1e-3 or rule == "model_stock"


def test_rules_draw_the_same_in_blocks(tmp_path):
    """A tensor of several blocks gets other random numbers in each, the same both ways."""
    base = {"w": np.zeros(600_000, np.float32)}
    ones = {"w": np.ones(600_000, np.float32)}
    mapjax.io.save(tmp_path / "base.npz", base)
    mapjax.io.save(tmp_path / "one.npz", ones)
    rule = read_rule("dare", {"density": 0.5}, 1)
    arguments = merge_arguments(rule)
    files = (
        tmp_path / "base.npz",
        {"a": tmp_path / "one.npz"},
        tmp_path / "out.safetensors",
    )
    mapjax.io.merge_files(*files, [1.0], **arguments)
    merged = mapjax.io.load(tmp_path / "out.safetensors")["w"]
    truth = mj.merge(edit(mj.TaskVectors.from_params(base, {"a": ones}), rule), [1.0])["w"]
    np.testing.assert_array_equal(merged, truth)
    assert abs(float((merged == 0).mean()) - 0.5) < 0.01
    assert (merged[:1000] != merged[2**18 : 2**18 + 1000]).any()


@pytest.mark.parametrize("rule", ["dare", "della", "magmax", "tsv", "model_stock"])
def test_rules_leave_tensors_without_numbers(rule):
    base = {"e": np.zeros((0, 3), np.float32), "w": np.ones((2, 2), np.float32)}
    experts = [base | {"w": base["w"] + np.eye(2, dtype=np.float32) * i} for i in (1, 2)]
    edited = edit(mj.TaskVectors.from_params(base, experts), read_rule(rule, {}, 0))
    assert edited.vectors["e"].shape == (2, 0, 3)
