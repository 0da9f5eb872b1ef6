"""What an evaluator is given: rules and tasks, checked and put on the devices."""

from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mapjax.evaluation._task import Task
from mapjax.task_vectors import TaskVectors, merge


def as_tasks(tasks: Any) -> tuple[Task, ...]:
    """Return the tasks, or say what else was passed."""
    if isinstance(tasks, Task):
        raise ValueError("`tasks` is one task: pass a list, `[task]`.")
    if isinstance(tasks, Mapping):
        raise ValueError(
            "`tasks` is a mapping, but tasks bring their names: pass "
            "`list(tasks.values())`."
        )
    if not isinstance(tasks, Iterable):
        raise ValueError(
            f"`tasks` is a {type(tasks).__name__}; pass a list of `mapjax.Task`."
        )
    tasks = tuple(tasks)
    if not tasks:
        raise ValueError("`tasks` is empty: pass at least one `mapjax.Task`.")
    for i, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise ValueError(
                f"`tasks[{i}]` is a {type(task).__name__}; pass a `mapjax.Task`."
            )
    names = [task.name for task in tasks]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"Task names must be unique, but {twice} come more than once.")
    return tasks


def as_rule(rule: Any, num_coefficients: int | None) -> tuple[Any, int]:
    """Return the rule as a function, and how many coefficients it takes."""
    if isinstance(rule, TaskVectors):
        count = rule.num_coefficients
        if num_coefficients not in (None, count):
            groups = f" and {len(rule.groups)} groups" if rule.groups else ""
            raise ValueError(
                f"`num_coefficients` is {num_coefficients}, but the task vectors have "
                f"{rule.num_tasks} experts{groups}: leave it out."
            )
        return jax.tree_util.Partial(merge, rule), count
    if not callable(rule):
        raise ValueError(
            f"`rule` is a {type(rule).__name__}; pass `TaskVectors` or a function from "
            "coefficients to parameters."
        )
    if num_coefficients is None:  # those of `mapjax.rules` know
        num_coefficients = getattr(rule, "num_coefficients", None)
    if num_coefficients is None or num_coefficients < 1:
        raise ValueError(
            "A merge rule that is a function needs `num_coefficients`, at least 1; got "
            f"{num_coefficients}."
        )
    return rule, num_coefficients


def check_shape(c: Any, num_coefficients: int, expert_names: tuple[str, ...]) -> None:
    """Refuse what is not `[candidates, coefficients]`."""
    if c.ndim != 2 or c.shape[1] != num_coefficients:
        grouped = len(expert_names) < num_coefficients
        raise ValueError(
            f"`coefficients` has shape {c.shape}, but must be [candidates, "
            f"{num_coefficients}]: one row per merge, one column per "
            f"{'expert and group' if grouped else 'expert'}. "
            "For a single merge pass `c[None]`."
        )


def check_task(task: Task, params: PyTree, batch_size: int) -> None:
    """Trace a task once: raise what its functions raise, and refuse what is no score.

    Args:
        task: The task.
        params: Shapes and dtypes of a merge.
        batch_size: The most examples predicted at once.
    """
    try:
        score = eqx.filter_eval_shape(Task.score, task, params, batch_size)
    except Exception as error:
        where = f"This happened in task {task.name!r} of the evaluator."
        error.add_note(where + _hint(error))
        raise
    if jax.tree.leaves(score) != [score] or score.shape != ():
        raise ValueError(
            f"The metric of task {task.name!r} must return one number for all examples, but "
            f"returned {score}. A metric that returns one value per example is "
            "`mapjax.metrics.Metric(function, per_example=True)`."
        )
    if jnp.issubdtype(score.dtype, jnp.complexfloating):
        raise ValueError(
            f"The metric of task {task.name!r} returned {score.dtype}, and complex numbers "
            "have no order: return a real one, such as their absolute value."
        )


def _hint(error: Exception) -> str:
    """Say what usually makes JAX raise an error in `predict` or in a metric."""
    name = type(error).__name__
    if name in ("TracerArrayConversionError", "TracerBoolConversionError"):
        return (
            " `predict` and metrics are compiled: write them in JAX, with `jax.numpy` for "
            "NumPy. What cannot be written so goes into a function from coefficients to "
            "scores, which drivers take in place of an evaluator."
        )
    if name == "TraceContextError":
        return (
            " A module of flax NNX cannot change while it is evaluated: call `model.eval()` "
            "before, for BatchNorm and Dropout, and leave out `nnx.jit`, as the evaluator "
            "compiles by itself."
        )
    return ""
