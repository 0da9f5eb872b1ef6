"""`map_front` without its evaluations, and how good the front is that it finds."""

from typing import Any

import jax
import numpy as np

import mapjax as mj
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


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    figures = {}
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
    report("map", figures, arguments.output)


if __name__ == "__main__":
    main()
