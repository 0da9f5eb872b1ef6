"""Scores of a model's outputs against targets.

- `accuracy`: share of examples decided rightly, by the largest logit, or by the sign of a
  single one.
- `cross_entropy`: mean negative log-likelihood in nats, of logits against labels or
  distributions. One logit an example is that of the second of two classes; its target is
  the probability of that class.
- `mean_squared_error`: mean squared difference between outputs and targets.
- `f1`: F1 of the positive class for one or two outputs, the mean over classes for more.
- `auc`: area under the ROC curve, the mean of one class against the rest for three or more.

Labels count from 0, and one that is no class gives NaN: nothing is masked. `Metric` makes
one of any function.
"""

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mapjax._checks import check_choice
from mapjax._types import DIRECTIONS, Direction, widened


class Metric(eqx.Module):
    """A score, with what a solver needs to know of it.

    Call it like a function: `metric(outputs, targets)` gives one number. Any function
    `(outputs, targets) -> scalar` written in JAX serves as a metric too; wrap it in a
    `Metric` to say more about it.

    Attributes:
        function: From outputs `[examples, ...]` and targets to one score, or to one
            value per example if `per_example`.
        direction: Whether higher scores are better.
        bounds: The lowest and the highest possible score; None where there is none.
            A bounded metric gets a sigmoid link by default, one bounded below softplus.
        per_example: The score is a mean over examples: it is then summed batch by
            batch, and the outputs of all examples are never held at once.
        differentiable: Whether the derivative says anything (a step function's is 0).
        head: What `after` put between the outputs and the function, which has it in it.
    """

    function: Callable[..., Any] = eqx.field(static=True)
    direction: Direction = eqx.field(default="maximize", static=True)
    bounds: tuple[float | None, float | None] = eqx.field(default=(None, None), static=True)
    per_example: bool = eqx.field(default=False, static=True)
    differentiable: bool = eqx.field(default=True, static=True)
    head: Callable[[Any], Any] | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if not callable(self.function):
            raise ValueError(
                f"`function` is {self.function!r}, but must be a function `(outputs, targets) "
                "-> scores` written in JAX."
            )
        check_choice("direction", self.direction, DIRECTIONS)
        if not _are_bounds(self.bounds):
            raise ValueError(
                f"`bounds` is {self.bounds!r}, but must be the lowest and the highest score, "
                "two numbers in this order, such as (0.0, None) where there is no highest."
            )

    def __call__(self, outputs: Any, targets: Any) -> Array:
        """Score all examples at once."""
        if self.per_example:
            return jnp.mean(self.each(outputs, targets))
        return jnp.asarray(self.function(outputs, targets))

    def each(self, outputs: Any, targets: Any) -> Array:
        """Score every example, `[examples]`, if `per_example`.

        Raises:
            ValueError: If the metric is no mean over examples, or the function returns
                another shape.
        """
        if not self.per_example:
            raise ValueError(
                "This metric has `per_example=False`: it is no mean over examples, and has no "
                "score of each. Call it for one of all, `metric(outputs, targets)`."
            )
        values = jnp.asarray(self.function(outputs, targets))
        count = len(jax.tree.leaves((targets, outputs))[0])
        if values.shape != (count,):
            # Any other shape would be broadcast, and summed too often or too rarely.
            raise ValueError(
                f"A metric with `per_example=True` returned shape {values.shape} for {count} "
                f"examples, but must return one number for each, shape ({count},)."
            )
        return widened(values)

    def after(self, head: Callable[[Any], Any]) -> "Metric":
        """Score what a head makes of the outputs.

        A task can then predict, and a surrogate keep, embeddings instead of logits.

        Args:
            head: From outputs `[examples, ...]`, such as embeddings, to what the metric
                takes, such as logits; not merged.

        Example:
            >>> import jax.numpy as jnp
            >>> head = jnp.array([[1.0, -1.0], [0.0, 2.0]])
            >>> metric = accuracy.after(lambda embeddings: embeddings @ head)
            >>> float(metric(jnp.array([[3.0, 1.0], [0.0, 1.0]]), jnp.array([0, 0])))
            0.5
        """

        def scored(outputs: Any, targets: Any) -> Any:
            return self.function(head(outputs), targets)

        def headed(outputs: Any) -> Any:  # a function, as a module has no hash
            return head(outputs) if self.head is None else self.head(head(outputs))

        return replace(self, function=scored, head=headed)


