"""The table of the demo."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One merge: what was measured, and what had been predicted."""

    name: str
    coefficients: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    predicted: np.ndarray
    show_predicted: bool


def print_table(
    console: Console, rows: Sequence[Row], task_names: Sequence[str], num_experts: int
) -> None:
    """Print scores in percent, predictions under measurements.

    Args:
        console: Where to.
        rows: The base, then the experts in the order of the tasks, then merges.
        task_names: The tasks.
        num_experts: How many rows after the first are experts.
    """
    own = np.array([rows[1 + t].validation[t] for t in range(num_experts)])
    title = "Accuracy on the validation images in %, measured and predicted"
    # Narrow enough for 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title=title)
    table.add_column("merge", no_wrap=True)
    table.add_column("coefficients", no_wrap=True)
    for name in [*task_names, "mean", "of experts", "test mean"]:
        table.add_column(
            name.replace("_", "\n").replace(" ", "\n"), justify="right", no_wrap=True
        )
    for index, row in enumerate(rows):
        measured = [*row.validation, row.validation.mean(), (row.validation / own).mean()]
        cells = [f"{100 * value:.1f}" for value in [*measured, row.test.mean()]]
        c = " ".join(f"{value:.2f}" for value in row.coefficients)
        last = (
            not row.show_predicted
            and index + 1 < len(rows)
            and rows[index + 1].show_predicted
        )
        table.add_row(row.name, c, *cells, end_section=last)
        if row.show_predicted:
            predicted = [*row.predicted, row.predicted.mean(), (row.predicted / own).mean()]
            cells = [f"{100 * value:.1f}" for value in predicted]
            table.add_row("  predicted", "", *cells, style="dim")
    console.print()
    console.print(table)
