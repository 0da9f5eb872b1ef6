"""`mapjax demo`: the front of three digit classifiers, from training to pictures."""

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import mapjax as mj
from mapjax._atomic import existing_parent
from mapjax._result import Point
from mapjax._solution import Solution
from mapjax.cli._errors import UsageError
from mapjax.cli._table import Row, print_table

NUM_VERIFIED, NUM_SHOWN = 8, 5
SCALES = np.linspace(0.1, 1.0, 10)
_SAMPLES, _PARAMETERS = "samples.jsonl", "merged.safetensors"


def demo(
    *,
    seed: int = 0,
    budget: int = 20,
    preference: tuple[float, float, float] = (1.0, 1.0, 1.0),
    output: Path = Path("mapjax-demo"),
    expert_steps: int = 600,
) -> None:
    """Find the Pareto front of three merged digit classifiers, in about half a minute.

    Trains a small network on a mixture of three kinds of digits (handwritten ones of
    MNIST, low-resolution scans, and digits drawn in FIGlet fonts), fine-tunes one expert
    on each, and looks for the best trade-offs among all their merges.

    Args:
        seed: Draws weights, batches and the search; the same seed gives the same result.
        budget: How many merges to evaluate for the fit, at least 4; 20 make a good one.
        preference: Weights of mnist5k, optdigits and figlet_digits. The merge that suits
            them best is saved.
        output: The folder for pictures, parameters and samples. Files of an earlier demo
            are replaced.
        expert_steps: Training steps of each expert; fewer are faster and rougher.
    """
    _check(seed, budget, preference, output, expert_steps)
    _check_packages()
    from mapjax.adapters import digits3

    console = Console(soft_wrap=True)
    train_key, search_key = jax.random.split(jax.random.key(seed))
    with _step(console, "Loading three kinds of digits"):
        datasets = digits3.load()
    with _step(console, "Training a base and three experts"):
        base, experts = digits3.train(datasets, key=train_key, expert_steps=expert_steps)
    task_vectors = mj.TaskVectors.from_params(base, experts)
    evaluate, test = (
        mj.Evaluator(
            task_vectors,
            [
                mj.Task(name, digits3.predict, *getattr(dataset, split))
                for name, dataset in datasets.items()
            ],
        )
        for split in ("validation", "test")
    )
    output.mkdir(parents=True, exist_ok=True)
    # Samples of an earlier demo belong to other parameters.
    (output / _SAMPLES).unlink(missing_ok=True)
    step = _step(console, f"Evaluating {budget} merges, tracing and verifying the front")
    with step, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is printed with the results
        solution = mj.map_front(
            evaluate,
            budget=budget,
            verify=NUM_VERIFIED,
            key=search_key,
            save_to=output / _SAMPLES,
        )
        chosen = np.asarray(solution.pick(preference))
    with _step(console, f"Evaluating {len(SCALES)} scales of plain task arithmetic"):
        scaled = np.outer(SCALES, np.ones(len(experts)))
        weights = np.array(preference) / np.sum(preference)
        best = scaled[np.argmax(np.asarray(evaluate(scaled)) @ weights)]
    rows = _rows(solution, evaluate, test, best, chosen)
    with _step(console, "Drawing"):
        uniform = next(row.point for row in rows if row.point.name == "uniform merge")
        _draw(solution, uniform, output)
    _save(mj.merge(task_vectors, chosen), chosen, preference, output)
    print_table(console, rows, solution)
    _say(console, solution, rows, weights, output)


def _check(
    seed: int,
    budget: int,
    preference: tuple[float, float, float],
    output: Path,
    expert_steps: int,
) -> None:
    """Refuse bad arguments before anything is trained."""
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed is {seed}, but must be from 0 to {2**31 - 1}.")
    if budget < 4:
        raise UsageError(
            f"--budget is {budget}, but the base and three experts alone take 4 evaluations. "
            "Pass at least 4; 20 make a good fit."
        )
    weights = np.array(preference)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise UsageError(
            f"--preference is {' '.join(f'{w:g}' for w in weights)}, but must be three "
            "weights that are not negative, one of them above zero, such as 1 1 2."
        )
    if expert_steps < 1:
        raise UsageError(f"--expert-steps is {expert_steps}, but must be at least 1.")
    try:
        existing_parent(output / _SAMPLES)
    except NotADirectoryError as error:
        what = f"--output is {output}, but {error.filename} is a file. Pass a folder."
        raise UsageError(what) from error
    if (output / "run.json").exists():
        raise UsageError(
            f"--output is {output}, which holds a run of `mapjax front`, whose samples the "
            "demo would replace. Pass another folder."
        )


