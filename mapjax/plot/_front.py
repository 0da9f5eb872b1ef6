"""Fronts in two and three dimensions."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mapjax import pareto
from mapjax._solution import Solution
from mapjax.evaluation import minimising_signs
from mapjax.plot._figure import (
    BLUE,
    GREY,
    Axes,
    axis_label,
    draw_bars,
    finite,
    groups,
    new_figure,
    task_indices,
    tidy,
)

_NUM_DRAWS = 200


def front(
    solution: Solution, tasks: Sequence[str | int] | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the front over two or three tasks.

    Shows the front as predicted, the front as verified, every real evaluation, the base,
    the experts and the uniform merge. A thin line joins what was measured to verify with
    what had been predicted there. With two tasks, bars of one standard deviation are
    drawn where the front has them.

    Args:
        solution: What to draw.
        tasks: Two or three tasks, by name or number; by default all, if there are no more.
        ax: Axes to draw on (made with `projection="3d"` for three tasks). By default those
            of a new figure.

    Returns:
        The axes; `ax.figure.savefig("front.png")` saves the picture.

    Raises:
        ValueError: If there are not two or three tasks, or one is unknown.
        ImportError: If matplotlib is missing.
    """
    names = solution.task_names
    chosen = task_indices(solution, range(len(names)) if tasks is None else tasks)
    if len(set(chosen)) != len(chosen) or len(chosen) not in (2, 3):
        raise ValueError(
            f"A front is drawn over two or three different tasks, but "
            f"{f'there are {len(chosen)}' if tasks is None else f'`tasks` is {tasks}'}. "
            f"Choose from {names} with `tasks=`, or use `mapjax.plot.pairs` or "
            "`mapjax.plot.parallel`, which show any number."
        )
    flat = len(chosen) == 2
    ax = _axes(ax, flat)
    _draw_misses(solution, chosen, ax)
    for group in groups(solution):
        group.draw(ax, chosen)
    labels = [axis_label(solution, task, arrow=flat) for task in chosen]
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    if flat:
        if not _draw_band(solution, chosen, ax):
            draw_bars(solution, chosen, ax)
        tidy(ax)
        ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)
    else:
        draw_bars(solution, chosen, ax)
        ax.locator_params(nbins=5)
        _turn(solution, chosen, ax, labels[2])
        ax.legend(loc="center left", bbox_to_anchor=(1.12, 0.5), frameon=False)
    return ax


def _axes(ax: Axes | None, flat: bool) -> Axes:
    """Make axes, or check that those given have the right dimension."""
    if ax is None and flat:
        return new_figure(7.2, 4.6).add_subplot()
    if ax is None:
        figure = new_figure(8.4, 5.2)
        # Layout engines do not know where labels in space end up.
        figure.set_layout_engine("none")
        return figure.add_axes((-0.06, 0.02, 0.84, 0.98), projection="3d")
    if (ax.name == "3d") == flat:
        needed = "two tasks need" if flat else "three tasks need"
        how = "add_subplot()" if flat else 'add_subplot(projection="3d")'
        raise ValueError(
            f"`ax` is {'three' if flat else 'two'}-dimensional, but {needed} axes made by "
            f"`figure.{how}`."
        )
    return ax


def _draw_misses(solution: Solution, chosen: Sequence[int], ax: Axes) -> None:
    """Join predictions to measurements at the points that were evaluated to verify."""
    if not solution.num_verified or solution.surrogate is None:
        return
    coefficients = solution.samples.coefficients[-solution.num_verified :]
    measured = np.asarray(solution.samples.scores)[-solution.num_verified :, chosen]
    predicted = np.asarray(solution.surrogate(coefficients))[:, chosen]
    both = finite(np.concatenate([predicted, measured], axis=1))
    for row in both:
        ax.plot(*row.reshape(2, -1).T, color=GREY, linewidth=0.8, zorder=1)


def _turn(solution: Solution, chosen: Sequence[int], ax: Any, label: str) -> None:
    """Name the third axis and look at the front from the side of the better scores."""
    ax.set_zlabel(label)
    x, y = (1 if solution.directions[task] == "maximize" else -1 for task in chosen[:2])
    ax.view_init(elev=22, azim=np.degrees(np.arctan2(y, x)) - 10)
    ax.computed_zorder = False  # references stay visible in front of what hides them


def _draw_band(solution: Solution, chosen: Sequence[int], ax: Axes) -> bool:
    """Shade where the front is, with 90 % probability, if there is something to draw from.

    A front of more tasks than two is no line in the plane of two of them.
    """
    errors = getattr(solution.surrogate, "errors", None)
    if errors is None or len(solution.task_names) != 2 or not len(solution.front):
        return False
    signs = minimising_signs(solution.directions)[list(chosen)]
    scores = np.asarray(solution.front.scores)[:, chosen] * signs
    # Any key: the picture of a solution is always the same.
    drawn = errors(
        solution.front.coefficients, _NUM_DRAWS, key=jax.random.key(0), noise=False
    )
    draws = scores + np.asarray(drawn)[..., chosen] * signs
    low, high = np.nanmin(draws[..., 0]), np.nanmax(draws[..., 0])
    if not np.isfinite([low, high]).all():
        return False
    levels = np.linspace(low, high, 400)
    band = np.stack(pareto.attainment_band(draws, levels, probability=0.9))
    shown = np.isfinite(band[0])
    # Where some draws have no point yet, the band is open: up to the worst of the front.
    band = np.minimum(band, np.nanmax(scores[:, 1]))[:, shown]
    ax.fill_between(
        levels[shown] * signs[0],
        *(band * signs[1]),
        color=BLUE,
        alpha=0.15,
        linewidth=0,
        zorder=1,
        label="front, 90 % sure",
    )
    return True
