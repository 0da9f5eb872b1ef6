"""How times grow: with experts, tasks, candidates, parameters and devices.

Every curve is of one perceptron of the given width on random data; times are medians of
warm calls. Devices are made of the processor's cores, in processes of their own: with two
cores, four devices cannot be faster than two.
"""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mapjax as mj
from benchmarks._report import parser, report, timed
from benchmarks.bench_evaluation import problem
from mapjax.surrogate import fit_quadratic

REPEATS = 3


def evaluation(
    num_experts: int = 4,
    num_tasks: int = 4,
    num_candidates: int = 16,
    width: int = 256,
    num_examples: int = 500,
    mesh: Any = None,
) -> float:
    """Give the seconds of one evaluation of a batch of candidates, warm."""
    vectors, tasks = problem(width, num_experts, num_examples, num_tasks)
    evaluator = mj.Evaluator(vectors, tasks, mesh=mesh)
    candidates = np.random.default_rng(1).random((num_candidates, num_experts)).astype("f")
    return timed(lambda: evaluator(candidates), REPEATS)["median"]


def merging(num_parameters: int, num_experts: int) -> float:
    """Give the seconds of one merge, warm."""
    base = {"w": jnp.zeros(num_parameters)}
    vectors = jnp.ones((num_experts, num_parameters))
    names = tuple(f"e{i}" for i in range(num_experts))
    tv = mj.TaskVectors(base, {"w": vectors}, names)
    c = np.full(num_experts, 0.1, "f")
    return timed(lambda: mj.merge(tv, c), REPEATS)["median"]


def tracing(num_experts: int) -> float:
    """Give the seconds of `evolve` on as many quadratic surrogates as experts, warm."""
    n, rng = num_experts, np.random.default_rng(0)
    c = rng.random(((n + 1) * (n + 2), n))
    corners = np.eye(n)
    scores = 1 - ((c[:, None] - corners) ** 2).mean(axis=2)
    surrogate = fit_quadratic(c, scores)
    directions = mj.pareto.reference_directions(n, 100)
    search = mj.search.NSGA3(
        population_size=len(directions),
        num_coefficients=n,
        num_objectives=n,
        reference_directions=directions,
    )
    key = jax.random.key(0)

    def objective(x: jax.Array) -> jax.Array:  # one, as another would be compiled anew
        return -surrogate(x[None])[0]

    def trace() -> Any:
        return mj.search.evolve(objective, search, 150, key=key).scores

    return timed(trace, REPEATS)["median"]


def devices(count: int, quick: bool) -> float:
    """Give the seconds of an evaluation whose candidates are shared out, warm."""
    flag = f"--xla_force_host_platform_device_count={count}"
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.bench_scaling", "--devices", str(count)]
    child = subprocess.run(
        command + ["--quick"] * quick,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


def _curve(x: list[int], y: list[float]) -> dict[str, list]:
    return {"x": x, "y": y}


def main() -> None:
    command = parser(__doc__ or "")
    command.add_argument("--devices", type=int, help="used by the script itself")
    arguments = command.parse_args()
    quick = arguments.quick
    if arguments.devices:
        mesh = jax.make_mesh((arguments.devices,), ("candidates",))
        print(json.dumps(evaluation(num_candidates=8 if quick else 32, mesh=mesh)))
        return
    experts = [2, 4] if quick else [2, 4, 8, 16, 32]
    tasks = [1, 2] if quick else [1, 2, 4, 8, 16]
    candidates = [1, 4] if quick else [1, 4, 16, 64, 256]
    widths = [64, 128] if quick else [64, 128, 256, 512, 1024]
    sizes = [10**4, 10**5] if quick else [10**5, 10**6, 10**7, 10**8]
    objectives = [2, 3] if quick else [2, 4, 8, 12]
    counts = [1, 2] if quick else [1, 2, 4]
    report(
        "scaling",
        {
            "curves": [
                {
                    "title": "evaluating 16 merges",
                    "x_label": "experts, or tasks",
                    "y_label": "seconds",
                    "lines": {
                        "experts, 4 tasks": _curve(
                            experts, [evaluation(num_experts=n) for n in experts]
                        ),
                        "tasks, 4 experts": _curve(
                            tasks, [evaluation(num_tasks=t) for t in tasks]
                        ),
                    },
                },
                {
                    "title": "evaluating, 4 experts and tasks",
                    "x_label": "candidates",
                    "y_label": "seconds",
                    "lines": {
                        "width 256": _curve(
                            candidates, [evaluation(num_candidates=k) for k in candidates]
                        )
                    },
                },
                {
                    "title": "evaluating 16 merges, 4 experts and tasks",
                    "x_label": "parameters",
                    "y_label": "seconds",
                    "lines": {
                        "500 examples": _curve(
                            [784 * w + w * w + 10 * w for w in widths],
                            [evaluation(width=w) for w in widths],
                        )
                    },
                },
                {
                    "title": "one merge",
                    "x_label": "parameters",
                    "y_label": "seconds",
                    "lines": {
                        f"{n} experts": _curve(sizes, [merging(p, n) for p in sizes])
                        for n in (2, 8)
                    },
                },
                {
                    "title": "tracing a front, 150 generations",
                    "x_label": "experts and tasks",
                    "y_label": "seconds",
                    "lines": {
                        "NSGA-III": _curve(objectives, [tracing(n) for n in objectives])
                    },
                },
                {
                    "title": "evaluating 32 merges",
                    "x_label": "devices, on two cores",
                    "y_label": "seconds",
                    "lines": {
                        "width 256": _curve(counts, [devices(d, quick) for d in counts])
                    },
                },
            ]
        },
        arguments.output,
    )


if __name__ == "__main__":
    main()
