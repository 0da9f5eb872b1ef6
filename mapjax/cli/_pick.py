"""`mapjax pick`: one merge of a run, for a preference or a requirement."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mapjax.cli._errors import Failure, UsageError, told
from mapjax.cli._files import merge_checkpoints, print_json, read_memory, read_pairs, stamp
from mapjax.cli._rules import Rule


def pick(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    *,
    preference: tuple[str, ...] = (),
    require: tuple[str, ...] = (),
    method: Literal["weighted_sum", "tchebycheff", "knee"] | None = None,
    verified: bool = False,
    save: Path | None = None,
    dtype: str | None = None,
    memory: str = "4GiB",
    json: bool = False,
) -> None:
    """Take the merge of a run that suits a preference best, and save it if asked to.

    Exits with 1, and saves nothing, if no merge of the front is what is required.

    For example:

      mapjax pick runs/digits --preference mnist=0.6 usps=0.4

      mapjax pick runs/digits --require mnist=0.9 --save merged.safetensors

    Args:
        run: The run folder, the `output` of `mapjax front`.
        preference: Weights of tasks as task=weight; equal ones by default.
        require: Scores that must be reached as task=score, such as mnist=0.9; at most, for
            a task that is minimised.
        method: weighted_sum of the scores, the default; tchebycheff, the least worst
            weighted distance to the best scores; knee, where giving up a little of one task
            stops buying much.
        verified: Choose among measured merges instead of predicted ones.
        save: Write the merged checkpoint there, with its recipe beside it.
        dtype: What to write merged tensors in; the base's by default.
        memory: The most memory for numbers while merging, such as 4GiB.
        json: Print one JSON object.
    """
    if not run.is_dir():
        raise UsageError(f"RUN is {run}, where there is no folder.")
    weights = read_pairs("--preference", preference)
    least = read_pairs("--require", require)
    limit = read_memory(memory)
    if any(weight < 0 for weight in weights.values()):
        raise UsageError("--preference has a weight below 0.")
    from mapjax.io import RunFolder
    from mapjax.io._model_card import score

    folder = RunFolder(run)
    with told():
        solution = folder.load()
        notes = folder.notes
    for option, names in (("--preference", weights), ("--require", least)):
        unknown = [name for name in names if name not in solution.task_names]
        if unknown:
            raise UsageError(
                f"{option} names {unknown[0]!r}; the tasks are "
                f"{', '.join(solution.task_names)}."
            )
    if method == "knee" and weights:
        raise UsageError("A knee needs no preference: leave --preference or --method out.")
    with told():
        chosen = solution.pick(
            weights or None, method=method, at_least=least or None, verified=verified
        )
    c = [float(x) for x in chosen]
    found = score(solution, chosen)
    judged = (found["measured"] if verified else found["predicted"]) or []
    exact = solution.front.scores.dtype.type  # as wishes were when the merge was chosen
    missed = [
        f"{name}={wish:g}"
        for name, got, direction in zip(
            solution.task_names, judged, solution.directions, strict=False
        )
        if (wish := least.get(name)) is not None
        and (got < exact(wish) if direction == "maximize" else got > exact(wish))
    ]
    words = [*preference, *(f"require {pair}" for pair in require)]
    if save is not None and not missed:
        with told():
            paths, purpose = _checkpoints(folder, notes), " ".join(words)
            _merge(notes, paths, solution, chosen, save, limit, dtype, purpose, not json)
    report = {
        "coefficients": dict(zip(solution.coefficient_names, c, strict=True)),
        **{
            kind: None if x is None else dict(zip(solution.task_names, x, strict=True))
            for kind, x in found.items()
        },
        "met": not missed,
        "num_evaluations": solution.num_evaluations,
        "saved": str(save) if save is not None and not missed else None,
    }
    if json:
        print_json(report)
    else:
        _print(report)
    if missed:
        raise Failure(
            f"No merge of the front reaches {' and '.join(missed)}; this one misses least."
        )


def _checkpoints(folder: Any, notes: dict[str, Any]) -> dict[str, Path]:
    """Find the base and the experts, as they were when they were scored."""
    if not notes.get("base") or not notes.get("mergeable"):
        raise Failure(
            "The run does not know its merges as sums of files: it has no `base` and "
            "`experts`, or its evaluator merges in its own way. Take the coefficients and "
            "merge with mapjax.merge."
        )
    files = notes.get("files", {})
    paths = folder.find([notes["base"], *notes["experts"].values(), *files])
    for path, then in files.items():
        if stamp(paths[path]) != then:
            raise Failure(
                f"{paths[path]} was written again after the run began, whose scores are of "
                "what it was. If it holds the same numbers, run `mapjax front` again, which "
                "evaluates nothing twice; if not, with another `output`."
            )
    return paths


def _merge(
    notes: dict[str, Any],
    paths: dict[str, Path],
    solution: Any,
    chosen: Any,
    output: Path,
    memory: int,
    dtype: str | None,
    purpose: str,
    talk: bool,
) -> None:
    merge_checkpoints(
        paths[notes["base"]],
        {name: paths[path] for name, path in notes["experts"].items()},
        output,
        [float(x) for x in chosen],
        rule=Rule(notes["rule"], notes["rule_options"]),
        memory=memory,
        dtype=dtype,
        progress=None if talk else False,
        solution=solution,
        purpose=f"Chosen from a front for: {purpose}." if purpose else "",
    )


def _print(report: dict[str, Any]) -> None:
    print("coefficients")
    for name, value in report["coefficients"].items():
        print(f"  {name}  {value:.6g}")
    for kind in ("predicted", "measured"):
        if report[kind] is not None:
            print(f"{kind} scores")
            for name, value in report[kind].items():
                std = report["std"] if kind == "predicted" else None
                print(f"  {name}  {value:.4g}" + (f" ± {std[name]:.2g}" if std else ""))
    if report["saved"]:
        print(f"Saved {report['saved']}, with its recipe in {report['saved']}.md")
