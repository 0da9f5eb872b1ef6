"""Pictures of the report, as small SVG files that are the same for the same figures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.methods import METHODS
from mapjax.plot._figure import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, BLACK, "#56B4E9", "#D55E00", "#8C6D31", "#44AA99")
_DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
_PANELS = (
    ("hypervolume_evaluated", "hypervolume of what was evaluated, %", "linear"),
    ("regret", "regret of the pick, points", "log"),
)


def by_evaluations(suite: str, figures: dict[str, Any], path: Path) -> None:
    """Draw what every number of evaluations bought: the best of ours, and of opponents."""
    figure, shown = new_figure(10.5, 3.8), {}
    runs = {m: figures["methods"][m] for m in METHODS if m in figures["methods"]}
    best = sorted(runs, key=lambda m: -_last(runs[m], _PANELS[0][0]))
    ours = [m for m in best if METHODS[m].is_ours]
    theirs = [m for m in best if not METHODS[m].is_ours]
    styles: dict[str, dict[str, Any]] = {
        m: {"color": c, "marker": "o", "ms": 3.5}
        for m, c in zip(ours, _COLORS, strict=False)
    } | {
        m: {"color": GREY, "linestyle": d, "marker": ".", "ms": 4}
        for m, d in zip(theirs, _DASHES, strict=False)
    }
    for ax, (measure, label, scale) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        for method, style in styles.items():
            by_budget = sorted(runs[method].items(), key=lambda x: int(x[0]))
            x = [int(budget) for budget, _ in by_budget]
            spreads = [one[measure] for _, one in by_budget]
            y, low, high = (
                np.array([s[k] for s in spreads]) for k in ("median", "least", "most")
            )
            ax.plot(x, y, label=method.replace("_", " "), linewidth=1.3, **style)
            ax.fill_between(x, low, high, color=style["color"], alpha=0.1, linewidth=0)
        ax.set_xlabel("evaluations")
        ax.set_ylabel(label)
        ax.set_yscale(scale)
        ax.spines[["top", "right"]].set_visible(False)
        shown |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        shown.values(), shown, loc="outside right upper", fontsize=7, frameon=False
    )
    figure.suptitle(suite, fontsize=10)
    _save(figure, path)


def curves(named: Iterable[dict[str, Any]], path: Path) -> None:
    """Draw one panel for each curve: how a time grows with one size, on logarithmic axes.

    Args:
        named: Each has `title`, `x_label`, `y_label` and `lines`, from a name to `x` and `y`.
        path: Where to.
    """
    panels = list(named)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.4 * columns, 2.9 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        for color, (name, line) in zip(_COLORS, panel["lines"].items(), strict=False):
            style = {"color": color, "marker": "o", "ms": 3.5, "linewidth": 1.3}
            ax.plot(line["x"], line["y"], label=name, **style)
        ax.set(title=panel["title"], xlabel=panel["x_label"], ylabel=panel["y_label"])
        ax.set(xscale="log", yscale="log")
        ax.title.set_fontsize(9)
        ax.legend(fontsize=6.5, frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    _save(figure, path)


def _last(runs: dict[str, Any], measure: str) -> float:
    """Take the median after the most evaluations."""
    return runs[max(runs, key=int)][measure]["median"]


def _save(figure: Any, path: Path) -> None:
    # Text stays text, and nothing in the file depends on the day or on chance.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
