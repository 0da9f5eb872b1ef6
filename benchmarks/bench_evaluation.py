"""Evaluation against a jitted function called candidate by candidate; peak memory."""

import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mapjax as mj
from benchmarks._memory import watch_peak
from benchmarks._report import against, parser, report


def problem(
    width: int, num_experts: int, num_examples: int, num_tasks: int | None = None
) -> tuple[mj.TaskVectors, list]:
    """Make an MLP with random experts and random data: only the work is real."""
    rng = np.random.default_rng(0)
    sizes = [(784, width), (width, width), (width, 10)]

    def parameters() -> list:
        return [rng.normal(size=s, scale=s[0] ** -0.5).astype("f") for s in sizes]

    def predict(params: list, x: jax.Array) -> jax.Array:
        return jax.nn.relu(jax.nn.relu(x @ params[0]) @ params[1]) @ params[2]

    tv = mj.TaskVectors.from_params(
        parameters(), [parameters() for _ in range(num_experts)]
    )
    tasks = [
        mj.Task(
            f"task {t}",
            predict,
            rng.normal(size=(num_examples, 784)).astype("f"),
            rng.integers(0, 10, num_examples),
        )
        for t in range(num_tasks or num_experts)
    ]
    return tv, tasks


def throughput(width: int, num_examples: int, num_candidates: int) -> dict[str, Any]:
    """Time the same work as one call and as a loop over jitted single evaluations."""
    tv, tasks = problem(width, 4, num_examples)
    evaluator = mj.Evaluator(tv, tasks)
    candidates = np.random.default_rng(1).random((num_candidates, 4)).astype("f")

    @jax.jit
    def one(tv: mj.TaskVectors, data: list, c: jax.Array) -> jax.Array:
        params = mj.merge(tv, c)
        scores = [
            jnp.mean(jnp.argmax(task.predict(params, x), axis=1) == y)
            for task, (x, y) in zip(tasks, data, strict=True)
        ]
        return jnp.stack(scores)

    data = [(task.inputs, task.targets) for task in tasks]
    figures = against(
        lambda: evaluator(candidates), lambda: [one(tv, data, c) for c in candidates]
    )
    return figures | {"candidates_per_second": num_candidates / figures["ours"]}


def memory(width: int, num_examples: int, chunk_size: int) -> dict[str, Any]:
    """Compare the peak that was predicted with the growth that the system saw."""
    if jax.default_backend() != "cpu":
        tv, tasks = problem(width, 4, num_examples)
        evaluator = mj.Evaluator(tv, tasks, chunk_size=chunk_size)
        predicted = evaluator.predicted_memory
        evaluator(np.random.default_rng(1).random((chunk_size, 4)))
        seen = (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"]
    else:
        child = [sys.executable, "-m", "benchmarks.bench_evaluation", "--peak"]
        numbers = [str(x) for x in (width, num_examples, chunk_size)]
        out = subprocess.run([*child, *numbers], capture_output=True, text=True, check=True)
        predicted, seen = json.loads(out.stdout.splitlines()[-1])
    return {"predicted": predicted, "seen": seen, "seen_over_predicted": seen / predicted}


def print_peak(width: int, num_examples: int, chunk_size: int) -> None:
    """Print predicted and seen bytes, in a process that did nothing else before."""
    tv, tasks = problem(width, 4, num_examples)
    evaluator = mj.Evaluator(tv, tasks, chunk_size=chunk_size)
    predicted = evaluator.predicted_memory
    candidates = np.random.default_rng(1).random((chunk_size, 4)).astype("f")
    # What the plan counts as arguments is there already; the growth adds the rest.
    arguments = sum(x.nbytes for x in jax.tree.leaves((tv, [t.inputs for t in tasks])))
    peak = watch_peak()  # compiling needed more than running will
    evaluator(candidates)
    print(json.dumps([predicted, arguments + peak()]))


def main() -> None:
    if "--peak" in sys.argv:
        width, num_examples, chunk_size = map(int, sys.argv[-3:])
        return print_peak(width, num_examples, chunk_size)
    arguments = parser(__doc__ or "").parse_args()
    examples = 500 if arguments.quick else 2000
    figures = {
        f"width {width}": throughput(width, examples, 8 if arguments.quick else 32)
        for width in (64, 256, 1024)
    }
    figures["memory"] = {
        f"chunk {chunk}": memory(256 if arguments.quick else 2048, examples, chunk)
        for chunk in (4, 16)
    }
    return report("evaluation", figures, arguments.output)


if __name__ == "__main__":
    main()