def as_metric(metric: Any) -> Metric:
    """Take a `Metric`, or any function `(outputs, targets) -> scalar` to maximise.

    Raises:
        ValueError: If it is neither.
    """
    if not callable(metric):
        raise ValueError(
            f"`metric` is {metric!r}, but must be a metric such as "
            "`mapjax.metrics.accuracy`, or a function `(outputs, targets) -> scalar`."
        )
    return metric if isinstance(metric, Metric) else Metric(metric)


def _are_bounds(bounds: Any) -> bool:
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        return False
    given = [end for end in bounds if end is not None]
    return all(isinstance(end, Real) for end in given) and (
        len(given) < 2 or given[0] < given[1]
    )


def _one_array(outputs: Any) -> Array:
    """Refuse what is beside logits, or no examples, before it fails somewhere else."""
    if not hasattr(outputs, "ndim"):
        raise ValueError(
            f"The metric takes one array of outputs, but `predict` returned a "
            f"{type(outputs).__name__}. Return the logits alone, or choose them by "
            "`metric.after(lambda outputs: outputs[...])`."
        )
    if outputs.shape[:1] == (0,):
        raise ValueError(
            f"The outputs have shape {outputs.shape}, so there are no examples to score: pass "
            "at least one."
        )
    return outputs


def _is_single(outputs: Array) -> bool:
    """Tell whether there is one logit for each decision, whose sign decides."""
    return outputs.ndim == 1 or outputs.shape[-1] == 1


def _labels(outputs: Array, targets: Array) -> Array:
    """Shape labels like decisions; broadcasting them would compare wrong pairs.

    Both are floats, in which the number of any class is exact, whatever labels came as.
    """
    shape = outputs.shape[: max(1, outputs.ndim - 1)]
    if targets.shape not in (shape, (*shape, 1)):
        raise ValueError(
            f"`targets` has shape {targets.shape}, but outputs of shape {outputs.shape} "
            f"need one label each, shape {shape}."
        )
    return targets.reshape(shape).astype(float)


def _classes(outputs: Array) -> Array:
    """Decide for the largest output, or for outputs above zero if there is one a row."""
    if _is_single(outputs):
        positive = (outputs if outputs.ndim == 1 else outputs[..., 0]) > 0
        return positive.astype(float)
    return jnp.argmax(outputs, axis=-1).astype(float)


def _mean_of_each(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).mean(axis=1)


def _any_of_each(flags: Array) -> Array:
    return flags.reshape(flags.shape[0], -1).any(axis=1)


def _no_class(labels: Array, outputs: Array) -> Array:
    """Tell which labels are none of the classes, such as -100 for what is to be masked."""
    count = 2 if _is_single(outputs) else outputs.shape[-1]
    return (labels < 0) | (labels >= count) | (labels != jnp.floor(labels))


def _nan_if(missing: Array, scores: Array) -> Array:
    """Give NaN where outputs or labels make no sense: comparisons would hide it."""
    return jnp.where(missing, jnp.nan, scores)


def _accuracy(outputs: Any, targets: Array) -> Array:
    outputs = _one_array(outputs)
    labels = _labels(outputs, targets)
    hits = _mean_of_each((_classes(outputs) == labels).astype(float))
    missing = _any_of_each(jnp.isnan(outputs))
    return _nan_if(missing | _any_of_each(_no_class(labels, outputs)), hits)


def _cross_entropy(outputs: Any, targets: Array) -> Array:
    logits = widened(_one_array(outputs))
    if _is_single(outputs):  # two classes, of which the first has logit 0
        positive = _labels(outputs, targets)
        positive = _nan_if((positive < 0) | (positive > 1), positive)
        logits = logits.reshape(positive.shape)
        logits = jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
        targets = jnp.stack([1 - positive, positive], axis=-1)
    log_p = jax.nn.log_softmax(logits)
    if targets.shape == logits.shape:
        # A class without probability counts for nothing, be its logit minus infinity.
        loss = -jnp.sum(
            jnp.where(targets == 0, 0.0, targets.astype(log_p.dtype) * log_p), axis=-1
        )
    elif jnp.issubdtype(targets.dtype, jnp.floating):
        raise ValueError(
            f"`targets` is {targets.dtype} of shape {targets.shape}, but must be integer "
            f"labels, or distributions of the shape of the outputs, {outputs.shape}."
        )
    else:
        labels = _labels(outputs, targets)
        loss = -jnp.take_along_axis(log_p, labels.astype(int)[..., None], axis=-1)[..., 0]
        loss = _nan_if(_no_class(labels, outputs), loss)  # -1 would be the last class
    return _mean_of_each(loss)


