"""`mapjax front`: a run from a configuration, which goes on after any interruption."""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from mapjax.cli._config import Config, may_change, read_config
from mapjax.cli._errors import Failure, Stopped, UsageError, told
from mapjax.cli._files import check_paths, print_json, stamp
from mapjax.cli._rules import check_rule, edit


def front(
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")],
    *,
    json: bool = False,
) -> None:
    """Find the Pareto front of merged checkpoints, as a configuration says.

    Every evaluation is saved as it arrives: after Ctrl-C, a crash or a lost machine the same
    command goes on and ends as if nothing had happened. A higher budget goes on from what
    was evaluated, too.

    A configuration, with paths relative to its folder:

      output = "runs/digits"             # the run folder
      base = "base.safetensors"
      evaluator = "evaluate:tasks"       # evaluate.py: def tasks(task_vectors): ...
      budget = 40                        # merges to evaluate
      verify = 8
      [experts]
      mnist = "mnist.safetensors"
      usps = "usps.safetensors"

    The evaluator is called with the loaded mapjax.TaskVectors and returns an Evaluator, a
    list of mapjax.Task, or a function from coefficients [candidates, experts] to scores
    [candidates, tasks]. With num_coefficients = N it is such a function itself. Let
    transform = { name = "ties", density = 0.2 } edit the vectors, and not the evaluator.
    Vectors are in float32 at least, whatever the checkpoints: four bytes per parameter and
    expert.

    Further keys: driver ("map", "bayesian" or "nested"), seed, bounds (a pair or "simplex"),
    directions, transform, separator ("." nests the names of tensors into dicts), and the
    options of the driver, such as num_points. An unknown key is an error that lists them
    all.

    For example:

      mapjax front digits.toml

      mapjax plot runs/digits && mapjax pick runs/digits --require mnist=0.9

    Args:
        config: The configuration, a TOML file.
        json: Print one JSON object at the end.
    """
    if not config.is_file():
        raise UsageError(f"CONFIG is {config}, where there is no file.")
    with told():
        text = config.read_bytes().decode(errors="replace")
    folder = config.resolve().parent
    read = read_config(text, folder)
    check_rule(read.rule)
    if read.base is not None:
        check_paths({"`base`": read.base, **{f"`{n}`": p for n, p in read.experts.items()}})
    function = _find(read.evaluator, folder)

    import mapjax.io

    with contextlib.ExitStack() as stack:
        with told():
            run = stack.enter_context(mapjax.io.RunFolder(read.output))
        solution = _solve(read, run, function, f"mapjax front {config}")
    if json:
        print_json(_summary(read, solution))
        return
    print(solution)
    print(f"\nWritten to {_short(read.output)}: samples.jsonl, solution.npz, config.toml")
    print("Try next")
    print(f"  mapjax plot {_short(read.output)}")
    print(f"  mapjax pick {_short(read.output)} --preference {solution.task_names[0]}=1")


