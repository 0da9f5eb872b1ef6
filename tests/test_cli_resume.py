"""A run that is killed goes on, and ends as if it had not been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import mapjax.io

# MAPJAX_KILLS=50 for the long run.
KILLS = int(os.environ.get("MAPJAX_KILLS", "3"))

EVALUATE = """
import time
import numpy as np

def evaluate(c):
    time.sleep(0.12 * len(c))
    c = np.asarray(c, float)
    return np.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)
"""
CONFIG = """
output = "{output}"
evaluator = "evaluate_and_wait:evaluate"
num_coefficients = 2
budget = 20
rounds = 2
verify = 4
num_points = 10
num_generations = 2
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "evaluate_and_wait.py").write_text(EVALUATE)
    cache = dict(
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )

    def begin(name):
        (tmp_path / f"{name}.toml").write_text(CONFIG.format(output=name))
        code = "from mapjax.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "front", f"{name}.toml", "--json"],
            cwd=tmp_path,
            env=os.environ | cache,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def finish(child):
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    return json.loads(out)


def same(a, b):
    """Two solutions, but for what a run took, equal to the last bit."""
    import jax

    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def solution_of(folder):
    found = mapjax.io.RunFolder(folder).load()
    for name in ("seconds", "num_reused"):
        del found.stats[name]
    return found


def wait_for_samples(child, samples, draw):
    """Wait until a few samples were written, and a moment longer."""
    size = samples.stat().st_size if samples.exists() else 0
    for _ in range(draw.randint(1, 2)):
        while child.poll() is None:
            if samples.exists() and samples.stat().st_size > size:
                size = samples.stat().st_size
                break
            time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.3))


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_the_same(start, tmp_path):
    begun = time.monotonic()
    truth = finish(start("whole"))
    length = time.monotonic() - begun
    draw = random.Random(0)
    lines, samples = [], tmp_path / "killed" / "samples.jsonl"
    for number in range(KILLS):
        child = start("killed")
        # Most kills come while samples are written, the others at any moment.
        if number % 4 < 3:
            wait_for_samples(child, samples, draw)
        else:
            time.sleep(draw.uniform(0, length / 2))  # the first run compiled what is cached
        child.kill()
        child.communicate()
        assert child.returncode in (-signal.SIGKILL, 0)
        lines.append(samples.read_bytes().count(b"\n") if samples.exists() else 0)
        if KILLS > 10 and lines[-1] > truth["num_evaluations"]:  # to be killed afresh
            check(truth, finish(start("killed")), tmp_path)
            shutil.rmtree(tmp_path / "killed")
    print("lines at each kill:", lines, flush=True)
    last = start("killed")
    refuses(last, start, tmp_path)
    check(truth, finish(last), tmp_path)


def refuses(first, start, tmp_path):
    """A second process on the same folder stops with a clear error."""
    lock = tmp_path / "killed" / "lock"
    while not (lock.exists() and f"process {first.pid} " in lock.read_text()):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it holds the lock until the second has tried
    second = start("killed")
    _, err = second.communicate(timeout=300)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"is in use by process {first.pid} on " in err
    assert "Traceback" not in err


def check(truth, found, tmp_path):
    assert {**found, "run": truth["run"]} == truth
    same(solution_of(tmp_path / "killed"), solution_of(tmp_path / "whole"))
    written = [tmp_path / name / "samples.jsonl" for name in ("whole", "killed")]
    assert written[0].read_bytes() == written[1].read_bytes()
