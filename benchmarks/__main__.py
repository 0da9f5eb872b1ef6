"""The command line: `python -m benchmarks run` measures, `report` writes it up."""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import tyro

from benchmarks import _compare, _write_up
from benchmarks._report import report as write_json
from benchmarks.methods import METHODS
from benchmarks.suites import CACHE, SUITES

RESULTS = Path(__file__).with_name("results")
# Licences, and suites that differ from another in a detail, are for those who name them.
USUAL_SUITES = ("digits3", "digits8", "vision8", "sentiment4")
USUAL_BUDGETS = ("N+1", "48", "2p")
USUAL_SEEDS = (0, 1, 2, 3, 4)


def run(
    suite: Sequence[str] = USUAL_SUITES,
    methods: Sequence[str] = tuple(METHODS),
    budget: Sequence[str] = USUAL_BUDGETS,
    seeds: Sequence[int] = USUAL_SEEDS,
    quick: bool = False,
    fresh: bool = False,
    processes: int | None = None,
    pool: int | None = None,
    folder: Path | None = None,
    output: Path = CACHE / "results",
) -> None:
    """Measure methods on suites; what was measured before is not measured again.

    Args:
        suite: Which problems; mhc8 is for research alone and must be named.
        methods: Ways to a front.
        budget: Numbers of evaluations; N+1 (the base and the experts) and 2p, which is
            (N+1)(N+2), go by the suite.
        seeds: Of the training of the models and of the methods.
        quick: digits3 and digits8, two seeds, N+1 and 2p, a small pool and a fifth of the
            preferences, whatever else is asked for.
        fresh: Make runs again that were made before.
        processes: How many work at once; 2 with `--quick` on a CPU, else 1, for with more
            no seconds are kept.
        pool: How many direct evaluations tell what is reachable; by default as the suite
            is worth.
        folder: Where clip8 finds its models and images.
        output: Folder for the figures, one JSON file a suite. Runs are kept in
            ~/.cache/mapjax, those of `--quick` apart.
    """
    if quick:
        asked = {
            "--suite": (suite, USUAL_SUITES),
            "--budget": (budget, USUAL_BUDGETS),
            "--seeds": (seeds, USUAL_SEEDS),
        }
        changed = [name for name, (given, usual) in asked.items() if [*given] != [*usual]]
        if changed := [*changed, *(["--pool"] if pool else [])]:
            print(f"--quick takes the place of {', '.join(changed)}.", file=sys.stderr)
        suite, seeds, budget, pool = ("digits3", "digits8"), (0, 1), ("N+1", "2p"), 500
        processes = processes or (2 if jax.default_backend() == "cpu" else 1)
    for given, known in ((suite, SUITES), (methods, METHODS)):
        if unknown := sorted({*given} - {*known}):
            sys.exit(f"{unknown[0]!r} is none of {', '.join(known)}.")
    for given in budget:
        if given not in ("N+1", "2p") and not given.isdecimal():
            sys.exit(f"--budget {given!r} is neither a number nor N+1 or 2p.")
        if given.isdecimal() and int(given) < 1:
            sys.exit(f"--budget {given!r} is less than 1, the fewest evaluations.")
    troubles: list[str] = []
    for name in suite:
        try:
            entry = SUITES[name]
            figures, failed = _compare.compare(
                _compare.Plan(
                    name,
                    folder,
                    pool or entry.pool,
                    20 if quick else entry.verify,
                    CACHE / ("runs-quick" if quick else "runs"),
                ),
                methods,
                budget,
                seeds,
                fresh=fresh,
                processes=processes or 1,
                keep_programs=quick,
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:  # of the suite
            troubles.append(f"{name}: {error}")
            continue
        troubles += failed
        write_json(f"fronts_{name}", figures, output / f"fronts_{name}.json", show=False)
        print(_write_up.front_tables(name, figures))
    if troubles:
        sys.exit("\n".join(["These failed:", *troubles]))


def report(folder: Path = RESULTS) -> None:
    """Write README.md and its figures from the JSON files in a folder.

    Args:
        folder: Where the JSON files are.
    """
    for path in _write_up.write(folder):
        print(path)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "report": report})