def _find(name: str, folder: Path) -> Any:
    """Import a function, from the folder of the configuration too."""
    module, _, path = name.partition(":")
    for place in (os.getcwd(), str(folder)):
        if place not in sys.path:
            sys.path.insert(0, place)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module itself needs
        raise UsageError(
            f"`evaluator` is {name!r}, but there is no module {error.name!r} in {folder}, in "
            "the current folder or installed."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"`evaluator` is {name!r}, but {module} has no {part!r}.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"`evaluator` is {name!r}, which is no function.")
    return found


def _solve(config: Config, run: Any, function: Any, command: str) -> Any:
    import jax

    import mapjax as mj

    key = jax.random.key(config.seed)
    with told():  # before they are read
        paths = [config.base, *config.experts.values()] if config.base else []
        files = {str(path.resolve()): stamp(path) for path in paths}
    evaluate, more, mergeable = _evaluator(config, function)
    notes = {
        "base": config.base and str(config.base.resolve()),
        "experts": {name: str(path.resolve()) for name, path in config.experts.items()},
        "rule": config.rule.name,
        "rule_options": config.rule.options,
        "mergeable": mergeable,
        "files": files,
    }
    free = (*may_change(), "files")  # an evaluator compares the numbers themselves
    with told():
        changed = run.begin(key=key, config=config.text, may_change=free, **notes)
    if changed:
        _say(f"Note: {'; '.join(changed)}: numbers may differ in their last digits.")
    options = {
        n: tuple(v) if isinstance(v, list) and n in _PAIRS else v
        for n, v in config.options.items()
    }
    driver: Any = {
        "map": mj.map_front,
        "bayesian": mj.bayesian_front,
        "nested": mj.nested_front,
    }[config.driver]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            with _told_unless_evaluated():
                solution = driver(evaluate, key=key, save_to=run.samples, **more, **options)
        except KeyboardInterrupt as error:
            raise Stopped(
                f"Stopped. Evaluations kept in {_short(run.path)}: {_kept(run.samples)}. Go "
                f"on with: {command}"
            ) from error
        with told():
            run.save(solution)
    for warning in caught:
        _say(f"Note: {warning.message}")
    return solution


@contextlib.contextmanager
def _told_unless_evaluated() -> Iterator[None]:
    """Show errors as such, but those of an evaluation whole: its author looks for where."""
    try:
        yield
    except (OSError, ValueError) as error:
        notes = getattr(error, "__notes__", ())  # JAX adds some of its own
        if any(note.startswith(_OF_EVALUATIONS) for note in notes):
            raise
        with told():
            raise


_OF_EVALUATIONS = ("Evaluating coefficients", "This happened in task")


_PAIRS = ("bounds", "link_bounds")


def _evaluator(config: Config, function: Any) -> tuple[Any, dict[str, Any], bool]:
    """Give what the driver takes, and whether files are merged as it is evaluated."""
    import mapjax as mj

    if config.num_coefficients is not None:
        return (
            function,
            {"num_coefficients": config.num_coefficients},
            config.base is not None,
        )
    vectors = _load(config)
    made = function(vectors)
    if isinstance(made, list | tuple):
        with _told_unless_evaluated():
            made = mj.Evaluator(vectors, made)
    if isinstance(made, mj.Evaluator):
        return made, {}, made.coefficient_names == vectors.names
    if not callable(made):
        raise Failure(
            f"`evaluator` {config.evaluator!r} returned a {type(made).__name__}, but must "
            "return a mapjax.Evaluator, a list of mapjax.Task, or a function of coefficients."
        )
    return made, {"num_coefficients": vectors.num_tasks}, True


def _load(config: Config) -> Any:
    import jax.numpy as jnp

    import mapjax as mj
    from mapjax.io import load

    assert config.base is not None
    with told():
        base, *experts = (
            load(path, separator=config.separator)
            for path in (config.base, *config.experts.values())
        )
        named = dict(zip(config.experts, experts, strict=True))
        # As files are merged: differences of half precision would be rounded before the sum.
        vectors = mj.TaskVectors.from_params(base, named, dtype=jnp.float32)
        return edit(vectors, config.rule)


def _kept(samples: Path) -> int:
    if not samples.exists():
        return 0
    return max(0, samples.read_bytes().count(b"\n") - 1)


def _summary(config: Config, solution: Any) -> dict[str, Any]:
    def points(front: Any) -> Any:
        if front is None:
            return None
        return {
            "coefficients": front.coefficients.tolist(),
            "scores": front.scores.tolist(),
            "std": None if getattr(front, "std", None) is None else front.std.tolist(),
        }

    from mapjax import RESULTS

    return {
        "run": str(config.output),
        "message": RESULTS[solution.result],
        "num_evaluations": solution.num_evaluations,
        "num_verified": solution.num_verified,
        "task_names": solution.task_names,
        "coefficient_names": solution.coefficient_names,
        "directions": solution.directions,
        "references": {
            name: {
                "coefficients": solution.samples.coefficients[row].tolist(),
                "scores": solution.samples.scores[row].tolist(),
            }
            for name, row in solution.references().items()
        },
        "front": points(solution.front),
        "verified": points(solution.verified),
        **{name: solution.stats.get(name) for name in ("key", "versions", "device")},
    }


def _short(path: Path) -> str:
    """Write a path from the current folder, where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
