"""Run folders and solutions on disk: nothing lost, nothing damaged unnoticed."""

import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
import mapjax.io
from mapjax.io import RunFolder


def box(c):
    return jnp.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)


@pytest.fixture(scope="module")
def solution():
    return mj.map_front(
        box,
        num_coefficients=2,
        budget=9,
        rounds=1,
        num_points=10,
        num_generations=2,
        verify=2,
        task_names=["mnist", "usps"],
        directions=["maximize", "maximize"],
        key=jax.random.key(3),
    )


@pytest.fixture(scope="module")
def by_outputs():
    tv = mj.TaskVectors.from_params(
        {"w": np.zeros(2, np.float32)},
        {"a": {"w": np.array([1.0, 0.2], np.float32)}, "b": {"w": np.ones(2, np.float32)}},
    )
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    tasks = [
        mj.Task(name, lambda p, x: x @ p["w"], x, (x[:, i] > 0).astype(int))
        for i, name in enumerate("ab")
    ]
    evaluator = mj.Evaluator(tv, [tasks[0], mj.Task(*_squares(x))])
    return mj.map_front(
        evaluator,
        budget=4,
        rounds=1,
        num_points=10,
        num_generations=2,
        key=jax.random.key(0),
    )


def same(a, b):
    """Equal to the last bit, NaN included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        assert getattr(x, "dtype", None) == getattr(y, "dtype", None)
        np.testing.assert_array_equal(x, y)


def _squares(x):
    metric = mj.metrics.mean_squared_error
    return "b", lambda p, x: x @ p["w"], x, x[:, 1], metric


@pytest.mark.parametrize("which", ["solution", "by_outputs"])
@pytest.mark.slow
def test_a_solution_comes_back_to_the_last_bit(tmp_path, request, which):
    before = request.getfixturevalue(which)
    path = tmp_path / "solution.npz"
    before.save(path)
    after = mj.Solution.load(path)
    same(before, after)
    c = np.array([[0.1, 0.7], [0.5, 0.5]])
    first, second = before.predicted(c), after.predicted(c)
    same((first.scores, first.std), (second.scores, second.std))
    np.testing.assert_array_equal(after.pick([1, 2]), before.pick([1, 2]))
    assert str(after) == str(before)
    assert after.result == before.result
    # NumPy alone reads it, and nothing in it is pickled.
    with np.load(path, allow_pickle=False) as arrays:
        assert json.loads(arrays["json"].tobytes())["format"] == "mapjax solution 2"


def test_mapjax_io_has_the_same_pair(tmp_path, solution):
    mapjax.io.save_solution(tmp_path / "a.npz", solution)
    solution.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    same(mapjax.io.load_solution(tmp_path / "b.npz"), solution)


def test_what_is_no_longer_kept_is_passed_over(tmp_path, solution):
    solution.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as arrays:
        held = dict(arrays)
    text = json.loads(held.pop("json").tobytes())
    text["solution"]["fields"]["front"]["fields"]["of_an_earlier_version"] = 3
    held["json"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    np.savez(tmp_path / "t.npz", **held)
    same(mj.Solution.load(tmp_path / "t.npz"), solution)


def test_every_result_comes_back(tmp_path, solution):
    from mapjax._solution_file import _RESULTS

    for result in _RESULTS.values():
        one = eqx.tree_at(lambda s: s.result, solution, result)
        one.save(tmp_path / "s.npz")
        assert mj.Solution.load(tmp_path / "s.npz").result == result


def test_a_surrogate_that_cannot_be_written_is_left_out(tmp_path, solution):
    is_none = dict(is_leaf=lambda x: x is None)
    own = eqx.tree_at(lambda s: s.surrogate, solution, box, **is_none)
    message = r"surrogate is not in .*s\.npz, since it holds a function\. Front and samples"
    with pytest.warns(UserWarning, match=message):
        own.save(tmp_path / "s.npz")
    after = mj.Solution.load(tmp_path / "s.npz")
    assert after.surrogate is None
    with pytest.raises(
        ValueError, match=r"no surrogate: none was kept.*loaded from a file"
    ):
        after.predicted([0.5, 0.5])
    np.testing.assert_array_equal(after.pick([1, 2]), solution.pick([1, 2]))


def test_stats_that_cannot_be_written_are_refused(tmp_path, solution):
    solution = eqx.tree_at(lambda s: s.stats["r2"], solution, object())
    with pytest.raises(ValueError, match="holds a object, which cannot be saved"):
        solution.save(tmp_path / "s.npz")
    assert not list(tmp_path.iterdir())


def test_what_is_no_solution_is_refused(tmp_path, solution):
    with pytest.raises(ValueError, match=r"but a solution is a \.npz file"):
        solution.save(tmp_path / "s.json")
    mapjax.io.save(tmp_path / "other.npz", {"w": np.ones(2)})
    with pytest.raises(ValueError, match=r"other\.npz is no solution"):
        mj.Solution.load(tmp_path / "other.npz")
    arrays = {}
    for text in (b"[]", b"{", b'{"format": "mapjax solution 9"}', b"\xff"):
        mapjax.io.save(tmp_path / "t.npz", {"json": np.frombuffer(text, np.uint8)})
        with pytest.raises(ValueError, match="is no solution that this version"):
            mj.Solution.load(tmp_path / "t.npz")
    path = tmp_path / "s.npz"
    solution.save(path)
    arrays = dict(mapjax.io.load(path))
    first = next(n for n in arrays if n != "json")
    np.savez_compressed(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match="it is compressed, or its arrays overlap"):
        mj.Solution.load(tmp_path / "t.npz")
    for bad in ({first: np.zeros((3, 7))}, {first: None}):
        changed = {n: x for n, x in (arrays | bad).items() if x is not None}
        mapjax.io.save(tmp_path / "t.npz", changed)
        with pytest.raises(ValueError, match="is no solution that this version"):
            mj.Solution.load(tmp_path / "t.npz")


def test_damaged_solutions_are_refused_or_right(tmp_path, solution):
    path = tmp_path / "s.npz"
    solution.save(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        path.write_bytes(data[: len(data) - int(random.integers(2)) * 100])
        try:
            after = mj.Solution.load(path)
        except ValueError:
            refused += 1
        else:  # a time stamp, or the like
            same(after, solution)
    assert refused > 40


def test_a_run_is_begun_saved_and_loaded(tmp_path, solution):
    key = jax.random.key(3)
    with RunFolder(tmp_path / "deep" / "run") as run:
        assert run.begin(key=key, config="budget = 9 # few\n", base="x") == []
        run.save(solution)
    again = RunFolder(tmp_path / "deep" / "run")
    assert again.config == "budget = 9 # few\n"
    assert again.notes["key"] == "[0, 3]"
    assert again.notes["versions"]["jax"] == jax.__version__
    assert again.notes["base"] == "x"
    same(again.load(), solution)
    assert again.samples.parent == again.pictures.parent == again.path
    # Another comment is the same configuration; another budget only if that may be.
    with again:
        assert again.begin(key=key, config="budget = 9") == []
        message = "another configuration: `budget` was 9 and is 10"
        with pytest.raises(ValueError, match=message):
            again.begin(key=key, config="budget = 10")
        assert again.config == "budget = 9"
        again.begin(key=key, config="budget = 10", may_change=["budget"])
        assert again.config == "budget = 10"


def test_a_run_that_evaluated_nothing_begins_anew_with_any_configuration(tmp_path):
    key = jax.random.key(0)
    with RunFolder(tmp_path) as run:
        run.begin(key=key, config="budget = 1")
        run.begin(key=key, config="budget = 9")
        assert run.config == "budget = 9"
        run.samples.write_text("")
        with pytest.raises(ValueError, match="`budget` was 9 and is 10"):
            run.begin(key=key, config="budget = 10")


def test_a_run_of_other_models_is_refused_before_anything_is_written(tmp_path):
    key, old = jax.random.key(0), {"a": "/models/a", "b": "/models/b"}
    notes = {"base": "/models/base", "experts": old, "rule_options": {"seed": 0}}
    with RunFolder(tmp_path) as run:
        run.begin(key=key, config="seed = 0", **notes)
        run.samples.write_text("")
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        for name, value, message in (
            ("base", "/other/base", "`base` was '/models/base' and is '/other/base'"),
            ("experts", dict(reversed(old.items())), "`experts` was .* and is"),
            ("experts", {"a": "/models/a"}, "`experts` was .* and is"),
            ("rule_options", {"seed": 1}, r"`rule_options` was {'seed': 0} and is {'seed'"),
            ("rule_options", {"seed": 0.0}, "`rule_options` was"),
        ):
            with pytest.raises(ValueError, match=f"another configuration: {message}"):
                run.begin(
                    key=key,
                    config="seed = 1",
                    may_change=["seed"],
                    **{**notes, name: value},
                )
            assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
        run.begin(key=key, config="seed = 1", may_change=["seed"], **notes)
        run.begin(key=key, config="seed = 1", may_change=["base"], base="/other/base")
        assert run.notes["base"] == "/other/base"


def test_paths_may_move_with_the_run_folder(tmp_path):
    def notes(where):
        return {"base": f"{where}/base", "experts": {"a": f"{where}/a", "b": "/fixed/b"}}

    key = jax.random.key(0)
    with RunFolder(tmp_path / "old" / "run") as run:
        run.begin(key=key, **notes(tmp_path / "old"))
        run.samples.write_text("")
    (tmp_path / "old").rename(tmp_path / "new")
    with RunFolder(tmp_path / "new" / "run") as run:
        with pytest.raises(
            ValueError, match=r"`base` was .*old/base' and is .*other/base'"
        ):
            run.begin(key=key, **notes(tmp_path / "other"))
        run.begin(key=key, **notes(tmp_path / "new"))
        assert run.notes["base"] == f"{tmp_path}/new/base"
        with pytest.raises(ValueError, match=r"`base` was .*new/base' and is .*old/base'"):
            run.begin(key=key, **notes(tmp_path / "old"))


def test_other_versions_are_told_and_kept(tmp_path):
    key = jax.random.key(0)
    with RunFolder(tmp_path) as run:
        run.begin(key=key)
        notes = run.notes
        now = notes["versions"]["jax"]
        notes["versions"]["jax"] = "0.1"
        (tmp_path / "run.json").write_text(json.dumps(notes))
        assert run.begin(key=key) == [f"jax 0.1 then and {now} now"]
        assert run.begin(key=key) == []
        assert run.notes["earlier_versions"][0]["jax"] == "0.1"


def test_what_is_no_run_is_refused(tmp_path):
    run = RunFolder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no folder of a run: run\.json is missing"):
        run.notes  # noqa: B018
    with pytest.raises(ValueError, match="holds no solution"):
        run.load()
    with pytest.raises(ValueError, match="none is not locked: write `with mapjax"):
        run.begin(key=jax.random.key(0))
    assert run.config is None
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        RunFolder(tmp_path).notes  # noqa: B018
    (tmp_path / "run.json").write_text('{"format": "mapjax run 1"}')
    with pytest.raises(ValueError, match="damaged"):
        RunFolder(tmp_path).notes  # noqa: B018
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is damaged: it is no text"):
        RunFolder(tmp_path).config  # noqa: B018
    with RunFolder(tmp_path / "run") as run:
        run.begin(key=jax.random.key(0), config="budget = 3")
        run.samples.write_text("")
        (run.path / "config.toml").write_text("budget = ")
        with pytest.raises(ValueError, match=r"run.config\.toml is damaged: Invalid value"):
            run.begin(key=jax.random.key(0), config="budget = 3")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot lie in it"):
        RunFolder(tmp_path / "file" / "run").__enter__()


def test_two_on_one_folder_the_second_refuses(tmp_path):
    with RunFolder(tmp_path) as run:
        message = r"is in use by process \d+ on \S+\. Wait for it, stop it, or pass another"
        with pytest.raises(ValueError, match=message):
            RunFolder(tmp_path).__enter__()
        assert run.path == tmp_path
    with RunFolder(tmp_path):
        pass


HOLD = """
import fcntl, pathlib, sys, time
file = open(pathlib.Path(sys.argv[1], "lock"), "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="is in use by another process"):
            RunFolder(tmp_path).__enter__()
        child.kill()
    with RunFolder(Path(tmp_path)):
        pass
