"""Time and memory of every rule that needs no data, against reading the vectors once.

Each rule runs in processes of its own, on tensors of one shape; `passes` is its time over
that of summing the vectors in the same process, on pages that are used again, `copies` the
memory that it took beyond the base and the vectors, in copies of the vectors, its result
included, where what is freed is given back.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mapjax as mj
from benchmarks._memory import keep_pages
from benchmarks._report import parser, report, timed
from mapjax import transforms

SIDE = 1600
KEY = jax.random.key(0)

RULES: dict[str, Callable[[mj.TaskVectors], mj.TaskVectors]] = {
    "dare": lambda tv: transforms.dare(tv, density=0.5, key=KEY),
    "magmax": transforms.magmax,
    "lines": lambda tv: transforms.lines(tv, layers=lambda path: int(path[2:-2])),
    "metagpt": transforms.metagpt,
    "model_stock": transforms.model_stock,
    "tall_mask": transforms.tall_mask,
    "consensus": transforms.consensus,
    "ties": transforms.ties,
    "ties, whole model": lambda tv: transforms.ties(tv, scope="global"),
    "breadcrumbs": transforms.breadcrumbs,
    "pcb": transforms.pcb,
    "della": lambda tv: transforms.della(tv, key=KEY),
    "tsv": transforms.tsv,
    "iso_c": transforms.iso_c,
    "wudi": transforms.wudi,
}
SPECTRAL = ("tsv", "iso_c", "wudi")


def vectors(num_tensors: int, num_experts: int) -> mj.TaskVectors:
    """Draw vectors of square matrices."""
    keys = jax.random.split(KEY, num_tensors)
    shape = (num_experts, SIDE, SIDE)
    return mj.TaskVectors(
        {str(i): jnp.zeros((SIDE, SIDE)) for i in range(num_tensors)},
        {str(i): jax.random.normal(key, shape) for i, key in enumerate(keys)},
        tuple(f"expert_{i}" for i in range(num_experts)),
    )


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(rule: str, num_tensors: int, num_experts: int) -> dict[str, float]:
    """Run a rule in this process."""
    tv = jax.block_until_ready(vectors(num_tensors, num_experts))
    size = sum(v.nbytes for v in tv.vectors.values())

    @jax.jit
    def read(vectors: dict[str, jax.Array]) -> jax.Array:
        return sum((jnp.sum(v) for v in vectors.values()), jnp.zeros(()))

    reading = timed(lambda: read(tv.vectors), repeats=3)["median"]
    before = peak()
    found = timed(lambda: RULES[rule](tv).vectors, repeats=3)
    return {
        "seconds": found["median"],
        "seconds_with_compilation": found["first"],
        "seconds_to_read": reading,
        "passes": found["median"] / reading,
        "copies": (peak() - before) / size,
    }


def in_processes(rule: str, num_tensors: int, num_experts: int) -> dict[str, Any]:
    """Time a rule where pages are kept, and take its memory where they are not."""
    timed, fresh = (
        in_a_process(rule, num_tensors, num_experts, environment)
        for environment in ({}, {"GLIBC_TUNABLES": ""})
    )
    return timed | {"copies": fresh["copies"]}


def in_a_process(
    rule: str, num_tensors: int, num_experts: int, environment: dict[str, str]
) -> dict[str, Any]:
    arguments = [
        "--one",
        rule,
        "--tensors",
        str(num_tensors),
        "--experts",
        str(num_experts),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_transforms_speed", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _arguments() -> argparse.Namespace:
    command = parser(__doc__ or "")
    command.add_argument("--one", choices=RULES, help="measure one rule in this process")
    command.add_argument("--tensors", type=int, default=10)
    command.add_argument("--experts", type=int, default=8)
    return command.parse_args()


def main() -> None:
    keep_pages()
    arguments = _arguments()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.tensors, arguments.experts)))
        return
    figures: dict[str, Any] = {
        "numbers_per_expert": arguments.tensors * SIDE**2,
        "experts": arguments.experts,
    }
    for rule in RULES:
        # Decompositions take seconds for each matrix: one says how long.
        num_tensors = 1 if rule in SPECTRAL else arguments.tensors
        figures[rule] = {"tensors": num_tensors}
        figures[rule] |= in_processes(rule, num_tensors, arguments.experts)
        print(rule, figures[rule], file=sys.stderr)
    report("transforms_speed", figures, arguments.output)


if __name__ == "__main__":
    main()
