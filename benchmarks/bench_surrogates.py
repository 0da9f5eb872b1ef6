"""How near a front comes to what is reachable, by method and by number of evaluations.

All metrics are maximised and shown in points (hundredths). Budgets are N + 1 (the base and
the experts), 2N + 2, p, 36, 45, 48 and 2p, with p = (N + 1)(N + 2) / 2.
"""

import argparse
import importlib
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import mapjax as mj
from benchmarks import opponents
from benchmarks._report import parser, report
from benchmarks._truth import Truth
from benchmarks.opponents import Found
from benchmarks.suites import Suite
from mapjax.design import make_design

# mhc8's data may not be used commercially: it runs only where someone names it.
# The likelihood is there for surrogates that need a derivative.
SUITES: dict[str, tuple[str, dict[str, Any]]] = {
    "digits3": ("digits3", {}),
    "digits8": ("digits8", {}),
    "digits8_weak_base": ("digits8", {"base_steps": 60, "expert_steps": 100}),
    "digits8_likelihood": ("digits8", {"metric": "likelihood"}),
    "digits16": ("digits16", {}),
    "mhc8": ("mhc8", {}),
}
DEFAULT = ("digits3", "digits8", "digits8_weak_base")

OURS: dict[str, Callable[..., Found]] = {
    "map_front": opponents.with_map_front,
    "outputs_adaptive": partial(opponents.with_map_front, surrogate="outputs"),
    "outputs_one_shot": partial(opponents.with_map_front, surrogate="outputs", rounds=1),
    "bayesian_front": opponents.bayesian,
    "quadratic_adaptive": partial(opponents.with_map_front, surrogate="quadratic"),
    "gradient_one_shot": partial(opponents.with_map_front, surrogate="gradient", rounds=1),
}
OPPONENTS: dict[str, Callable[..., Found]] = {
    "quadratic_one_shot": opponents.scalar_quadratic,
    "paper_protocol": opponents.paper_protocol,
    "direct_nsga3": opponents.direct_nsga3,
    "direct_sobol": opponents.sobol,
    "direct_simplex": opponents.simplex,
    "direct_mixed": opponents.direct,
}
METHODS = OURS | OPPONENTS
LARGE = (256, 512)
"""Budgets at which direct evaluation alone is tried, to say what ours are worth."""


def load(name: str, seed: int) -> Suite:
    """Load a suite by its name on the command line."""
    module_name, options = SUITES[name]
    module = importlib.import_module(f"benchmarks.suites.{module_name}")
    if "metric" in options:
        options = options | {"metric": getattr(module, options["metric"])}
    return module.load(seed, **options)._replace(name=name)


def budgets_for(method: str, num_coefficients: int) -> list[int]:
    """List the budgets at which a method is measured."""
    n = num_coefficients
    p = (n + 1) * (n + 2) // 2
    if method == "paper_protocol":
        return [2 * p]
    usual = sorted({n + 1, 2 * n + 2, p, 36, 45, 48, 2 * p})
    return usual + [*LARGE] * (method in ("direct_nsga3", "direct_mixed"))


def run(suite: Suite, method: str, budget: int, truth: Truth) -> tuple[Found, float]:
    """Run a method, and take note of all that it evaluated."""
    n = suite.task_vectors.num_tasks
    begun = time.perf_counter()
    found = METHODS[method](suite.validation, n, budget, suite.seed)
    spent = time.perf_counter() - begun
    assert len(found.evaluated) <= budget, f"{len(found.evaluated)} > {budget}"
    truth.add(found.evaluated, found.scores)
    truth(found.coefficients[truth.shown(found)])
    return found, spent


def judge(found: Found, spent: float, truth: Truth, held_out: np.ndarray) -> dict[str, Any]:
    """Compute the figures of one run, when all runs have told what is reachable."""
    shown = truth.shown(found)
    real = truth(found.coefficients[shown])
    predicted = found.predicted[shown]
    together = np.concatenate([found.scores, real])
    figures: dict[str, Any] = {
        "regret": truth.regret(real, predicted),
        "regret_evaluated": truth.regret(found.scores),
        "hypervolume_evaluated": truth.hypervolume(found.scores),
        "hypervolume_with_front": truth.hypervolume(together),
        "evaluations": len(found.evaluated),
        "points": len(found.predicted),
        "points_verified": len(shown),
        "seconds": spent,
    }
    if found.std is not None:
        error = np.abs(real - predicted)
        inside = error <= 1.645 * found.std[shown]
        figures["coverage_90"] = float(np.mean(inside))
        figures["error_on_front"] = 100 * float(np.mean(error))
    if found.surrogate is not None:
        scores = truth(held_out)
        guess = np.asarray(found.surrogate(held_out.astype(np.float32)), float)
        r2 = 1 - np.sum((scores - guess) ** 2, 0) / np.sum(
            (scores - scores.mean(0)) ** 2, 0
        )
        figures |= {"r2_held_out": r2.tolist(), "r2_held_out_least": float(r2.min())}
    marks = sorted({9, 18, 27, 36, 45, 48, 90} & set(range(len(found.scores) + 1)))
    figures["regret_evaluated_by"] = {k: truth.regret(found.scores[:k]) for k in marks}
    return figures


