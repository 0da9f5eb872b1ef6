"""The model card: how a merged checkpoint was made, in Markdown beside it."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mapjax._atomic import new_file
from mapjax._solution import Solution
from mapjax.io._plan import MergePlan

_MARK = "A merge made with [mapjax]"


def card_path(output: str | Path) -> Path:
    """Say where the card of a checkpoint goes.

    Raises:
        ValueError: If there is a file that is no card.
    """
    path = Path(f"{Path(output)}.md")
    if path.is_symlink() or path.exists():
        start = path.read_bytes()[:4096] if path.is_file() else b""
        if _MARK.encode() not in start:
            raise ValueError(
                f"The recipe of {output} would go to {path}, which is something else: move "
                "that, or pass another path."
            )
    return path


def save_model_card(
    output: str | Path,
    *,
    base: str | Path,
    experts: Mapping[str, str | Path],
    coefficients: Any,
    rule: str = "linear",
    plan: MergePlan | None = None,
    solution: Solution | None = None,
    purpose: str = "",
) -> Path:
    """Write down the recipe of a merged checkpoint beside it.

    Args:
        output: The merged checkpoint; the card is called like it, and `.md`.
        base: The pretrained parameters.
        experts: Those of the fine-tuned models, by name.
        coefficients: One number per expert.
        rule: What edited the task vectors.
        plan: What `merge_files` returned.
        solution: Where the coefficients come from: the card then has predicted and measured
            scores, of the base and the experts too.
        purpose: A sentence on why these coefficients.

    Returns:
        The path of the card.

    Raises:
        ValueError: If a file of that name is no such card.
        OSError: If it cannot be written.
    """
    path, c = card_path(output), np.asarray(coefficients, float)
    lines = [
        f"# {Path(output).name}",
        "",
        f"{_MARK}(https://arxiv.org/abs/2406.07529): the base plus the "
        "sum of its experts' task vectors, each times its coefficient.",
        *([purpose] if purpose else []),
        "",
        "## Recipe",
        "",
        *_table(
            ["part", "file", "coefficient"],
            [
                ["base", str(base), ""],
                *(
                    [name, str(path), f"{x:.6g}"]
                    for (name, path), x in zip(experts.items(), c, strict=True)
                ),
            ],
        ),
        "",
        f"Rule: {rule}. Coefficients in full: `{c.tolist()}`.",
    ]
    if plan is not None:
        kept = len(plan.left_alone)
        lines += ["", f"Tensors merged: {len(plan.merged)}, taken from the base: {kept}."]
    if solution is not None:
        lines += ["", *_scores(solution, c)]
    names = ("mapjax", "jax", "numpy")
    lines += ["", "Versions: " + ", ".join(f"{n} {version(n)}" for n in names) + "."]
    with new_file(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return path


def _scores(solution: Solution, c: np.ndarray) -> list[str]:
    rows = []
    samples = np.asarray(solution.samples.scores)
    for name, row in solution.references().items():
        kind = "" if name in ("base", "uniform") else "expert "
        rows.append([f"{kind}{name}, measured", *_numbers(samples[row], solution)])
    found = score(solution, c)
    for kind in ("predicted", "measured"):
        if found[kind] is not None:
            cells = _numbers(np.array(found[kind]), solution)
            if kind == "predicted" and found["std"] is not None:
                spread = [f" ± {s:.2g}" for s in found["std"]]
                cells = [
                    f"{x}{s}"
                    for x, s in zip(cells, [*spread, *[""] * len(spread)], strict=True)
                ]
            rows.append([f"this merge, {kind}", *cells])
    head = [*solution.task_names, *(f"{name} of expert" for name in solution.task_names)]
    arrows = ", ".join(
        f"{name} is to {direction}"
        for name, direction in zip(solution.task_names, solution.directions, strict=True)
    )
    stats = solution.stats
    versions = ", ".join(f"{n} {v}" for n, v in stats.get("versions", {}).items())
    return [
        "## Scores",
        "",
        *_table(["merge", *head], rows),
        "",
        f"{arrows[:1].upper()}{arrows[1:]}. Shares are of the score of the task's own "
        f"expert. Real evaluations: {solution.num_evaluations}, of which "
        f"{solution.num_verified} to verify. Key: {stats.get('key', 'unknown')}, device: "
        f"{stats.get('device', 'unknown')}, search made with {versions or 'unknown'}.",
    ]


def score(solution: Solution, coefficients: Any) -> dict[str, list[float] | None]:
    """Say what is predicted of a merge, with standard deviations, and what was measured."""
    c = np.asarray(coefficients)
    predicted = std = measured = None
    front = solution.front
    on_front = np.flatnonzero((np.asarray(front.coefficients) == c).all(axis=1))
    if solution.surrogate is not None and not len(on_front):
        front, on_front = solution.predicted(c), np.array([0])
    if len(on_front):
        predicted = np.asarray(front.scores)[on_front[0]].tolist()
        if front.std is not None:
            std = np.asarray(front.std)[on_front[0]].tolist()
    sampled = np.asarray(solution.samples.coefficients)
    same = np.flatnonzero(np.isclose(sampled, c, rtol=0, atol=1e-6).all(axis=1))
    if len(same):
        measured = np.asarray(solution.samples.scores)[same[0]].tolist()
    return {"predicted": predicted, "std": std, "measured": measured}


def _numbers(scores: np.ndarray, solution: Solution) -> list[str]:
    shares = np.asarray(solution.normalized(scores))
    return [*(f"{x:.4g}" for x in scores), *(f"{100 * x:.1f} %" for x in shares)]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
