"""Parallel coordinates, for any number of tasks."""

import numpy as np

from mapjax._solution import Solution
from mapjax.plot._figure import BLUE, GREY, Axes, finite, groups, new_figure

_LINES = {
    "predicted": dict(linewidth=0.9, alpha=0.35),
    "verified": dict(linewidth=0.9, alpha=0.9),
    "base": dict(linewidth=1.6, linestyle="--"),
    "uniform": dict(linewidth=1.6, linestyle="--"),
    "expert": dict(linestyle="none"),
}


def parallel(solution: Solution, *, ax: Axes | None = None) -> Axes:
    """Draw every point as a line over the tasks, better scores higher up.

    Each task has an axis of its own, from the worst to the best score drawn, whose values
    stand at its ends; the axis of a task that is minimised is turned over. Shades reach one
    standard deviation up and down from predicted scores.

    Args:
        solution: What to draw.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If there are fewer than two tasks, or no finite scores.
        ImportError: If matplotlib is missing.
    """
    names = solution.task_names
    if len(names) < 2:
        raise ValueError(f"Parallel coordinates need two tasks or more; there is {names}.")
    if ax is None:
        ax = new_figure(3.4 + 1.3 * len(names), 4.6).add_subplot()
    shown = [
        group._replace(scores=finite(group.scores))
        for group in groups(solution)
        if group.kind in _LINES
    ]
    everything = np.concatenate([group.scores for group in shown])
    if not len(everything):
        raise ValueError("There is nothing to draw: the solution has no finite score.")
    higher = np.array([direction == "maximize" for direction in solution.directions])
    low, high = everything.min(axis=0), everything.max(axis=0)
    worst, best = np.where(higher, low, high), np.where(higher, high, low)
    span = np.where(best == worst, 1.0, best - worst)  # a constant task lies at the bottom
    places = np.arange(len(names))
    for group in shown:
        line = _LINES[group.kind] | {"color": group.color, "zorder": group.style["zorder"]}
        if "alpha" not in line:
            line |= {"marker": group.style["marker"], "markeredgecolor": "white"}
        drawn = ax.plot(places, ((group.scores - worst) / span).T, markersize=8, **line)
        for first in drawn[:1]:
            first.set_label(group.label)
    if solution.front.std is not None:
        std = np.asarray(solution.front.std)
        both = finite(np.concatenate([np.asarray(solution.front.scores), std], axis=1))
        scores, std = np.split(both, 2, axis=1)
        ends = ((end - worst) / span for end in (scores - std, scores + std))
        everywhere = np.broadcast_to(places, scores.shape)
        ax.vlines(everywhere, *ends, color=BLUE, alpha=0.08, linewidth=5, zorder=1)
    ax.set_xticks(places, names)
    ax.set_yticks([])
    for place, (bottom, top) in enumerate(zip(worst, best, strict=True)):
        ax.axvline(place, color=GREY, linewidth=0.8, zorder=1)
        ax.text(place, 1.03, f"{top:.3g}", ha="center", va="bottom")
        ax.text(place, -0.03, f"{bottom:.3g}", ha="center", va="top")
    ax.set_ylim(-0.1, 1.1)
    ax.set_xlim(-0.3, len(names) - 0.7)
    ax.set_ylabel("better →")
    ax.spines[["top", "right", "bottom", "left"]].set_visible(False)
    ax.tick_params(bottom=False)
    legend = ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)
    for handle in legend.get_lines():
        handle.set_alpha(1.0)
    return ax