def measure(
    suite: Suite, methods: Sequence[str], only: Sequence[int] | None, quick: bool
) -> dict[str, Any]:
    """Measure all methods on one suite and seed. Trouble in one is recorded."""
    n = suite.task_vectors.num_tasks
    truth = Truth(suite, quick=quick)
    design = inspect.signature(mj.map_front).parameters["design"].default
    count = n + 2 + (128 if quick else 512)
    # The base, the experts and the uniform merge come first in every design.
    key = jax.random.key(1_000_000 + suite.seed)
    held_out = np.asarray(make_design(design, count, n, key=key))[n + 2 :]
    runs: dict[str, dict[int, Any]] = {}
    for method in methods:
        for budget in budgets_for(method, n):
            if only and budget not in only:
                continue
            try:
                done = run(suite, method, budget, truth)
            except Exception as error:
                done = f"{type(error).__name__}: {error}"
                print(suite.name, suite.seed, method, budget, done, file=sys.stderr)
            runs.setdefault(method, {})[budget] = done
    truth(held_out)
    figures = {
        method: {
            budget: {"error": done}
            if isinstance(done, str)
            else judge(done[0], done[1], truth, held_out)
            for budget, done in by_budget.items()
        }
        for method, by_budget in runs.items()
    }
    known = np.eye(n + 1, n, k=-1)
    start = truth(known)
    return {
        "methods": figures,
        "pool": len(truth.pool()[0]),
        "base": start[0].tolist(),
        "experts": np.diagonal(start[1:]).tolist(),
        "regret_of_base_alone": truth.regret(start[:1]),
        "regret_of_base_and_experts": truth.regret(start),
    }


def summarise(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give the median, the least and the most over seeds of every number."""
    first = seeds[0]
    if isinstance(first, dict):
        names = dict.fromkeys(name for one in seeds for name in one)
        return {
            str(name): summarise([one[name] for one in seeds if name in one])
            for name in names
        }
    if isinstance(first, str):
        return {"errors": list(seeds)}
    values = np.asarray(seeds, float)
    parts = [f(values, axis=0).tolist() for f in (np.median, np.min, np.max)]
    return dict(zip(("median", "least", "most"), parts, strict=True))


def table(name: str, summary: dict[str, Any]) -> str:
    """Write the medians of a suite as lines to read."""
    columns = {
        "regret": "regret",
        "regret_evaluated": "evaluated",
        "hypervolume_evaluated": "volume",
        "hypervolume_with_front": "with front",
        "r2_held_out_least": "least R2",
        "coverage_90": "coverage",
        "seconds": "seconds",
    }
    lines = [f"{name:>22}{'budget':>8}" + "".join(f"{c:>23}" for c in columns.values())]
    for method, by_budget in summary["methods"].items():
        for budget, figures in by_budget.items():
            cells = [figures.get(c) for c in columns]
            text = "".join(f"{_cell(cell):>23}" for cell in cells)
            if "error" in figures:
                text += f"  {figures['error']['errors'][0][:70]}"
            lines.append(f"{method:>22}{budget:>8}{text}")
    for figure in ("regret_of_base_alone", "regret_of_base_and_experts", "pool"):
        lines.append(f"{figure}: {_cell(summary[figure])}")
    return "\n".join(lines)


def _cell(number: dict[str, float] | None) -> str:
    if number is None:
        return "-"
    return f"{number['median']:.2f} ({number['least']:.2f}..{number['most']:.2f})"


def _arguments() -> argparse.Namespace:
    command = parser(__doc__ or "")
    command.add_argument("--suite", nargs="+", choices=SUITES, default=DEFAULT)
    command.add_argument("--seeds", nargs="+", type=int, help="0 to 4 by default")
    command.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    command.add_argument("--budgets", nargs="+", type=int, help="only these")
    return command.parse_args()


def main() -> None:
    arguments = _arguments()
    quick = arguments.quick
    seeds = arguments.seeds or (range(1) if quick else range(5))
    figures: dict[str, Any] = {}
    for name in arguments.suite:
        found = []
        for seed in seeds:
            suite = load(name, seed)
            found.append(measure(suite, arguments.methods, arguments.budgets, quick))
        figures[name] = summarise(found) | {"seeds": list(seeds), "by_seed": found}
        print(table(name, figures[name]), file=sys.stderr)
    figures["hypervolume_reference"] = "zero; in percent of the box up to each task's best"
    report("surrogates", figures, arguments.output)


if __name__ == "__main__":
    main()
