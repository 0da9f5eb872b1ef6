"""A task: how to predict, on which examples, and how to score."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from mapjax import metrics
from mapjax._types import DIRECTIONS, Direction, wide, widened

_MOST_SHOWN = 3


class Task(eqx.Module):
    """One task on which merges are scored.

    Attributes:
        name: How the task is called in tables and pictures.
        predict: `predict(params, inputs) -> outputs`, on a batch: inputs
            `[examples, ...]` to outputs `[examples, ...]`, written in JAX. It may use a
            head of its own (close over it) while the backbone is merged.
        inputs: Arrays `[examples, ...]`, or a pytree of them.
        targets: Arrays `[examples, ...]`, or a pytree of them.
        metric: The score; see `mapjax.metrics`.
        direction: Whether higher scores are better.
    """

    predict: Callable[..., Any]
    inputs: PyTree
    targets: PyTree
    metric: metrics.Metric
    name: str = eqx.field(static=True)
    direction: Direction = eqx.field(static=True)

    def __init__(
        self,
        name: str,
        predict: Callable[..., Any],
        inputs: PyTree,
        targets: PyTree,
        metric: Any = metrics.accuracy,
        *,
        direction: str | None = None,
    ):
        """Describe a task.

        Args:
            name: Its name, unique in an `Evaluator`.
            predict: `predict(params, inputs) -> outputs`.
            inputs: Arrays `[examples, ...]`.
            targets: Arrays `[examples, ...]`.
            metric: A `mapjax.metrics.Metric`, or any function
                `(outputs, targets) -> scalar` written in JAX.
            direction: "maximize" or "minimize"; by default what the metric says, and
                "maximize" for a plain function.

        Raises:
            ValueError: If there are no examples, their numbers differ, the direction is
                unknown, or `predict` or the metric is no function.
        """
        if not callable(predict):
            raise ValueError(
                f"`predict` of task {name!r} is {predict!r}, but must be a function `(params, "
                "inputs) -> outputs` written in JAX."
            )
        if direction not in (None, *DIRECTIONS):
            raise ValueError(
                f"Task {name!r} has direction {direction!r}; use 'maximize' or 'minimize'."
            )
        self.name = str(name)
        self.predict = predict
        self.inputs = _arrays(inputs, f"The inputs of task {name!r}")
        self.targets = _arrays(targets, f"The targets of task {name!r}")
        self.metric = metrics.as_metric(metric)
        self.direction = self.metric.direction if direction is None else direction
        counts = {
            f"{field}{jax.tree_util.keystr(path)}": len(x) if jnp.ndim(x) else None
            for field in ("inputs", "targets")
            for path, x in jax.tree_util.tree_leaves_with_path(getattr(self, field))
        }
        if (
            len(set(counts.values())) != 1
            or None in counts.values()
            or 0 in counts.values()
        ):
            raise ValueError(
                f"Task {name!r} needs as many inputs as targets, at least one, along the "
                f"first axis of every array; got {_first(counts)}. "
                + (
                    _numbers(inputs=inputs, targets=targets)
                    or "Join what comes in batches."
                )
            )

    @property
    def num_examples(self) -> int:
        """How many examples the task is scored on."""
        return len(jax.tree.leaves(self.inputs)[0])

    def score(self, params: PyTree, batch_size: int) -> Array:
        """Score parameters in batches; sums batch by batch where the metric allows."""
        if not self.metric.per_example:
            return self.metric(self.outputs(params, batch_size), self.targets)
        inputs, mask = _batches(self.inputs, batch_size)
        targets, _ = _batches(self.targets, batch_size)

        def add(total: Array, batch: Any) -> tuple[Array, None]:
            return total + self._sum(params, *batch), None

        total, _ = jax.lax.scan(add, jnp.zeros(()), (inputs, targets, mask))
        return total / self.num_examples

    def value_and_gradient(self, params: PyTree, batch_size: int) -> tuple[Array, PyTree]:
        """Score parameters and differentiate by those that are floating-point.

        Where the metric allows, batch by batch, so that memory is that of one batch.
        """
        smooth, fixed = eqx.partition(params, eqx.is_inexact_array)

        def value(smooth: PyTree, score: Callable[[PyTree], Array]) -> Array:
            return score(eqx.combine(smooth, fixed))

        value_and_gradient = jax.value_and_grad(value)
        if not self.metric.per_example:
            return value_and_gradient(smooth, lambda p: self.score(p, batch_size))
        inputs, mask = _batches(self.inputs, batch_size)
        targets, _ = _batches(self.targets, batch_size)

        def add(total: PyTree, batch: Any) -> tuple[PyTree, None]:
            found = value_and_gradient(smooth, lambda p: self._sum(p, *batch))
            return jax.tree.map(jnp.add, total, jax.tree.map(widened, found)), None

        # In float32 at least: a sum in bfloat16 stops growing after some hundred terms.
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, wide(x.dtype)), smooth)
        start = jnp.zeros(()), zeros
        (score, gradient), _ = jax.lax.scan(add, start, (inputs, targets, mask))
        n = self.num_examples
        mean = jax.tree.map(lambda g, x: (g / n).astype(x.dtype), gradient, smooth)
        return score / n, mean

    def outputs(self, params: PyTree, batch_size: int) -> PyTree:
        """Predict every example: what the metric sees.

        Raises:
            ValueError: If `predict` does not return one row per example.
        """
        inputs, _ = _batches(self.inputs, batch_size)
        # Batches are joined and cut along the first axis, which all outputs need.
        stacked = jax.lax.map(lambda x: self._rows(params, x), inputs)
        return jax.tree.map(
            lambda y: y.reshape(-1, *y.shape[2:])[: self.num_examples], stacked
        )

    def _rows(self, params: PyTree, inputs: PyTree, *, enough: Any = all) -> PyTree:
        """Predict, and refuse outputs of which not all, or not any, have these rows."""
        outputs, count = self.predict(params, inputs), len(jax.tree.leaves(inputs)[0])
        shapes = [jnp.shape(y) for y in jax.tree.leaves(outputs)]
        wrong = [shape for shape in shapes if shape[:1] != (count,)]
        if wrong and not enough(shape[:1] == (count,) for shape in shapes):
            shape = wrong[0]
            rest = shape[0] // count if shape and shape[0] % count == 0 else "..."
            raise ValueError(
                f"`predict` returned {list(shape)} for {count} examples of task "
                f"{self.name!r}: return one row per example, such as [{count}, {rest}]."
            )
        return outputs

    def _sum(self, params: PyTree, inputs: PyTree, targets: PyTree, real: Array) -> Array:
        # What the metric leaves out, such as a loss of the model's own, may have no rows.
        values = self.metric.each(self._rows(params, inputs, enough=any), targets)
        # `where`, not a product: padding that gives NaN must not count.
        return jnp.sum(jnp.where(real, values, 0))


def _arrays(tree: PyTree, what: str) -> PyTree:
    try:
        return jax.tree.map(jnp.asarray, tree)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} are no arrays of numbers ({error}). Pass arrays `[examples, ...]` or a "
            "pytree of them: read what a generator gives, and number what has names."
        ) from error


def _first(counts: dict[str, int | None]) -> str:
    """Write the first few of what may be many thousands."""
    shown = dict(list(counts.items())[:_MOST_SHOWN])
    more = len(counts) - len(shown)
    return f"{shown} and {more:,} more" if more else f"{shown}"


def _numbers(**given: PyTree) -> str:
    """Say which lists of numbers are meant as arrays; JAX takes each number for one."""
    lists = [
        name
        for name, tree in given.items()
        if isinstance(tree, list | tuple)
        and any(isinstance(x, int | float) for x in jax.tree.leaves(tree))
    ]
    if not lists:
        return ""
    arrays = " and ".join(f"`np.asarray({name})`" for name in lists)
    named = " and ".join(f"`{name}`" for name in lists)
    what = "are lists" if len(lists) > 1 else f"is a {type(given[lists[0]]).__name__}"
    return f"{named} {what}, in which each number is an array of its own: pass {arrays}."


def _batches(tree: PyTree, batch_size: int) -> tuple[PyTree, Array]:
    """Cut arrays `[examples, ...]` into equal batches, and mark which rows are real."""
    count = len(jax.tree.leaves(tree)[0])
    num_batches = -(-count // batch_size)
    size = -(-count // num_batches)  # as even as possible, so that little is padding

    def cut(x: Array) -> Array:
        padding = [(0, num_batches * size - count)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding, mode="edge").reshape(num_batches, size, *x.shape[1:])

    mask = (jnp.arange(num_batches * size) < count).reshape(num_batches, size)
    return jax.tree.map(cut, tree), mask
