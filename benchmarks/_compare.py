"""Every method on every suite: runs are kept on disk, and their figures summarised."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measures import Record, design_points, judge, record
from benchmarks._truth import Truth
from benchmarks.methods import METHODS, NotInstalledError
from benchmarks.suites import Entry, Suite
from mapjax._progress import progress_bar

_VERSION = 1  # of the runs: raise it when a method changes

Key = tuple[str, int]
"""A method and its budget."""


def compare(
    load: Callable[[int], Suite],
    entry: Entry,
    methods: Sequence[str],
    budgets: Sequence[str | int],
    seeds: Sequence[int],
    *,
    runs: Path,
    pool: int | None = None,
    fresh: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Measure methods on one suite, for every budget and seed.

    A run that lies on disk is not made again. The figures are of all runs that lie there,
    of these seeds, so that methods may be added one at a time.

    Args:
        load: From a seed to the suite.
        entry: What is known of it: how much work its merges are worth.
        methods: Some of `METHODS`.
        budgets: Numbers of evaluations; "N+1" and "2p" go by the suite's experts.
        seeds: Of the suite.
        runs: Where they are kept.
        pool: How many direct evaluations tell what is reachable; the suite's own by default.
        fresh: Whether to make runs again that lie on disk.

    Returns:
        The figures of runs that there are for every seed, and what went wrong, a line for
        each run that did. A method whose library is not installed is left out.
    """
    found, troubles, n = [], [], 0
    for seed in seeds:
        suite = load(seed)
        name, n = suite.name, suite.task_vectors.num_tasks
        truth = Truth(suite, size=pool or entry.pool)
        place = runs / f"{name}-{seed}-{suite.fingerprint()}-{_VERSION}"
        wanted = [
            (method, budget)
            for method in methods
            for budget in budgets_for(method, budgets, n)
            if not METHODS[method].only or name in METHODS[method].only
        ]
        with progress_bar(f"{name}, seed {seed}", len(wanted)) as advance:
            for method, budget in wanted:
                path = place / f"{method}-{budget}.npz"
                try:
                    if fresh:
                        path.unlink(missing_ok=True)
                    if not path.exists():
                        record(truth, method, budget, verify=entry.verify).save(path)
                except NotInstalledError as error:
                    print(f"{method} is left out: {error}", file=sys.stderr)
                except Exception as error:  # the others are still worth having
                    why = " ".join(str(error).split())[:300]
                    troubles.append(
                        f"{name} {seed} {method} {budget}: {type(error).__name__}: {why}"
                    )
                    print(troubles[-1], file=sys.stderr)
                advance(1)
        found.append(_judge_all(truth, place))
    # A median of other seeds than the rest could not be compared with it.
    common = set.intersection(*({*runs} for runs, _ in found))
    figures = summarise([rest for _, rest in found])
    by_method: dict[str, dict[str, Any]] = {}
    for key in sorted(common):
        method, budget = key
        by_seed = [runs[key] for runs, _ in found]
        by_method.setdefault(method, {})[str(budget)] = summarise(by_seed)
    figures |= {"seeds": list(seeds), "experts": n, "methods": by_method}
    return figures, troubles


def budgets_for(method: str, budgets: Sequence[str | int], n: int) -> list[int]:
    """Turn words for budgets into numbers; the paper's protocol is made for 2p alone."""
    words = {"N+1": n + 1, "2p": (n + 1) * (n + 2)}
    if method == "paper_protocol":
        budgets = ["2p"]
    return sorted({words[b] if b in words else int(b) for b in budgets})


def _judge_all(
    truth: Truth, place: Path
) -> tuple[dict[Key, dict[str, Any]], dict[str, Any]]:
    """Judge all runs in a folder, by what they and the pool found together.

    Returns:
        The figures of each run, and those of the suite.
    """
    runs: dict[Key, Record] = {}
    for path in sorted(place.glob("*.npz")):
        method, _, budget = path.stem.rpartition("-")
        if method in METHODS:
            runs[method, int(budget)] = Record.load(path)
    for run in runs.values():
        # Whatever is merged by another rule has scores, but no place among the merges.
        rule = None if run.is_linear else "another"
        truth.add(run.evaluated, run.scores, rule)
        truth.add(run.coefficients, run.validation, rule)
    # All that is ever looked up, before anything is judged by what is known.
    n = truth.suite.task_vectors.num_tasks
    start = truth(np.eye(n + 1, n, k=-1))
    truth(design_points(truth))
    experts = np.eye(n, dtype=np.float32)
    at_home = np.diagonal(np.asarray(truth.suite.test(experts, progress=False)))
    paper = runs.get(("paper_protocol", (n + 1) * (n + 2)))
    judged = {key: judge(run, truth, at_home, paper) for key, run in runs.items()}
    return judged, {
        "pool": len(np.unique(truth.scores(), axis=0)),
        "regret_of_base": truth.regret(start[:1]),
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
    values = np.asarray(seeds, float)
    parts = [f(values, axis=0) for f in (np.median, np.min, np.max)]
    names = ("median", "least", "most")
    return {name: np.round(p, 4).tolist() for name, p in zip(names, parts, strict=True)}
