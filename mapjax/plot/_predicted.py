"""What the surrogate predicts beside what was measured."""

import math

import numpy as np

from mapjax._solution import Solution
from mapjax.plot._figure import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    Figure,
    finite,
    new_figure,
    predict,
    tidy,
)


def predicted_vs_verified(solution: Solution) -> Figure:
    """Draw predicted against measured scores at every real evaluation, task by task.

    The evaluations that the surrogate was fitted to say how well it fits, those made to
    verify how well it predicts. The mean absolute error of each kind stands in the panel.

    Args:
        solution: What to draw.

    Returns:
        The figure, with one panel for each task.

    Raises:
        ValueError: If there is no surrogate.
        ImportError: If matplotlib is missing.
    """
    count = len(solution.task_names)
    columns = min(count, 4 if count > 6 else 3)
    rows = math.ceil(count / columns)
    figure = new_figure(3.0 * columns + 0.4, 3.0 * rows + 0.7)
    axes = figure.subplots(rows, columns, squeeze=False)
    measured = np.asarray(solution.samples.scores)
    predicted = predict(solution, solution.samples.coefficients)
    fitted = np.arange(len(measured)) < len(measured) - solution.num_verified
    hollow = dict(facecolor="none", edgecolor=BLUE, s=26)
    full = dict(color=ORANGE, edgecolor=BLACK, linewidth=0.6, s=34)
    kinds = [
        ("evaluated to fit", "fitted", fitted, hollow),
        ("evaluated to verify", "verified", ~fitted, full),
    ]
    for t, ax in enumerate(axes.flat):
        if t >= count:
            ax.set_visible(False)
            continue
        pairs = np.stack([predicted[:, t], measured[:, t]], axis=1)
        ends = _ends(finite(pairs))
        ax.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", zorder=1)
        notes = []
        for label, done, rows_of_kind, style in kinds:
            points = finite(pairs[rows_of_kind])
            if len(points):
                ax.scatter(*points.T, label=label, zorder=3, **style)
                error = np.abs(points[:, 0] - points[:, 1]).mean()
                notes.append(f"off by {error:.2g} in {len(points)} {done}")
        ax.set_title(solution.task_names[t], fontsize="medium")
        ax.text(
            0.98, 0.03, "\n".join(notes), transform=ax.transAxes, ha="right", fontsize=8
        )
        ax.set(xlim=ends, ylim=ends, aspect="equal")
        ax.locator_params(nbins=5)
        tidy(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("measured")
    for t in range(count):
        if t + columns >= count:
            axes.flat[t].set_xlabel("predicted")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    return figure


def _ends(pairs: np.ndarray) -> tuple[float, float]:
    """Choose the ends of both axes, a little beyond the points."""
    if not len(pairs):
        return 0.0, 1.0
    low, high = float(pairs.min()), float(pairs.max())
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin
