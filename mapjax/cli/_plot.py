"""`mapjax plot`: all pictures of a run that make sense."""

import itertools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mapjax.cli._errors import UsageError, told
from mapjax.cli._files import print_json

_MOST_CONTOURS = 6


def plot(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    *,
    output: Path | None = None,
    format: Literal["png", "svg", "pdf"] = "png",
    dpi: int = 130,
    json: bool = False,
) -> None:
    """Draw a run: its front, parallel coordinates, contours, predicted against measured.

    For example:

      mapjax plot runs/digits

      mapjax plot runs/digits --format pdf --output figures

    Args:
        run: The run folder, the `output` of `mapjax front`.
        output: The folder for the pictures; by default `pictures` in the run folder.
        format: Of the files.
        dpi: Dots per inch of a png.
        json: Print one JSON object.
    """
    if not run.is_dir():
        raise UsageError(f"RUN is {run}, where there is no folder.")
    if dpi < 1:
        raise UsageError(f"--dpi is {dpi}, but must be at least 1.")
    from mapjax.io import RunFolder

    folder = RunFolder(run)
    with told():
        solution = folder.load()
        where = folder.pictures if output is None else output
        where.mkdir(parents=True, exist_ok=True)
        files, missing = [], {}
        for name, draw in _pictures(solution).items():
            try:
                figure = draw()
            except ValueError as error:  # there is nothing to draw
                missing[name] = str(error)
                continue
            path = where / f"{name}.{format}"
            figure.savefig(path, dpi=dpi)
            files.append(str(path))
    if json:
        print_json({"files": files, "left_out": missing})
        return
    for path in files:
        print(path)
    for name, why in missing.items():
        print(f"left out: {name} ({why})")


def _pictures(solution: Any) -> dict[str, Any]:
    from mapjax import plot

    pictures: dict[str, Any] = {
        "pairs": lambda: plot.pairs(solution),
        "parallel": lambda: plot.parallel(solution).figure,
    }
    if len(solution.task_names) in (2, 3):
        pictures["front"] = lambda: plot.front(solution).figure
    if solution.surrogate is not None:
        pictures["predicted_vs_verified"] = lambda: plot.predicted_vs_verified(solution)
        if len(solution.coefficient_names) > 1:
            for i, task in enumerate(solution.task_names[:_MOST_CONTOURS]):
                name = _free("contours_" + re.sub(r"[^\w-]+", "_", task), pictures)
                pictures[name] = lambda i=i: plot.contours(solution, i).figure
    return pictures


def _free(name: str, taken: Collection[str]) -> str:
    """Number a name of a file that another task has already."""
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n not in taken)
