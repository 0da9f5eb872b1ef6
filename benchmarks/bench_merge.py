"""Merging against the bandwidth of a NumPy copy, and a batch against single merges."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mapjax as mj
from benchmarks._memory import keep_pages
from benchmarks._report import against, parser, report


def one_merge(num_parameters: int, num_experts: int) -> dict[str, Any]:
    """Time a merge against a copy of as many numbers as the base has."""
    tv = task_vectors(num_parameters, num_experts)
    coefficients = np.random.default_rng(0).random(num_experts).astype("f")
    source, target = np.ones(num_parameters, "f"), np.empty(num_parameters, "f")

    def ours() -> None:
        jax.block_until_ready(mj.merge(tv, coefficients))

    settle(ours)
    found = against(ours, lambda: np.copyto(target, source))
    bytes_merged = 4 * num_parameters * (num_experts + 2)  # base and vectors in, result out
    bytes_copied = 4 * num_parameters * 2
    return found | {
        "merges_per_second": 1 / found["ours"],
        "gigabytes_per_second": bytes_merged / found["ours"] / 1e9,
        "copy_gigabytes_per_second": bytes_copied / found["theirs"] / 1e9,
        "share_of_copy_bandwidth": found["times_faster"] * bytes_merged / bytes_copied,
    }


def sixteen_merges(num_parameters: int, num_experts: int) -> dict[str, Any]:
    """Time sixteen merges in one call, in two layouts, against sixteen calls."""
    tv = task_vectors(num_parameters, num_experts)
    coefficients = np.random.default_rng(0).random((16, num_experts)).astype("f")

    def singles() -> None:
        for c in coefficients:
            jax.block_until_ready(mj.merge(tv, c))  # used by someone, and dropped

    # XLA runs through an array as it lies in memory. With the candidates last, it reads the
    # base and the vectors once; with the candidates first, once for each of them.
    figures = {}
    for name, axis in (("candidates_first", 0), ("candidates_last", -1)):
        batch = jax.jit(jax.vmap(mj.merge, in_axes=(None, 0), out_axes=axis))

        def together(batch: Any = batch) -> None:
            jax.block_until_ready(batch(tv, coefficients))

        settle(together)
        figures[f"sixteen_merges_{name}"] = against(together, singles)
    return figures


def settle(function: Callable[[], None], calls: int = 6) -> None:
    """Call until results lie on pages that were freed before: it took four calls."""
    for _ in range(calls):
        function()


def task_vectors(num_parameters: int, num_experts: int) -> mj.TaskVectors:
    """Make one large matrix and as many vectors as experts."""
    rows = num_parameters // 1000
    vectors = [jnp.full((rows, 1000), float(i)) for i in range(num_experts)]
    names = tuple(f"expert {i}" for i in range(num_experts))
    return mj.TaskVectors({"w": jnp.zeros((rows, 1000))}, {"w": jnp.stack(vectors)}, names)


def main() -> None:
    keep_pages()
    arguments = parser(__doc__ or "").parse_args()
    scale = 100 if arguments.quick else 1
    sizes = {
        "100 million parameters, 4 experts": (100_000_000 // scale, 4),
        "87 million parameters (ViT-B/32), 8 experts": (87_000_000 // scale, 8),
        "350 million parameters, 2 experts": (350_000_000 // scale, 2),
    }
    figures: dict[str, Any] = {
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
        "one_merge": {name: one_merge(*size) for name, size in sizes.items()},
        # Sixteen results of 100 M parameters do not fit everywhere: a quarter of them do.
        **sixteen_merges(25_000_000 // scale, 4),
    }
    report("merge", figures, arguments.output)


if __name__ == "__main__":
    main()