def _check_packages() -> None:
    """Find out now, and not after the training, that something cannot be written."""
    missing = [p for p in ("matplotlib", "safetensors") if find_spec(p) is None]
    if missing:
        raise ImportError(
            f"The demo draws with matplotlib and saves with safetensors, and {missing[0]} is "
            'not installed. Install the extra: pip install "mapjax[demo]"'
        )


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    console.print(f"{what} [dim]{time.perf_counter() - begun:.1f} s[/dim]")


def _draw(solution: Solution, uniform: Point, output: Path) -> None:
    from mapjax import plot

    more = _with_sample(solution, uniform)
    pictures = {
        "front": plot.front(more).figure,
        "pairs": plot.pairs(more),
        "parallel": plot.parallel(more).figure,
        "contours": plot.contours(solution).figure,
        "predicted_vs_verified": plot.predicted_vs_verified(solution),
    }
    for name, figure in pictures.items():
        figure.savefig(output / f"{name}.png", dpi=130)


def _with_sample(solution: Solution, point: Point) -> Solution:
    """Put a measured point before the samples, whose last ones were made to verify."""
    old = solution.samples
    samples = mj.Samples(
        jnp.concatenate([jnp.asarray(point.coefficients)[None], old.coefficients]),
        jnp.concatenate([jnp.asarray(point.measured)[None], old.scores]),
    )
    return eqx.tree_at(lambda x: x.samples, solution, samples)


def _save(params: Any, chosen: np.ndarray, preference: tuple, output: Path) -> None:
    from safetensors.flax import save_file

    tensors = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    notes = {"coefficients": chosen.tolist(), "preference": list(preference)}
    # One entry: safetensors writes several in an order that changes from run to run.
    save_file(tensors, output / _PARAMETERS, metadata={"mapjax": json.dumps(notes)})


def _rows(
    solution: Solution,
    evaluate: mj.Evaluator,
    test: mj.Evaluator,
    best: np.ndarray,
    chosen: np.ndarray,
) -> list[Row]:
    """Collect what the table shows: measured on validation and test, and predicted."""
    # Where the budget went elsewhere, the uniform merge is no sample.
    table = [point for point in solution.table() if point.name != "uniform merge"]
    verified = [point for point in table if point.name.startswith("verified")]
    shown = np.linspace(0, len(verified) - 1, min(NUM_SHOWN, len(verified))).round()
    uniform = np.full(len(chosen), 1 / len(chosen))
    extra = {"uniform merge": uniform, "best single scale": best, "your preference": chosen}
    c = np.stack(list(extra.values()))
    measured, predicted = np.asarray(evaluate(c)), solution.predicted(c)
    assert predicted.std is not None  # surrogates of a driver have error bars
    columns = map(
        np.asarray,
        (c, measured, predicted.scores, predicted.std, solution.normalized(measured)),
    )
    *plain, preferred = (
        Point(name, *row) for name, *row in zip(extra, *columns, strict=True)
    )
    points = [
        *table[: len(table) - len(verified)],
        *plain,
        *(verified[int(i)] for i in shown),
        preferred,
    ]
    tested = np.asarray(test(np.stack([point.coefficients for point in points])))
    references = len(points) - len(shown) - 1
    return [
        Row(point, tested[i], show_predicted=i >= references)
        for i, point in enumerate(points)
    ]


def _say(
    console: Console,
    solution: Solution,
    rows: list[Row],
    weights: np.ndarray,
    output: Path,
) -> None:
    if solution.result != mj.RESULTS.successful:
        console.print(f"[bold]Note[/bold] {mj.RESULTS[solution.result]}")
    console.print(
        f"\nReal evaluations: {len(solution.samples) - solution.num_verified} to fit, "
        f"{solution.num_verified} to verify the front; beside them 2 to measure your "
        f"preference and the uniform merge, and {len(SCALES)} to search the best single "
        "scale."
    )
    console.print(
        "R² of the surrogate by leaving one out: "
        + ", ".join(f"{r2:.2f}" for r2 in np.asarray(solution.stats["loo_r2"]))
    )
    by_name = {row.point.name: row for row in rows}
    ahead = by_name["your preference"].test - by_name["best single scale"].test
    console.print(
        f"On images never used to choose, your preference is {100 * ahead @ weights:+.1f} "
        "points (weighted) against the best single scale."
    )
    console.print(f"\n[bold]Written to {output}/[/bold]")
    console.print(
        "  front.png pairs.png parallel.png contours.png predicted_vs_verified.png"
    )
    console.print(f"  {_PARAMETERS} (merged for your preference)  {_SAMPLES} (evaluations)")
    console.print("\n[bold]Try next[/bold]")
    console.print("  mapjax demo --preference 1 1 4    another point of the front")
    console.print("  mapjax demo --budget 40           a better fit")
    console.print("  mapjax demo --seed 1              other experts")
    console.print("  your own models: see mapjax.TaskVectors and mapjax.map_front")
