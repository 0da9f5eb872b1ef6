"""The figures of the benchmarks of speed and of merge rules as Markdown."""

from collections.abc import Callable
from typing import Any

from benchmarks._front_tables import cell
from benchmarks._markdown import markdown_table

Figures = dict[str, Any]


def search(figures: Figures) -> str:
    """Tracing a front against pymoo and DEAP, and the field's test problems."""
    sizes = {name: one for name, one in figures.items() if name.startswith("N = T")}
    problems = {name: one for name, one in figures.items() if "ours_over_pymoo" in one}
    opponents = ", ".join(f"{k} {v}" for k, v in figures["opponents"].items())
    return "\n\n".join(
        [
            "## Search",
            "NSGA-III on quadratic surrogates for 150 generations, and in the paper's box "
            f"with its settings ({opponents}); how many times faster, warm, and the time "
            "with compiling over pymoo's. Hypervolume is that of our archive, and of as "
            "many points of it, far apart, as pymoo's last population has.",
            markdown_table(
                (
                    *("experts and tasks", "faster than pymoo", "cold, over pymoo's"),
                    *("hypervolume over pymoo's", "of as many points", "points, pymoo's"),
                    *("faster than DEAP", "without its archive"),
                ),
                [
                    (
                        name.removeprefix("N = T = "),
                        f"{one['warm']['times_faster']:.0f}",
                        f"{one['cold']['ours_over_theirs']:.2f}",
                        f"{one['hypervolume_over_pymoo']:.2f}",
                        f"{one['hypervolume_over_pymoo_of_as_many_points']:.2f}",
                        f"{one['points']['ours']}, {one['points']['pymoo']}",
                        f"{one['deap']['times_faster']:.0f}",
                        f"{one['deap']['times_faster_without_archive']:.0f}",
                    )
                    for name, one in sizes.items()
                ],
            ),
            "IGD to the true front at equal evaluations, over pymoo's; medians.",
            markdown_table(
                ("problem", "evaluations", "seeds", "archive", "last population"),
                [
                    (
                        name,
                        one["evaluations"],
                        one["seeds"],
                        f"{one['ours_over_pymoo']:.2f}",
                        f"{one['our_population_over_pymoo']:.2f}",
                    )
                    for name, one in problems.items()
                ],
            ),
        ]
    )


def merge(figures: Figures) -> str:
    """Merging against the bandwidth of a copy."""
    rows = []
    for name, one in figures["one_merge"].items():
        rows.append(
            (
                name,
                f"{one['gigabytes_per_second']:.1f}",
                f"{one['copy_gigabytes_per_second']:.1f}",
                f"{one['share_of_copy_bandwidth']:.2f}",
                f"{one['merges_per_second']:.1f}",
            )
        )
    sixteen = [
        (name.replace("_", " "), f"{figures[name]['times_faster']:.1f}")
        for name in figures
        if name.startswith("sixteen")
    ]
    return "\n\n".join(
        [
            "## Merging",
            "Bytes read and written a second by one merge, and by a copy in NumPy. "
            f"GLIBC_TUNABLES: {figures['glibc_tunables']}.",
            markdown_table(
                ("merge", "GB/s", "copy, GB/s", "share of the copy", "merges a second"),
                rows,
            ),
            "Sixteen merges in one call against sixteen calls.",
            markdown_table(("sixteen merges", "times faster"), sixteen),
        ]
    )


def whole_map(figures: Figures) -> str:
    """Seconds of `map_front` without its evaluations."""
    start = figures["new processes"]
    return "\n\n".join(
        [
            "## `map_front` of a function",
            "Seconds: the first call, which compiles, and the median of those after it, "
            "without the evaluations; six rounds.",
            markdown_table(
                ("experts and tasks", "first", "warm", "points of the front"),
                [
                    (
                        name.removeprefix("N = T = "),
                        f"{one['first']:.1f}",
                        f"{one['median_without_evaluation']:.2f}",
                        one["points"],
                    )
                    for name, one in figures.items()
                    if name.startswith("N = T")
                ],
            ),
            "Of an `Evaluator` of networks with two layers: one fit of the outputs to all "
            "samples and one front; seconds, the evaluations left out, and by how much the "
            "process grew at most.",
            markdown_table(
                (
                    *("tasks, examples of each, classes", "first", "warm"),
                    *("fit", "front", "MB"),
                ),
                [
                    (
                        name,
                        f"{one['first']:.1f}",
                        f"{one['median']:.2f}",
                        f"{one['fit']:.2f}",
                        f"{one['search']:.2f}",
                        f"{one['peak_megabytes']:.0f}",
                    )
                    for name, one in figures.items()
                    if " x " in name
                ],
            ),
            "The first call of a process, an `Evaluator` of three such experts and 20 "
            f"evaluations: {start['first']:.1f} s, and {start['cached']:.1f} s once another "
            "process has filled JAX's cache on disk.",
        ]
    )


def evaluation(figures: Figures) -> str:
    """Evaluating against a loop over a jitted function; memory."""
    widths = {name: one for name, one in figures.items() if name.startswith("width")}
    return "\n\n".join(
        [
            "## Evaluation",
            "Against calling a jitted merge and evaluation candidate by candidate; a "
            "perceptron with 784 inputs, 4 tasks.",
            markdown_table(
                ("perceptron", "candidates a second", "times faster"),
                [
                    (name, one["candidates_per_second"], f"{one['times_faster']:.2f}")
                    for name, one in widths.items()
                ],
            ),
            "Peak memory that the system saw, over what was predicted.",
            markdown_table(
                ("candidates at once", "seen over predicted"),
                [
                    (name.removeprefix("chunk "), f"{one['seen_over_predicted']:.2f}")
                    for name, one in figures["memory"].items()
                ],
            ),
        ]
    )


