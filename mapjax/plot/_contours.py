"""The surrogate of one task over two coefficients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mapjax._solution import Solution
from mapjax._types import ArrayLike
from mapjax.plot._figure import (
    BLACK,
    Axes,
    axis_label,
    coefficient_indices,
    new_figure,
    predict,
    references,
    task_indices,
)


def contours(
    solution: Solution,
    task: str | int = 0,
    coefficients: Sequence[str | int] = (0, 1),
    *,
    held: float | Sequence[float] | ArrayLike = 0.0,
    num_points: int = 60,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predicted score of one task over two coefficients.

    Spans the sampled box. Real evaluations lie on top, in the colour of the measured
    score: one that stands out from its surroundings was predicted badly. Evaluations
    whose other coefficients are not those held are small. Where all samples sum to one, as
    after a search with `bounds="simplex"`, the others share what is left of one evenly.

    Args:
        solution: What to draw.
        task: The task, by name or number.
        coefficients: Two coefficients, by name or number.
        held: The value of the other coefficients, one for all of them or
            `[coefficients]`, of which the two drawn are not read; none is read on the
            simplex.
        num_points: How many values of each coefficient to predict at.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: If a task or coefficient is unknown, there are not two different
            coefficients, `held` has another length, `num_points` is below 2, there is no
            surrogate, or the samples are mixtures of two experts or of groups.
        ImportError: If matplotlib is missing.
    """
    names = solution.coefficient_names
    (t,), chosen = (
        task_indices(solution, [task]),
        coefficient_indices(solution, coefficients),
    )
    if len(chosen) != 2 or chosen[0] == chosen[1]:
        raise ValueError(
            f"`coefficients` is {coefficients}; pass two different ones of {names}."
        )
    others = np.asarray(held, float)
    if others.shape not in ((), (len(names),)):
        raise ValueError(
            f"`held` has shape {others.shape}; pass one number, or one for each of the "
            f"{len(names)} coefficients {names}."
        )
    if num_points < 2:
        raise ValueError(f"`num_points` is {num_points}, but must be at least 2.")
    if ax is None:
        ax = new_figure(6.2, 4.8).add_subplot()
    from matplotlib.ticker import MaxNLocator

    sampled = np.asarray(solution.samples.coefficients)
    measured = np.asarray(solution.samples.scores)[:, t]
    mixtures = _are_mixtures(solution)
    grid = _grid(sampled, chosen, others, num_points)
    if mixtures:
        grid = _complete(grid, chosen)
    outside = np.asarray(np.isnan(grid).any(axis=-1))
    points = np.where(outside[..., None], sampled[0], grid).reshape(-1, len(names))
    image = predict(solution, points)[:, t].reshape(grid.shape[:2])
    image = np.ma.masked_array(image, outside)
    seen = np.concatenate([image.compressed(), measured[np.isfinite(measured)]])
    levels = MaxNLocator(12).tick_values(float(seen.min()), float(seen.max()))
    x, y = grid[..., chosen[0]], grid[..., chosen[1]]
    filled = ax.contourf(x, y, image, levels, cmap="viridis")
    ax.contour(x, y, image, levels, colors="white", linewidths=0.4, alpha=0.6)
    _draw_samples(solution, t, chosen, None if mixtures else others, filled.norm, ax)
    bar = ax.figure.colorbar(filled, ax=ax)
    bar.set_label(axis_label(solution, t, arrow=False))
    ax.set_xlabel(f"coefficient of {names[chosen[0]]}")
    ax.set_ylabel(f"coefficient of {names[chosen[1]]}")
    return ax


def _draw_samples(
    solution: Solution,
    task: int,
    chosen: Sequence[int],
    others: np.ndarray | None,
    norm: Any,
    ax: Axes,
) -> None:
    """Lay the evaluations on top: large on the plane, small where they project to it.

    Without `others`, these share what is left of one.
    """
    sampled = np.asarray(solution.samples.coefficients)
    measured = np.asarray(solution.samples.scores)[:, task]
    known = np.isfinite(measured)
    rest = [i for i in range(sampled.shape[1]) if i not in chosen]
    if others is None:
        values = _complete(sampled, chosen)[:, rest]
    else:
        values = np.broadcast_to(others, sampled.shape)[:, rest]
    inside = np.all(np.isclose(sampled[:, rest], values, atol=1e-5), axis=1)
    style = dict(norm=norm, cmap="viridis", edgecolor="white", zorder=3, clip_on=False)
    for rows, size in [(known & ~inside, 14), (known & inside, 50)]:
        ax.scatter(*sampled[rows][:, chosen].T, c=measured[rows], s=size, **style)
    for _, label, row, _ in references(solution):
        if known[row] and inside[row]:
            _name(ax, label, sampled[row, chosen])
    if rest:
        title = "others share what is left of one"
        if others is not None:
            shown = values[0, :1] if np.all(values[0] == values[0, 0]) else values[0]
            title = "others held at " + ", ".join(f"{value:.3g}" for value in shown)
        small = "; small points: held elsewhere" if (known & ~inside).any() else ""
        ax.set_title(title + small, fontsize="medium")


def _are_mixtures(solution: Solution) -> bool:
    """Tell whether all samples sum to one, or refuse what no plane shows."""
    sampled = np.asarray(solution.samples.coefficients)
    n = len(solution.expert_names)
    sums = sampled.reshape(len(sampled), n, -1).sum(axis=1)
    if not np.allclose(sums, 1, atol=1e-4):
        return False
    if n == 2 or sums.shape[1] > 1:
        what = "two experts lie on a line" if n == 2 else "groups have several sums"
        raise ValueError(
            f"The samples are mixtures, and those of {what}, which no plane of two "
            "coefficients shows. Draw `mapjax.plot.pairs` or `parallel`."
        )
    return True


def _complete(points: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Let the other coefficients share what is left of one; NaN if nothing is."""
    left = 1 - points[..., chosen].sum(axis=-1, keepdims=True)
    share = np.where(left >= -1e-6, np.maximum(left, 0), np.nan)
    full = np.repeat(share / (points.shape[-1] - 2), points.shape[-1], axis=-1)
    full[..., chosen] = points[..., chosen]
    return full.astype(points.dtype)


def _name(ax: Axes, label: str, point: np.ndarray) -> None:
    """Write a name beside a point, towards the middle of the picture."""
    from matplotlib.patheffects import withStroke

    left, low = point < np.mean([ax.get_xlim(), ax.get_ylim()], axis=1)
    ax.annotate(
        label,
        (point[0], point[1]),
        (8 if left else -8, 7 if low else -7),
        textcoords="offset points",
        ha="left" if left else "right",
        va="bottom" if low else "top",
        color="white",
        path_effects=[withStroke(linewidth=2, foreground=BLACK)],
        zorder=4,
    )


def _grid(
    sampled: np.ndarray, chosen: Sequence[int], others: np.ndarray, num_points: int
) -> Float[np.ndarray, "num_points num_points coefficients"]:
    """Span the sampled range of two coefficients and hold the others."""
    grid = np.empty((num_points, num_points, sampled.shape[1]), sampled.dtype)
    grid[...] = others
    axes = [np.linspace(*_range(sampled[:, i]), num_points) for i in chosen]
    grid[..., chosen[0]], grid[..., chosen[1]] = np.meshgrid(*axes)
    return grid


def _range(column: np.ndarray) -> tuple[float, float]:
    low, high = float(column.min()), float(column.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)
