"""What a suite's figures say: tables, and in words where mapjax is not the best."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks._markdown import markdown_table
from benchmarks.methods import METHODS


class Column(NamedTuple):
    """A measure as the report shows it.

    Attributes:
        name: What it is called among the figures.
        title: What it is called in the report.
        digits: After the point.
        sign: 1 if more is better, -1 if less is, 0 if that is no matter of better or worse.
    """

    name: str
    title: str
    digits: int
    sign: int


COLUMNS = (
    Column("hypervolume", "hypervolume", 1, 1),
    Column("hypervolume_evaluated", "of evaluated", 1, 1),
    Column("igd_plus", "IGD+", 2, -1),
    Column("regret", "regret", 2, -1),
    Column("regret_evaluated", "of evaluated", 2, -1),
    Column("regret_linear", "of linear", 2, -1),
    Column("win_rate", "win rate", 0, 1),
    Column("normalized_average", "average", 1, 1),
    Column("generalization_gap", "gap", 2, 0),
    Column("held_out", "held out", 1, 1),
    Column("least_r2", "least R2", 3, 1),
    Column("coverage", "coverage", 0, 0),
    Column("evaluations", "evaluations", 0, 0),
    Column("points", "points", 0, 0),
    Column("examples", "examples", 0, 0),
    Column("seconds", "seconds", 1, 0),
    Column("peak_megabytes", "MB", 0, 0),
)
_WITHIN = ", within the range of seeds"

Spread = dict[str, float]
"""Median, least and most over seeds."""


def cell(spread: Spread | None, digits: int) -> str:
    """Write a median and, where seeds differ, their range."""
    if spread is None:
        return ""
    median, *ends = (f"{spread[k]:,.{digits}f}" for k in ("median", "least", "most"))
    return median if ends[0] == ends[1] else f"{median} ({ends[0]} to {ends[1]})"


def budgets(figures: dict[str, Any]) -> list[str]:
    """List the numbers of evaluations that something was measured at."""
    return sorted({b for runs in figures["methods"].values() for b in runs}, key=int)


def tables(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Write a Markdown table for every number of evaluations, ours first, best in bold."""
    for budget in budgets(figures):
        rows = _rows(figures, budget)
        columns = [c for c in COLUMNS if any(c.name in row for row in rows.values())]
        best = {
            c.name: f"{rows[method][c.name]['median']:,.{c.digits}f}"
            for c in columns
            if c.sign and (method := _best(rows, c))
        }
        table = []
        for method, row in rows.items():
            name = f"`{method}`" if METHODS[method].is_ours else method.replace("_", " ")
            cells = [cell(row.get(c.name), c.digits) for c in columns]
            # All that look the same in the table are bold, not the first of them alone.
            bold = [
                f"**{text}**" if text and text.split(" ")[0] == best.get(c.name) else text
                for text, c in zip(cells, columns, strict=True)
            ]
            table.append([name, *bold])
        yield budget, markdown_table(["method", *(c.title for c in columns)], table)


def lost(suite: str, figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Say in words in which columns another method is ahead.

    Yields:
        The method, and what it has against the best of ours.
    """
    for budget in budgets(figures):
        rows = _rows(figures, budget)
        for column in COLUMNS:
            if not column.sign:
                continue
            ours, theirs = (
                _best({m: r for m, r in rows.items() if METHODS[m].is_ours is own}, column)
                for own in (True, False)
            )
            if ours is None or theirs is None:
                continue
            us, them = rows[ours][column.name], rows[theirs][column.name]
            if column.sign * (us["median"] - them["median"]) >= 0:
                continue
            what = column.name.replace("_", " ")
            within = "" if len(figures["seeds"]) == 1 or _apart(us, them) else _WITHIN
            yield (
                theirs,
                f"{suite}, {budget} evaluations, {what}: {cell(them, column.digits)} against "
                f"{cell(us, column.digits)} of `{ours}`{within}.",
            )


def _rows(figures: dict[str, Any], budget: str) -> dict[str, dict[str, Spread]]:
    """Take the methods that were measured at a budget, in the order of the registry."""
    runs = figures["methods"]
    known = [m for m in METHODS if budget in runs.get(m, {})]
    ordered = sorted(known, key=lambda m: not METHODS[m].is_ours)
    return {m: runs[m][budget] for m in ordered}


def _best(rows: dict[str, dict[str, Spread]], column: Column) -> str | None:
    found = {m: row[column.name]["median"] for m, row in rows.items() if column.name in row}
    return max(found, key=lambda m: column.sign * found[m]) if found else None


def _apart(a: Spread, b: Spread) -> bool:
    return a["most"] < b["least"] or b["most"] < a["least"]