def against_torch(figures: Figures) -> str:
    """Evaluating against PyTorch."""
    suites = {name: one for name, one in figures.items() if isinstance(one, dict)}
    return "\n\n".join(
        [
            "## Evaluation against PyTorch",
            f"PyTorch {figures['torch']} on {figures['device']}: one candidate at a time, as "
            "the paper does, and `torch.func.vmap`.",
            markdown_table(
                (
                    *("suite", "parameters", "examples", "candidates a second"),
                    *("PyTorch loop", "torch.func.vmap", "faster than loop", "than vmap"),
                ),
                [
                    (
                        name,
                        f"{one['parameters']:,}",
                        f"{one['examples']:,}",
                        *(f"{x:,.0f}" for x in one["candidates_per_second"].values()),
                        f"{one['times_faster_than_loop']:.2f}",
                        f"{one['times_faster_than_vmap']:.2f}",
                    )
                    for name, one in suites.items()
                ],
            ),
            "On a CPU there is nothing to gain from batching candidates, and XLA multiplies "
            "small matrices more slowly than PyTorch's MKL does: with models as small as "
            "digits8's, PyTorch is ahead. Candidates at once are for accelerators, where "
            "this was not measured."
            if figures["device"] == "cpu"
            else "",
        ]
    )


def io(figures: Figures) -> str:
    """From disk to disk against mergekit; starting."""
    start, look = figures["start_seconds"], figures["inspect_seconds"]
    size = figures["gigabytes"][0]
    return "\n\n".join(
        [
            "## Files",
            f"`mapjax merge` of a base and 3 experts of {size:.0f} GB each in "
            f"{figures['dtype']}, from disk to disk, against mergekit "
            f"{figures['mergekit']['mergekit']} on the same files.",
            markdown_table(
                ("rule", "seconds", "mergekit", "times faster", "peak memory, % of its"),
                [
                    (
                        name,
                        f"{figures[name]['ours']['seconds']:.1f}",
                        f"{figures[name]['theirs']['seconds']:.1f}",
                        f"{figures[name]['times_faster']:.1f}",
                        f"{100 * figures[name]['share_of_resident_memory']:.1f}",
                    )
                    for name in ("linear", "ties")
                ],
            ),
            markdown_table(
                ("start", "seconds"),
                [
                    ("`mapjax inspect` of all four", f"{look['warm']:.1f}"),
                    ("the same, not cached by the system", f"{look['cold']:.1f}"),
                    ("`import mapjax`", f"{start['import_mapjax']:.2f}"),
                    ("`mapjax --help`", f"{start['help']:.2f}"),
                ],
            ),
        ]
    )


def rules(figures: Figures) -> str:
    """Merge rules at equal evaluations."""
    suites = {name: one for name, one in figures.items() if isinstance(one, dict)}
    names = list(next(iter(suites.values())))
    first = next(iter(suites))
    names = [n for n in names if n != "seeds"]
    names.sort(key=lambda rule: -suites[first][rule]["hypervolume"]["median"])
    return "\n\n".join(
        [
            f"## Merge rules, {figures['budget']} evaluations",
            "Coefficients chosen on validation images, figures of test images: the volume "
            "under the front (percent of the box up to each task's best) and the accuracy "
            "of the merge that is best on average. The volume is that of what was evaluated "
            "and of up to 100 merges of the predicted front, which were never scored on "
            "validation images. The base of digits8_weak_base was trained "
            "for 60 steps, that of digits8 for 300. Of what begins with `rules.`, mixtures "
            "are searched; elsewhere eight evaluations set the box. Numbers behind a comma "
            "are ranks, and the second moments of `ota` those that Adam has of 500 batches "
            "at each expert.",
            markdown_table(
                ["rule"]
                + [f"{s}, {x}" for s in suites for x in ("hypervolume", "average")],
                [
                    [rule]
                    + [
                        cell(suites[s][rule][x], 1)
                        for s in suites
                        for x in ("hypervolume", "best_average")
                    ]
                    for rule in names
                ],
            ),
        ]
    )


def rules_speed(figures: Figures) -> str:
    """What transforms cost."""
    rows = {name: one for name, one in figures.items() if isinstance(one, dict)}
    return "\n\n".join(
        [
            "## What a merge rule costs",
            f"{figures['experts']} experts of {figures['numbers_per_expert']:,} numbers: "
            "seconds, times of reading the vectors once, and copies of them held beside "
            "input and output. Rules by decomposition take one matrix.",
            markdown_table(
                ("rule", "seconds", "times reading", "copies"),
                [
                    (
                        name,
                        one["seconds"],
                        f"{one['passes']:,.0f}" if "passes" in one else "",
                        f"{one['copies']:.1f}" if "copies" in one else "",
                    )
                    for name, one in rows.items()
                ],
            ),
        ]
    )


def scaling(figures: Figures) -> str:
    """Curves as tables."""
    parts = ["## How times grow", "Seconds, warm."]
    for curve in figures["curves"]:
        for name, line in curve["lines"].items():
            head = [f"{curve['title']}, {name}: {curve['x_label']}"]
            parts.append(
                markdown_table(
                    head + [f"{x:,}" for x in line["x"]], [[curve["y_label"], *line["y"]]]
                )
            )
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[Figures], str]] = {
    "evaluation": evaluation,
    "io": io,
    "map": whole_map,
    "merge": merge,
    "scaling": scaling,
    "search": search,
    "torch": against_torch,
    "transforms": rules,
    "transforms_by_depth": rules,
    "transforms_speed": rules_speed,
}
