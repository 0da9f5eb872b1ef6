"""Scores of a model's outputs against targets."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mapjax._types import Direction


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
    """

    function: Callable[..., Any] = eqx.field(static=True)
    direction: Direction = eqx.field(default="maximize", static=True)
    bounds: tuple[float | None, float | None] = eqx.field(default=(None, None), static=True)
    per_example: bool = eqx.field(default=False, static=True)
    differentiable: bool = eqx.field(default=True, static=True)

    def __call__(self, outputs: Any, targets: Any) -> Array:
        """Score all examples at once."""
        value = self.function(outputs, targets)
        return jnp.mean(value) if self.per_example else jnp.asarray(value)


def as_metric(metric: Any) -> Metric:
    """Take a `Metric`, or any function `(outputs, targets) -> scalar` to maximise."""
    return metric if isinstance(metric, Metric) else Metric(metric)


def _classes(outputs: Array) -> Array:
    """Decide for the largest output, or for outputs above zero if there is one a row."""
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return (outputs.reshape(outputs.shape[0]) > 0).astype(jnp.int32)
    return jnp.argmax(outputs, axis=-1)


def _accuracy(outputs: Array, targets: Array) -> Array:
    hits = (_classes(outputs) == targets).astype(jnp.float32)
    return hits.reshape(hits.shape[0], -1).mean(axis=1)


def _cross_entropy(outputs: Array, targets: Array) -> Array:
    logits = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    if jnp.issubdtype(targets.dtype, jnp.integer):
        log_p = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    else:
        loss = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
    return loss.reshape(loss.shape[0], -1).mean(axis=1)


def _mean_squared_error(outputs: Array, targets: Array) -> Array:
    wide = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    if wide.shape != targets.shape:  # [examples, 1] against [examples]: never broadcast
        wide = wide.reshape(targets.shape)
    square = jnp.square(wide - targets)
    return square.reshape(square.shape[0], -1).mean(axis=1)


def _f1(outputs: Array, targets: Array) -> Array:
    predicted = _classes(outputs)
    binary = outputs.ndim == 1 or outputs.shape[-1] <= 2
    classes = jnp.array([1]) if binary else jnp.arange(outputs.shape[-1])
    is_predicted = predicted[:, None] == classes
    is_target = targets.reshape(-1)[:, None] == classes
    both = jnp.sum(is_predicted & is_target, axis=0)
    total = jnp.sum(is_predicted, axis=0) + jnp.sum(is_target, axis=0)
    scores = jnp.where(total > 0, 2 * both / jnp.maximum(total, 1), 0.0)
    # A class that neither occurs nor is predicted has no score and no share in the mean.
    return jnp.sum(scores) / jnp.maximum(jnp.sum(total > 0), 1)


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


def _auc(outputs: Array, targets: Array) -> Array:
    targets = targets.reshape(-1)
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return _binary_auc(outputs.reshape(-1), targets > 0)
    if outputs.shape[-1] == 2:
        return _binary_auc(outputs[:, 1] - outputs[:, 0], targets == 1)
    one_hot = targets[:, None] == jnp.arange(outputs.shape[-1])
    probabilities = jax.nn.softmax(outputs)
    return jnp.mean(jax.vmap(_binary_auc, in_axes=(1, 1))(probabilities, one_hot))


accuracy = Metric(_accuracy, bounds=(0.0, 1.0), per_example=True, differentiable=False)
"""Share of examples decided rightly: largest logit, or the sign of a single one."""

cross_entropy = Metric(
    _cross_entropy, direction="minimize", bounds=(0.0, None), per_example=True
)
"""Mean negative log-likelihood in nats, of logits against labels or distributions."""

mean_squared_error = Metric(
    _mean_squared_error, direction="minimize", bounds=(0.0, None), per_example=True
)
"""Mean squared difference between outputs and targets."""

f1 = Metric(_f1, bounds=(0.0, 1.0), differentiable=False)
"""F1: of the positive class for one or two outputs, the mean over classes for more."""

auc = Metric(_auc, bounds=(0.0, 1.0), differentiable=False)
"""Area under the ROC curve: binary, or the mean of one-versus-rest softmax scores."""
