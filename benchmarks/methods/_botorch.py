"""Bayesian optimisation by botorch, which runs in an environment of its own."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from benchmarks.methods._direct import sobol_points
from benchmarks.methods._found import (
    Found,
    NotInstalledError,
    base_and_experts,
    best_of,
)
from benchmarks.suites import Suite

VARIABLE = "MAPJAX_BOTORCH"
SERVER = Path(__file__).with_name("_botorch_server.py")
_BATCH = 4

Propose = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]
"""From points, their scores, how many are wanted and a seed to new points."""


def botorch_qnehvi(suite: Suite, budget: int) -> Found:
    """Search the real scores in the unit box by Gaussian processes, four at a time.

    The first 2N + 2 points are the base, the experts and Sobol points.

    Raises:
        NotInstalledError: If `MAPJAX_BOTORCH` names no environment with botorch.
        RuntimeError: If botorch fails.

    References:
        Daulton et al., *Parallel Bayesian Optimization of Multiple Noisy Objectives with
        Expected Hypervolume Improvement*, NeurIPS 2021, arXiv 2105.08195. Ament et al.,
        *Unexpected Improvements to Expected Improvement for Bayesian Optimization*, NeurIPS
        2023, arXiv 2310.20708.
    """
    n, seed = suite.task_vectors.num_tasks, suite.seed
    start = np.concatenate([base_and_experts(n), sobol_points(n + 1, n, seed)])
    x = start[: min(budget, 2 * n + 2)]
    with server() as propose:
        s = np.asarray(suite.validation(x, progress=False), float)
        while len(x) < budget:
            known = np.isfinite(s).all(axis=1)
            q = min(_BATCH, budget - len(x))
            new = propose(x[known], s[known], q, seed + len(x))
            x = np.concatenate([x, new])
            s = np.concatenate([s, np.asarray(suite.validation(new, progress=False))])
    return best_of(x, s)


@contextmanager
def server() -> Iterator[Propose]:
    """Start the environment's Python, and end it afterwards.

    Raises:
        NotInstalledError: If the variable names no Python.
        RuntimeError: If the script in it fails.
    """
    python = os.environ.get(VARIABLE)
    if not python:
        raise NotInstalledError(
            f"botorch has an environment of its own, and {VARIABLE} must name its Python: "
            "python -m venv ENV && ENV/bin/pip install botorch && "
            f"export {VARIABLE}=ENV/bin/python"
        )
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [python, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

        def propose(x: np.ndarray, y: np.ndarray, q: int, seed: int) -> np.ndarray:
            to, answers = process.stdin, process.stdout
            assert to is not None
            assert answers is not None
            asked = {"x": x.tolist(), "y": y.tolist(), "q": q, "seed": seed}
            with suppress(BrokenPipeError):  # it has ended, and has no answer either
                print(json.dumps(asked), file=to, flush=True)
            line = answers.readline()
            if not line:
                process.wait()
                errors.seek(0)
                why = errors.read().strip()[-500:]
                raise RuntimeError(f"{python} ended without an answer: {why}")
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"botorch failed: {answer['error']}")
            return np.clip(np.asarray(answer["candidates"], float), 0, 1)

        try:
            yield propose
        finally:
            process.communicate()  # closes its input, which ends it