def _mean_squared_error(outputs: Any, targets: Array) -> Array:
    outputs = _one_array(outputs)
    if outputs.shape != targets.shape:
        # [examples, 1] against [examples], but never broadcast.
        if outputs.shape != (*targets.shape, 1) and targets.shape != (*outputs.shape, 1):
            raise ValueError(
                f"`targets` has shape {targets.shape}, but the outputs {outputs.shape}: "
                "pass one target for each output."
            )
        outputs = outputs.reshape(targets.shape)
    outputs = widened(outputs)
    if not jnp.issubdtype(targets.dtype, jnp.inexact):
        targets = targets.astype(outputs.dtype)
    return _mean_of_each(jnp.square(outputs - targets))


def _f1(outputs: Any, targets: Array) -> Array:
    outputs = _one_array(outputs)
    predicted, labels = _classes(outputs).reshape(-1), _labels(outputs, targets).reshape(-1)
    binary = _is_single(outputs) or outputs.shape[-1] == 2
    classes = jnp.arange(1.0, 2.0) if binary else jnp.arange(1.0 * outputs.shape[-1])
    is_predicted = predicted[:, None] == classes[None]
    is_target = labels[:, None] == classes[None]
    both = jnp.sum(is_predicted & is_target, axis=0)
    total = jnp.sum(is_predicted, axis=0) + jnp.sum(is_target, axis=0)
    scores = jnp.where(total > 0, 2 * both / jnp.maximum(total, 1), 0.0)
    # A class that neither occurs nor is predicted has no score and no share in the mean.
    mean = jnp.sum(scores) / jnp.maximum(jnp.sum(total > 0).astype(float), 1)
    return _nan_if(jnp.any(jnp.isnan(outputs)) | jnp.any(_no_class(labels, outputs)), mean)


def _binary_auc(scores: Array, positive: Array) -> Array:
    """Compute the Mann-Whitney statistic, ties counting one half, by ranks."""
    ordered = jnp.sort(scores)
    below = jnp.searchsorted(ordered, scores, side="left")
    upto = jnp.searchsorted(ordered, scores, side="right")
    mean_rank = (below + upto + 1) / 2
    n = positive.sum().astype(mean_rank.dtype)
    m = positive.shape[0] - n
    statistic = jnp.sum(jnp.where(positive, mean_rank, 0.0)) - n * (n + 1) / 2
    # With one class alone the area is undefined; NaN is reported by the drivers.
    return jnp.where((n > 0) & (m > 0), statistic / jnp.maximum(n * m, 1), jnp.nan)


def _auc(outputs: Any, targets: Array) -> Array:
    outputs = _one_array(outputs)
    labels = _labels(outputs, targets).reshape(-1)
    missing = jnp.any(jnp.isnan(outputs)) | jnp.any(_no_class(labels, outputs))
    logits = widened(outputs).reshape(len(labels), -1)
    if logits.shape[1] == 1:
        area = _binary_auc(logits[:, 0], labels > 0)
    elif logits.shape[1] == 2:
        area = _binary_auc(logits[:, 1] - logits[:, 0], labels == 1)
    else:
        one_hot = labels[:, None] == jnp.arange(1.0 * logits.shape[1])[None]
        odds = _log_odds(logits)
        missing = missing | jnp.any(jnp.isnan(odds))
        area = jnp.mean(jax.vmap(_binary_auc, in_axes=(1, 1))(odds, one_hot))
    return _nan_if(missing, area)


def _log_odds(logits: Array) -> Array:
    """Compare each class with all others: ordered as the softmax, but never saturated."""
    top = jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1], dtype=bool)
    log_p = jax.nn.log_softmax(logits)
    # One minus the probability cancels for the largest alone, the others' are at most 1/2.
    odds = log_p - jnp.log1p(-jnp.where(top, 0.0, jnp.exp(log_p)))
    below = logits - jnp.max(logits, axis=1, keepdims=True)
    rest = jax.nn.logsumexp(jnp.where(top, -jnp.inf, below), axis=1, keepdims=True)
    return jnp.where(top, -rest, odds)


accuracy = Metric(_accuracy, bounds=(0.0, 1.0), per_example=True, differentiable=False)
cross_entropy = Metric(
    _cross_entropy, direction="minimize", bounds=(0.0, None), per_example=True
)
mean_squared_error = Metric(
    _mean_squared_error, direction="minimize", bounds=(0.0, None), per_example=True
)
f1 = Metric(_f1, bounds=(0.0, 1.0), differentiable=False)
auc = Metric(_auc, bounds=(0.0, 1.0), differentiable=False)
