"""The table of the demo."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from mapjax._result import Point
from mapjax._solution import Solution


class Row(NamedTuple):
    """One merge on validation data, and what it scores on test data."""

    point: Point
    test: np.ndarray
    show_predicted: bool


def print_table(console: Console, rows: Sequence[Row], solution: Solution) -> None:
    """Print scores in percent, predictions under measurements.

    Args:
        console: Where to.
        rows: What to show.
        solution: Where it comes from.
    """
    title = "Accuracy on the validation images in %, measured and predicted"
    # Narrow enough for 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title=title)
    table.add_column("merge", no_wrap=True)
    table.add_column("coefficients", no_wrap=True)
    for name in [*solution.task_names, "mean", "of experts", "test mean"]:
        table.add_column(
            name.replace("_", "\n").replace(" ", "\n"), justify="right", no_wrap=True
        )
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        point = row.point
        measured = [*_percent(point.measured, point.normalized), _cell(row.test.mean())]
        c = " ".join(f"{value:.2f}" for value in point.coefficients)
        last = after is not None and after.show_predicted > row.show_predicted
        table.add_row(point.name, c, *measured, end_section=last)
        if row.show_predicted:
            normalized = np.asarray(solution.normalized(point.predicted))
            predicted = _percent(point.predicted, normalized)
            table.add_row("  predicted", "", *predicted, style="dim")
    console.print()
    console.print(table)


def _percent(scores: np.ndarray, normalized: np.ndarray) -> list[str]:
    return [_cell(value) for value in [*scores, scores.mean(), normalized.mean()]]


def _cell(value: Any) -> str:
    return f"{100 * value:.1f}"
