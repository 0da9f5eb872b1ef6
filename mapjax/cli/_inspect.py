"""`mapjax inspect`: what a merge would do, and every error it would meet."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mapjax.cli._errors import Failure, UsageError
from mapjax.cli._files import check_paths, print_json, read_memory, size
from mapjax.cli._merge import names_of

if TYPE_CHECKING:
    from rich.console import Console


def inspect(
    base: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")],
    experts: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="EXPERT")
    ] = (),
    *,
    fast: bool = False,
    full: bool = False,
    memory: str = "4GiB",
    json: bool = False,
) -> None:
    """Look at checkpoints before merging them: a dry run that finds errors in seconds.

    Prints formats, tensors, sizes and dtypes, what would be merged and what not, and how
    much memory and time that takes. Norms and cosines of the task vectors say whether the
    experts were fine-tuned from this base. Large models are sampled: a few million numbers,
    spread evenly over every tensor. Exits with 1 if anything is wrong.

    For example:

      mapjax inspect base.safetensors

      mapjax inspect base/ math/ code/

      mapjax inspect base/ math/ code/ --full --json

    Args:
        base: The pretrained checkpoint.
        experts: The fine-tuned ones.
        fast: Read no numbers: formats, names, shapes and dtypes only.
        full: Read every number, which finds every NaN and gives exact norms.
        memory: The most memory for numbers, such as 4GiB.
        json: Print one JSON object.
    """
    if fast and full:
        raise UsageError("--fast reads no numbers and --full all of them: pass one.")
    check_paths({"BASE": base, **{f"EXPERT {i + 1}": p for i, p in enumerate(experts)}})
    limit = read_memory(memory)
    from mapjax.cli._report import make_report

    reading = "none" if fast else "all" if full else "some"
    report = make_report(base, names_of(experts), reading=reading, memory=limit)
    if json:
        print_json(report)
    else:
        from rich.console import Console

        _print(Console(soft_wrap=True, highlight=False), report)
    if report["errors"]:
        count = len(report["errors"])
        raise Failure("1 error was found." if count == 1 else f"{count} errors were found.")


def _print(console: "Console", report: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("checkpoint", "format", "tensors", "numbers", "size", "dtypes"):
        right = name in ("tensors", "numbers", "size")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in report["checkpoints"]:
        dtypes = ", ".join(f"{name} {count}" for name, count in row["dtypes"].items())
        table.add_row(
            row["name"],
            row["format"],
            str(row["num_tensors"]),
            f"{row['num_numbers']:,}",
            size(row["nbytes"]),
            dtypes,
        )
    console.print(table)
    if report["norms"] is not None:
        _print_norms(console, report, Table(box=box.SIMPLE_HEAD, show_edge=False))
    if report["merge"] is not None:
        merge = report["merge"]
        console.print(
            f"\nWould merge {merge['num_merged']} tensors and take "
            f"{len(merge['left_alone'])} from the base."
        )
        for name, why in list(merge["left_alone"].items())[:5]:
            console.print(f"  from the base: {name} ({why})", markup=False)
        seconds = merge["seconds"]
        about = "" if seconds is None else f", about {max(seconds, 1):.0f} s"
        console.print(
            f"A linear merge takes {size(merge['peak_memory'])} of memory, reads "
            f"{size(merge['bytes_read'])} and writes {size(merge['bytes_written'])}{about}."
        )
    for kind in ("notes", "errors"):
        for text in report[kind]:
            console.print(f"{kind[:-1].capitalize()}: {text}", markup=False)


def _print_norms(console: "Console", report: dict[str, Any], table: Any) -> None:
    norms = report["norms"]
    names = list(norms["experts"])
    table.add_column("task vector")
    for name in ("norm", "of the base's", *(f"cosine with {n}" for n in names), "base"):
        table.add_column(name, justify="right", overflow="fold")
    for name, cosines in zip(names, norms["cosine"], strict=True):
        row = norms["experts"][name]
        cells = [f"{row['norm']:.4g}", f"{100 * row['relative_norm']:.2f} %"]
        cells += ["-" if x is None else f"{x:.3f}" for x in cosines]
        table.add_row(name, *cells, row["shares_base"])
    console.print()
    console.print(table)
    share = norms["share_read"]
    if share < 1:
        console.print(
            f"Estimated from {100 * share:.2g} % of the numbers; --full reads all."
        )
