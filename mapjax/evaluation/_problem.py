"""The problem a driver solves: its sizes, names, directions and links."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mapjax._checks import check_choice, check_count
from mapjax._types import DIRECTIONS, Direction
from mapjax.evaluation._evaluator import Evaluator
from mapjax.surrogate import check_bounds, check_ridge


class Problem(NamedTuple):
    """What is optimised, read off an `Evaluator` or taken from a driver's arguments.

    For a function the number of tasks may be known only with its first scores: until
    `with_tasks` is called, `task_names` is then None and the rest may stand for all
    tasks at once.

    Attributes:
        evaluate: From `[candidates, coefficients]` to scores `[candidates, tasks]`.
        coefficient_names: One per coefficient.
        expert_names: One per expert; each has as many coefficients, side by side.
        task_names: One per task.
        directions: One per task.
        link: The surrogate's link of each task.
        link_bounds: The lowest and the highest possible score, each a number or one per
            task, infinite without a bound; None for the link's own.
        num_examples: The examples behind each task's score, or None if unknown.
        bounds: What is searched unless a driver is told otherwise: lower and upper end, or
            "simplex".
        design: Where to sample at first unless a driver is told otherwise; None for what
            is usual.
    """

    evaluate: Callable[..., Any]
    coefficient_names: tuple[str, ...]
    expert_names: tuple[str, ...]
    task_names: tuple[str, ...] | None
    directions: Any
    link: Any
    link_bounds: Any
    num_examples: tuple[int, ...] | None
    bounds: Any = (0.0, 1.0)
    design: str | None = None

    @property
    def num_coefficients(self) -> int:
        """How many columns candidates have."""
        return len(self.coefficient_names)

    @property
    def num_experts(self) -> int:
        """How many experts there are: fewer than coefficients, where these have groups."""
        return len(self.expert_names)

    @property
    def signs(self) -> np.ndarray:
        """-1 for a task to maximise, 1 for one to minimise: the search minimises."""
        return minimising_signs(self.directions)

    def with_tasks(self, task_names: tuple[str, ...]) -> "Problem":
        """Give every task its own direction and link.

        Raises:
            ValueError: If there are fewer than two tasks, or an argument has another
                number of entries.
        """
        count = len(task_names)
        if count < 2:
            raise ValueError(
                f"There is {count} task {task_names}, but a front trades at least two against "
                "each other. Add a task, or maximise the one score directly."
            )
        each = {
            "directions": _for_each(self.directions, count),
            "link": _for_each(self.link, count),
        }
        ends = [("link_bounds", end) for end in _arrays(self.link_bounds)]
        for name, value in [*each.items(), *ends]:
            if len(value) != count:
                raise ValueError(
                    f"`{name}` has {len(value)} entries for {count} tasks {task_names}: pass "
                    "one for each."
                )
        _check_link_bounds(each["link"], self.link_bounds)
        return self._replace(task_names=task_names, **each)


def describe_problem(
    evaluate: Any,
    *,
    num_coefficients: int | None = None,
    directions: str | Sequence[str] | None = None,
    task_names: Sequence[str] | None = None,
    link: str | Sequence[str] | None = None,
    link_bounds: tuple[Any, Any] | None = None,
    ridge: Any = None,
) -> Problem:
    """Read a problem off an `Evaluator`, or off the arguments for a function.

    Checks also what a fit will be given, so that a wrong option costs no evaluation.

    Raises:
        ValueError: If something is missing, unknown, or contradicts the evaluator.
    """
    check_ridge(ridge)
    _check_names(task_names)
    _check_ends(link_bounds)
    _check_choices("directions", directions, DIRECTIONS)
    _check_choices("link", link, ("identity", "sigmoid", "softplus"))
    if isinstance(evaluate, Evaluator):
        given = {
            "num_coefficients": num_coefficients,
            "directions": _for_each(directions, len(evaluate.tasks)),
            "task_names": None if task_names is None else tuple(task_names),
        }
        for name, value in given.items():
            if value is not None and value != getattr(evaluate, name):
                raise ValueError(
                    f"`{name}` is {value!r}, but the evaluator says "
                    f"{getattr(evaluate, name)!r}: leave it out, or change the evaluator."
                )
        limits = [task.metric.bounds for task in evaluate.tasks]
        problem = Problem(
            evaluate=evaluate,
            coefficient_names=evaluate.coefficient_names,
            expert_names=evaluate.expert_names,
            task_names=evaluate.task_names,
            directions=evaluate.directions,
            link=link or tuple(_link_for(b) for b in limits),
            link_bounds=_ends(limits) if link_bounds is None else tuple(link_bounds),
            num_examples=tuple(task.num_examples for task in evaluate.tasks),
            bounds=evaluate.bounds,
            design=evaluate.design,
        )
        return problem.with_tasks(evaluate.task_names)
    if not callable(evaluate):
        raise ValueError(
            f"`evaluate` is a {type(evaluate).__name__}; pass a `mapjax.Evaluator` or a "
            "function from coefficients to scores."
        )
    if num_coefficients is None:
        raise ValueError("`num_coefficients` is None, but must be said for a function.")
    check_count("num_coefficients", num_coefficients, 1)
    names = tuple(f"c{i}" for i in range(num_coefficients))
    problem = Problem(
        evaluate=evaluate,
        coefficient_names=names,
        expert_names=names,
        task_names=None,
        directions=directions or "maximize",
        link=link or "identity",
        link_bounds=None if link_bounds is None else tuple(link_bounds),
        num_examples=None,
    )
    _check_several(task_names=task_names, directions=directions, link=link)
    counts = [
        len(x)
        for x in (directions, link, *_arrays(link_bounds))
        if x is not None and not isinstance(x, str)
    ]
    if not counts:
        _check_link_bounds((problem.link,), link_bounds)
    if task_names is None and counts:
        task_names = [f"task_{t}" for t in range(counts[0])]
    return problem if task_names is None else problem.with_tasks(tuple(task_names))


def minimising_signs(directions: Sequence[Direction]) -> np.ndarray:
    """Give -1 for a task to maximise and 1 for one to minimise: the search minimises."""
    signs = [1.0 if direction == "minimize" else -1.0 for direction in directions]
    return np.array(signs, jnp.zeros(()).dtype)


def _for_each(value: Any, count: int) -> Any:
    if value is None:
        return None
    return (value,) * count if isinstance(value, str) else tuple(value)


def _check_choices(name: str, value: str | Sequence[str] | None, choices: tuple) -> None:
    for one in [value] if isinstance(value, str) else value or ():
        check_choice(name, one, choices)


def _check_names(names: Any) -> None:
    """Refuse names of tasks that are no list of different strings."""
    if names is None:
        return
    if isinstance(names, str):
        raise ValueError(
            f"`task_names` is {names!r}, one string: pass a list with one name per task."
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"`task_names` must be unique, but {twice} come more than once.")


def _check_several(**given: Any) -> None:
    """Refuse lists for fewer than the two tasks that a function must score."""
    for name, value in given.items():
        if value is None or isinstance(value, str) or len(value) > 1:
            continue
        only = f"1 entry, {value[0]!r}," if len(value) else "no entries,"
        word = (
            value[0] if len(value) else "maximize" if name == "directions" else "identity"
        )
        one = "" if name == "task_names" else f"{name}={word!r} for all tasks, or "
        raise ValueError(
            f"`{name}` has {only} but a front trades at least two tasks against each other: "
            f"pass {one}a list with one for each."
        )


def _check_ends(bounds: Any) -> None:
    if bounds is not None and (isinstance(bounds, str) or not hasattr(bounds, "__len__")):
        raise ValueError(
            f"`link_bounds` is {bounds!r}, but must be the lowest and the highest score, such "
            "as (0.0, 1.0), each a number or one per task."
        )


def _check_link_bounds(links: tuple[str, ...], bounds: tuple[Any, Any] | None) -> None:
    try:
        check_bounds(bounds, links)
    except ValueError as error:
        # The fit calls `bounds` what is called `link_bounds` beside the search's bounds.
        raise ValueError(str(error).replace("`bounds`", "`link_bounds`")) from error


def _arrays(bounds: tuple[Any, Any] | None) -> list[Any]:
    """List the ends of bounds that are given task by task."""
    return [end for end in (() if bounds is None else bounds) if np.ndim(end)]


def _ends(limits: list[tuple[float | None, float | None]]) -> tuple[list, list]:
    lowest = [-np.inf if low is None else low for low, _ in limits]
    highest = [np.inf if high is None else high for _, high in limits]
    return lowest, highest


def _link_for(bounds: tuple[float | None, float | None]) -> str:
    low, high = bounds
    if low is None:
        return "identity"
    return "softplus" if high is None else "sigmoid"
