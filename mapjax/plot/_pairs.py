"""A matrix of fronts over every pair of tasks."""

from mapjax._solution import Solution
from mapjax.plot._figure import Figure, axis_label, draw_bars, groups, new_figure, tidy


def pairs(solution: Solution) -> Figure:
    """Draw the front over every pair of tasks.

    Points that no other dominates in all tasks may look dominated in a pair. Bars are of one
    standard deviation, where the front has them.

    Args:
        solution: What to draw.

    Returns:
        The figure, with one row and one column fewer than there are tasks.

    Raises:
        ValueError: If there are fewer than two tasks.
        ImportError: If matplotlib is missing.
    """
    count = len(solution.task_names) - 1
    if count < 1:
        raise ValueError(f"Pairs need two tasks or more; there is {solution.task_names}.")
    shown = groups(solution)
    panel = 2.2 if count < 4 else 1.7
    # From three rows on, the legend has room above the diagonal.
    figure = new_figure(panel * count + (2.4 if count < 3 else 0.5), panel * count + 0.5)
    axes = figure.subplots(count, count, sharex="col", sharey="row", squeeze=False)
    for i in range(count):
        for j in range(count):
            ax = axes[i, j]
            if j > i:
                ax.set_visible(False)
                continue
            for group in shown:
                group.draw(ax, (j, i + 1), scale=1.0 if count < 3 else 0.5)
            draw_bars(solution, (j, i + 1), ax)
            tidy(ax)
            ax.locator_params(nbins=4)
            if i == count - 1:
                ax.set_xlabel(axis_label(solution, j).replace("  (", "\n("))
            if j == 0:
                ax.set_ylabel(axis_label(solution, i + 1).replace("  (", "\n("))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    loc = "outside right upper" if count < 3 else "upper right"
    figure.legend(handles, labels, loc=loc, frameon=False)
    return figure
