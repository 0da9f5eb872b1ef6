"""Tables and lists in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write a table; numbers get three significant digits."""
    lines = [_row(head), "|" + "---|" * len(head)]
    return "\n".join(lines + [_row(row) for row in rows])


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_text(c) for c in cells) + " |"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def listed(lines: Iterable[str]) -> str:
    """Write a list with a point for each line."""
    return "\n".join(f"- {line}" for line in lines)
