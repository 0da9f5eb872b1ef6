"""Merging against the bandwidth of a NumPy copy, and a batch against single merges.

On Linux, results of hundreds of megabytes are fresh pages, and the kernel's work on them
takes as long as the merge. `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` makes these pages large,
for NumPy and JAX alike; the figures say whether it was set.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mapjax as mj
from benchmarks._report import against, parser, report


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    num_parameters, num_experts, num_merges = 100_000_000, 4, 16
    if arguments.quick:
        num_parameters = 2_000_000
    figures: dict[str, Any] = {
        "parameters": num_parameters,
        "experts": num_experts,
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
    }

    rows = num_parameters // 1000
    base = {"w": jnp.zeros((rows, 1000))}
    experts = [{"w": jnp.full((rows, 1000), float(i))} for i in range(num_experts)]
    tv = mj.TaskVectors.from_params(base, experts)
    del base, experts
    coefficients = np.random.default_rng(0).random((num_merges, num_experts)).astype("f")

    source, target = np.ones(num_parameters, "f"), np.empty(num_parameters, "f")
    one = against(
        lambda: mj.merge(tv, coefficients[0]),
        lambda: np.copyto(target, source),
    )
    bytes_merged = 4 * num_parameters * (num_experts + 2)  # base and vectors in, result out
    bytes_copied = 4 * num_parameters * 2
    figures["one_merge"] = one | {
        "gigabytes_per_second": bytes_merged / one["ours"] / 1e9,
        "copy_gigabytes_per_second": bytes_copied / one["theirs"] / 1e9,
        "share_of_copy_bandwidth": one["times_faster"] * bytes_merged / bytes_copied,
    }
    del source, target

    # Sixteen results of 100 M parameters do not fit everywhere: a quarter of them do.
    base, vectors = jax.tree.map(lambda x: x[..., : rows // 4, :], (tv.base, tv.vectors))
    tv = mj.TaskVectors(base, vectors, tv.names)

    def singles() -> None:
        for c in coefficients:
            jax.block_until_ready(mj.merge(tv, c))  # used by someone, and dropped

    # XLA runs through an array as it lies in memory. With the candidates last, it reads the
    # base and the vectors once; with the candidates first, once for each of them.
    for name, axis in (("candidates_first", 0), ("candidates_last", -1)):
        batch = jax.jit(jax.vmap(mj.merge, in_axes=(None, 0), out_axes=axis))
        figures[f"sixteen_merges_{name}"] = against(
            lambda batch=batch: jax.block_until_ready(batch(tv, coefficients)) and None,
            singles,
        )
    report("merge", figures, arguments.output)


if __name__ == "__main__":
    main()
