"""Fronts of several runs, such as one for each merge rule, in one picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mapjax import pareto
from mapjax._solution import Solution
from mapjax.evaluation import minimising_signs
from mapjax.plot._figure import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    Axes,
    axis_label,
    finite,
    new_figure,
    task_indices,
    tidy,
)

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#D55E00", "#8C6D31", BLACK)
_MARKERS = "os^DvP*X"


def fronts(
    solutions: Mapping[str, Solution],
    tasks: Sequence[str | int] | None = None,
    *,
    verified: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw the fronts of several runs over two tasks.

    Of each run the points are shown that none of its own dominates in the two tasks, joined
    by a staircase.

    Args:
        solutions: What to draw, by the name that the legend shows. All have the same tasks.
        tasks: Two tasks, by name or number; by default the first two.
        verified: Draw measured points instead of predicted ones: of `solution.verified`, or
            all samples where nothing was verified.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no solutions, they have no names, their tasks or directions
            differ, or `tasks` are not two.
        ImportError: If matplotlib is missing.

    Example:
        >>> import jax, numpy as np, mapjax as mj
        >>> def two_corners(c):
        ...     return np.stack([1 - (c**2).sum(1), 1 - ((1 - c) ** 2).sum(1)], axis=1)
        >>> solution = mj.map_front(
        ...     two_corners, num_coefficients=2, budget=8, key=jax.random.key(0)
        ... )
        >>> ax = mj.plot.fronts({"one rule": solution, "another": solution})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['one rule', 'another']
    """
    if not isinstance(solutions, Mapping):
        raise ValueError(
            f"`solutions` is a {type(solutions).__name__}: pass `{{name: solution, ...}}`, by "
            "the names that the legend shows."
        )
    if not solutions:
        raise ValueError("`solutions` is empty: pass at least one, by name.")
    first = next(iter(solutions.values()))
    for name, solution in solutions.items():
        if solution.task_names != first.task_names:
            raise ValueError(
                f"Solution {name!r} has the tasks {solution.task_names}, but the first one "
                f"has {first.task_names}. Draw runs on the same tasks."
            )
        if solution.directions != first.directions:
            raise ValueError(
                f"Solution {name!r} has the directions {solution.directions}, but the first "
                f"one has {first.directions}: one axis cannot show both."
            )
    chosen = task_indices(first, (0, 1) if tasks is None else tasks)
    if len(chosen) != 2 or chosen[0] == chosen[1]:
        raise ValueError(
            f"`tasks` is {tasks}, but fronts are compared over two different tasks of "
            f"{first.task_names}."
        )
    signs = minimising_signs(first.directions)[chosen]
    if ax is None:
        ax = new_figure(7.2, 4.6).add_subplot()
    for i, (name, solution) in enumerate(solutions.items()):
        measured = solution.verified if solution.verified is not None else solution.samples
        shown = measured if verified else solution.front
        points = finite(np.asarray(shown.scores)[:, chosen]) * signs
        if len(points):
            points = points[np.asarray(pareto.non_dominated(points))]
            points = points[np.argsort(points[:, 0])]
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        style: dict[str, Any] = dict(color=color, marker=marker, markersize=4, label=name)
        # Along a front the second score is that of the last point with a lower first one.
        x, y = (points * signs).T
        ax.plot(x, y, drawstyle="steps-post", **style)
    labels = [axis_label(first, task) for task in chosen]
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    tidy(ax)
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)
    return ax
