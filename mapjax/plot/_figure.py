"""What all pictures share: figures, colours, groups of points, labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mapjax._solution import Solution, surrogate_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:  # matplotlib loads with the first picture, and beartype must not look for it before
    Axes = Figure = Any

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#E69F00", "#009E73", "#B5578F", "#1A1A1A"
GREY = "#9A9A9A"
_EXPERT_MARKERS = "^v<>PXph"


class Group(NamedTuple):
    """Points that are drawn alike.

    Attributes:
        kind: "evaluated", "predicted", "verified", "base", "uniform" or "expert".
        label: What the legend says.
        scores: `[points, tasks]`, NaN included.
        color: The colour that stands for the kind.
        style: The rest of how a scatter plot draws them.
    """

    kind: str
    label: str
    scores: np.ndarray
    color: str
    style: dict[str, Any]

    def draw(self, ax: Axes, chosen: Sequence[int], scale: float = 1.0) -> None:
        """Scatter the scores on two or three tasks, leaving out what is not finite."""
        style = self.style | {"s": scale * self.style["s"], "label": self.label}
        if len(chosen) == 3:
            style["depthshade"] = False  # shading makes one colour look like another
        if self.kind == "predicted":
            style |= {"facecolor": "none", "edgecolor": self.color}
        else:
            style["color"] = self.color
        ax.scatter(*finite(self.scores[:, chosen]).T, **style)


def new_figure(width: float, height: float) -> Figure:
    """Make a figure that belongs to no window and to no list of open figures."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "mapjax.plot draws with matplotlib. Install the extra: "
            'pip install "mapjax[plot]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def groups(solution: Solution) -> list[Group]:
    """Collect what a picture of scores shows, from the back to the front."""
    samples = np.asarray(solution.samples.scores)
    found = [
        Group("evaluated", "evaluated", samples, GREY, dict(marker=".", s=22, zorder=2)),
        Group(
            "predicted",
            "front, predicted",
            np.asarray(solution.front.scores),
            BLUE,
            dict(marker="o", s=24, linewidth=1.1, zorder=3),
        ),
    ]
    if solution.verified is not None:
        scores = np.asarray(solution.verified.scores)
        style = dict(marker="o", s=34, edgecolor=BLACK, linewidth=0.6, zorder=4)
        found.append(Group("verified", "front, verified", scores, ORANGE, style))
    for kind, label, row, marker in references(solution):
        style = dict(marker=marker, s=70, edgecolor="white", linewidth=0.8, zorder=5)
        color = {"base": BLACK, "uniform": GREEN, "expert": PURPLE}[kind]
        found.append(Group(kind, label, samples[[row]], color, style))
    return found


def draw_bars(solution: Solution, chosen: Sequence[int], ax: Axes) -> None:
    """Draw bars of one standard deviation at the points of the front that have one."""
    if solution.front.std is None:
        return
    scores = np.asarray(solution.front.scores)[:, chosen]
    std = np.asarray(solution.front.std)[:, chosen]
    both = finite(np.concatenate([scores, std], axis=1))
    middle, (across, *up) = both[:, : len(chosen)].T, both[:, len(chosen) :].T
    bars: Any = ax.errorbar  # of two axes or of three, and takes the last one's first
    style = dict(fmt="none", ecolor=BLUE, alpha=0.25, linewidth=1, zorder=1)
    bars(*middle, *up[::-1], across, **style)


def references(solution: Solution) -> list[tuple[str, str, int, str]]:
    """List kind, label, row in the samples and marker of base, uniform merge, experts."""
    rows = solution.references()
    marks = [("base", "base", "base", "s"), ("uniform", "uniform merge", "uniform", "D")]
    for i, name in enumerate(solution.expert_names):
        marker = _EXPERT_MARKERS[i % len(_EXPERT_MARKERS)]
        label = f"expert {name}"
        marks.append(("expert", label, label if label in rows else name, marker))
    return [
        (kind, label, rows[name], marker)
        for kind, label, name, marker in marks
        if name in rows
    ]


def predict(solution: Solution, coefficients: Any) -> np.ndarray:
    """Predict scores where there is a surrogate to do it."""
    return np.asarray(surrogate_of(solution)(coefficients))


def finite(points: np.ndarray) -> np.ndarray:
    """Leave out the rows that hold a NaN or an infinity."""
    return points[np.isfinite(points).all(axis=1)]


def task_indices(solution: Solution, tasks: Sequence[str | int]) -> list[int]:
    """Turn names or numbers of tasks into numbers."""
    return [_index(task, solution.task_names, "task") for task in tasks]


def coefficient_indices(solution: Solution, coefficients: Sequence[str | int]) -> list[int]:
    """Turn names or numbers of coefficients into numbers."""
    return [_index(c, solution.coefficient_names, "coefficient") for c in coefficients]


def axis_label(solution: Solution, task: int, *, arrow: bool = True) -> str:
    """Name a task and say which way is better, by default with an arrow along the axis."""
    higher = solution.directions[task] == "maximize"
    words = "higher is better" if higher else "lower is better"
    if arrow:
        words = f"{words} →" if higher else f"← {words}"
    return f"{solution.task_names[task]}  ({words})"


def tidy(ax: Axes) -> None:
    """Take away what is not data and lay a faint grid behind."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#E8E8E8", linewidth=0.7)
    ax.set_axisbelow(True)


def _index(given: str | int, names: tuple[str, ...], kind: str) -> int:
    if isinstance(given, str):
        if given not in names:
            raise ValueError(f"There is no {kind} {given!r}; the {kind}s are {names}.")
        return names.index(given)
    if not 0 <= given < len(names):
        raise ValueError(
            f"There is no {kind} {given}: the {len(names)} {kind}s {names} are numbered "
            f"from 0 to {len(names) - 1}."
        )
    return given
