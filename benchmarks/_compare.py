"""Every method on every suite: runs are kept on disk, and their figures summarised."""

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks._measures import Record, design_points, judge, record
from benchmarks._truth import Truth
from benchmarks.methods import METHODS, NotInstalledError
from benchmarks.suites import CACHE, load
from mapjax._progress import progress_bar

_VERSION = 5  # of the runs: raise it when a method changes

Key = tuple[str, int]
"""A method and its budget."""


class Plan(NamedTuple):
    """A suite, and what its runs are made and judged with.

    Attributes:
        suite: Its name.
        folder: Where its models and images are, if it needs to be told.
        pool: How many direct evaluations tell what is reachable.
        verify: How many points of a front are evaluated to judge it, besides what twice as
            many preferences pick.
        runs: Where runs are kept.
    """

    suite: str
    folder: Path | None
    pool: int
    verify: int
    runs: Path


class _Job(NamedTuple):
    plan: Plan
    seed: int
    method: str
    budgets: list[int]
    fresh: bool
    is_alone: bool


def compare(
    plan: Plan,
    methods: Sequence[str],
    budgets: Sequence[str | int],
    seeds: Sequence[int],
    *,
    fresh: bool = False,
    processes: int = 1,
    keep_programs: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Measure methods on one suite, for every budget and seed.

    A run that lies on disk is not made again. The figures are of all runs that lie there,
    of these seeds, so that methods may be added one at a time.

    Args:
        plan: The suite.
        methods: Some of `METHODS`.
        budgets: Numbers of evaluations; "N+1" and "2p" go by the suite's experts.
        seeds: Of the suite.
        fresh: Whether to make runs again that lie on disk.
        processes: How many work at once. They slow each other down: seconds are only kept
            with one.
        keep_programs: Whether to keep what is compiled on disk: methods and seeds have most
            programs in common.

    Returns:
        The figures of runs that there are for every seed, and what went wrong, a line for
        each run that did. A method whose library is not installed is left out.
    """
    with _workers(processes, keep_programs) as each:
        # Where several ask for them, models are trained and pools drawn beforehand.
        first = seeds if processes > 1 else seeds[:1]
        n, *_ = each(_prepare, [(plan, seed) for seed in first])
        able = [m for m in methods if plan.suite in (METHODS[m].only or (plan.suite,))]
        troubles: list[str] = []
        judged = []
        for seed in seeds:
            jobs = [
                _Job(plan, seed, m, budgets_for(m, budgets, n), fresh, processes == 1)
                for m in able
            ]
            with progress_bar(f"{plan.suite}, seed {seed}", len(jobs)) as advance:
                for failed in each(_make, jobs):
                    troubles += failed
                    advance(1)
            figures = each(_judge_all, [(plan, seed)])
            # One process judges the suite that it has at hand; of several, one does while
            # the others go on with the next.
            judged.append(list(figures) if processes == 1 else figures)
        found = [figures for (figures,) in judged]
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


@contextmanager
def _workers(
    processes: int, keep_programs: bool
) -> Iterator[Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]]:
    """Give a `map`, over several processes if there are to be several."""
    if processes == 1:
        if keep_programs:
            _keep_programs()
        yield map
        return
    # A fork of a process in which JAX runs threads may wait for ever.
    context = multiprocessing.get_context("spawn")
    # LAPACK's threads come with NumPy, before a process can be given its cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    turns = context.Queue()
    for i in range(processes):
        turns.put(i)
    given = (turns, processes, keep_programs)
    with ProcessPoolExecutor(
        processes, context, initializer=_begin, initargs=given
    ) as pool:
        try:
            yield pool.map
        except BaseException:  # Ctrl-C among them: what has not begun is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(turns: Any, processes: int, keep_programs: bool) -> None:
    """Begin a process on a share of the cores: on all of them, it waits for the others."""
    turn = turns.get()
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[turn % len(cores) :: processes])
    if keep_programs:
        _keep_programs()


def _keep_programs() -> None:
    jax.config.update("jax_compilation_cache_dir", str(CACHE / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@functools.lru_cache(maxsize=1)
def _load(plan: Plan, seed: int) -> tuple[Truth, Path]:
    """Load a suite, and say where its runs are; one process works on one after the other."""
    suite = load(plan.suite, seed, folder=plan.folder)
    name = f"{suite.name}-{suite.seed}-{suite.fingerprint()}-{_VERSION}"
    return Truth(suite, size=plan.pool), plan.runs / name


def _prepare(plan_and_seed: tuple[Plan, int]) -> int:
    """Train the models of a seed and draw its pool, unless they lie on disk.

    Returns:
        How many experts there are.
    """
    truth, _ = _load(*plan_and_seed)
    return truth.suite.task_vectors.num_tasks


def _make(job: _Job) -> list[str]:
    """Make the runs of one method on one seed.

    Returns:
        A line for each that failed.
    """
    plan, seed, method, budgets, fresh, is_alone = job
    truth, place = _load(plan, seed)
    troubles: list[str] = []
    for budget in budgets:
        path = place / f"{method}-{budget}.npz"
        try:
            if fresh:
                path.unlink(missing_ok=True)
            if not path.exists():
                run = record(truth, method, budget, verify=plan.verify)
                if not is_alone:
                    run = run._replace(seconds=np.asarray(np.nan))
                run.save(path)
        except NotInstalledError as error:
            print(f"{method} is left out: {error}", file=sys.stderr)
        except Exception as error:  # the others are still worth having
            where = f"{plan.suite} {seed} {method} {budget}"
            why = " ".join(str(error).split())[:300]
            troubles.append(f"{where}: {type(error).__name__}: {why}")
            print(troubles[-1], file=sys.stderr)
    return troubles


def _judge_all(
    plan_and_seed: tuple[Plan, int],
) -> tuple[dict[Key, dict[str, Any]], dict[str, Any]]:
    """Judge all runs of a seed, by what they and the pool found together.

    Returns:
        The figures of each run, and those of the suite.
    """
    truth, place = _load(*plan_and_seed)
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
