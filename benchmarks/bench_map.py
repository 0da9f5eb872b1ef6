"""`map_front` without its evaluations, and how good the front is that it finds."""

import os
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mapjax as mj
from benchmarks._memory import watch_peak
from benchmarks._report import parser, report, timed


def problem(num_coefficients: int, num_tasks: int, seed: int) -> Any:
    """Make conflicting quadratic scores: each task wants its own corner of the box."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(num_tasks, num_coefficients, num_coefficients))
    curvature = np.einsum("tij,tkj->tik", roots, roots) / num_coefficients
    best = rng.random((num_tasks, num_coefficients)).astype("f")

    def evaluate(c: jax.Array) -> np.ndarray:
        d = np.asarray(c)[:, None] - best
        return 1 - 0.3 * np.einsum("kti,tij,ktj->kt", d, curvature, d)

    return evaluate


def network(num_experts: int, num_examples: int, num_classes: int) -> mj.Evaluator:
    """Make experts of two layers; an expert decides its own task's examples rightly."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    inputs, hidden = 64, 128

    def layers(*leading: int) -> dict[str, jax.Array]:
        first = jax.random.normal(next(keys), (*leading, inputs, hidden)) / inputs**0.5
        last = jax.random.normal(next(keys), (*leading, hidden, num_classes))
        return {"first": first, "last": last / hidden**0.5}

    def predict(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["first"]) @ params["last"]

    base, changes = layers(), layers(num_experts)
    names = tuple(f"task_{i}" for i in range(num_experts))
    tv = mj.TaskVectors(base, jax.tree.map(lambda v: 0.7 * v, changes), names)
    examples = jax.random.normal(next(keys), (num_experts, num_examples, inputs))
    tasks = []
    for i, name in enumerate(names):
        expert = mj.merge(tv, jnp.eye(num_experts)[i])
        labels = jnp.argmax(predict(expert, examples[i]), axis=-1)
        tasks.append(mj.Task(name, predict, examples[i], labels))
    return mj.Evaluator(tv, tasks)


def fit_and_front(evaluate: mj.Evaluator, budget: int) -> dict[str, float]:
    """Time one fit to all samples and one front, after the same was compiled."""
    runs = []
    for seed in range(6):
        grown = watch_peak()
        solution = mj.map_front(
            evaluate, budget=budget, rounds=1, key=jax.random.key(seed), progress=False
        )
        runs.append(solution.stats["seconds"] | {"bytes": grown()})
    first, *warm = runs
    parts = {
        name: float(np.median([run[name] for run in warm])) for name in ("fit", "search")
    }
    return parts | {
        "median": float(np.median([run["fit"] + run["search"] for run in warm])),
        "first": first["fit"] + first["search"],
        "peak_megabytes": max(run["bytes"] for run in warm) / 1e6,
    }


_ONE_CALL = """
import time, jax, mapjax as mj
from benchmarks.bench_map import network
evaluate = network(3, 500, 10)
begun = time.perf_counter()
mj.map_front(evaluate, budget=20, key=jax.random.key(0), progress=False)
print(time.perf_counter() - begun)
"""


def in_new_processes() -> dict[str, float]:
    """Time the first call of a process, before and after JAX's cache on disk is filled."""
    with tempfile.TemporaryDirectory() as folder:
        # Most programs compile in less than the second that JAX keeps one for by default.
        cache = {"JAX_COMPILATION_CACHE_DIR": folder}
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        seconds = [
            float(
                subprocess.run(
                    [sys.executable, "-c", _ONE_CALL],
                    env=os.environ | cache,
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
            for _ in range(4)
        ]
    return {"first": seconds[0], "cached": float(np.median(seconds[1:]))}


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    figures: dict[str, Any] = {}
    for n in (2, 3) if arguments.quick else (2, 4, 8):
        budget = (n + 1) * (n + 2)
        evaluate = problem(n, n, seed=n)
        last: list[mj.Solution] = []

        def solve(
            n: int = n, budget: int = budget, evaluate: Any = evaluate, last: list = last
        ):
            key = jax.random.key(len(last))
            last.append(mj.map_front(evaluate, num_coefficients=n, budget=budget, key=key))
            return last[-1].front.scores

        times = timed(solve)
        own = [
            sum(s.stats["seconds"].values()) - s.stats["seconds"]["evaluate"]
            for s in last[1:]
        ]
        figures[f"N = T = {n}"] = times | {
            "median_without_evaluation": float(np.median(own)),
            "seconds_of_the_last": last[-1].stats["seconds"],
            "points": len(last[-1].front),
            "least_r2": float(last[-1].stats["r2"].min()),
        }
    tasks, examples, classes = (3, 100, 5) if arguments.quick else (8, 1000, 26)
    evaluate = network(tasks, examples, classes)
    for budget in (tasks + 1, (tasks + 1) * (tasks + 2)):
        name = f"{tasks} x {examples:,} x {classes}, {budget} evaluations"
        figures[name] = fit_and_front(evaluate, budget)
    figures["new processes"] = in_new_processes()
    report("map", figures, arguments.output)


if __name__ == "__main__":
    main()
