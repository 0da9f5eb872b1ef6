"""Fit an output-space surrogate."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mapjax._checks import check_shares
from mapjax._sizes import room_for
from mapjax._types import ArrayLike
from mapjax.surrogate._errors import (
    LEAST_JUDGES,
    POWERS,
    best_blend,
    explained,
    growth_of_errors,
    losses,
)
from mapjax.surrogate._kernel import make_gram
from mapjax.surrogate._mixtures import Metric, Rows, make_rows
from mapjax.surrogate._output_surrogate import OutputSurrogate
from mapjax.surrogate._quadratic import Quadratic

DEGREES = (math.inf, 2, 1)
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

_LEAST_BLEND = 0.02
_FARTHEST, _TOO_FAR = 5.0, 9.0
"""Squared lengths of coefficients: up to the first all degrees of a series are of use, and
from the second on their sum has lost more digits in single precision than errors allow."""
_MASKED = 1e9
"""In the place of infinity: beside it, a softmax in float32 gives nothing to others."""
BLOCK = 2**14
"""Outputs of one merge that are predicted at once."""
_SETS, _WHOLE_SETS = 64, 16
"""Weighted sums of samples that are scored at once, and where each is held whole."""
_LEAST_ROOM = 32
"""Samples that there is room for at least, so that few sizes are compiled."""


def fit_outputs(
    coefficients: ArrayLike,
    outputs: Sequence[PyTree],
    targets: Sequence[PyTree],
    metrics: Sequence[Metric],
    *,
    scores: ArrayLike | None = None,
    degree: float | int | str = "auto",
    ridge: float | int | str = "auto",
    scalar: Quadratic | None = None,
    num_unknowns: int = 0,
    importance: ArrayLike | None = None,
    capacity: int | None = None,
    num_experts: int | None = None,
) -> OutputSurrogate:
    r"""Regress the outputs of every example on the coefficients.

    One decomposition of the samples serves all examples, classes and tasks. Degree and
    penalty are those with the least leave-one-out error of the *metric*, which has a
    closed form: the outputs of a sample that was left out are a weighted sum of those of
    the others. The base and the experts are never left out, as no merge is ever
    predicted without them; from them alone, a quadratic with a small penalty is fitted.

    Args:
        coefficients: One evaluated merge per row, `[samples, coefficients]`, in units of
            the task vectors.
        outputs: For each task, arrays `[samples, examples, ...]` or a pytree of them:
            what the metric sees. A sample with a NaN or infinite output is left out, but
            what is infinite in every sample, as masked logits are, counts as a mask.
        targets: For each task, arrays `[examples, ...]`.
        metrics: For each task, what scores its outputs.
        scores: What was measured, `[samples, tasks]`; computed from the outputs if None.
            NaN and infinite ones are left out, each for its own task alone.
        degree: Of the Taylor series in the coefficients: 1, 2, infinity (terms weighted
            by one over the factorial of their degree), or "auto".
        ridge: Penalty on the squared coefficients of the series, added to the sum of
            squared residuals, or "auto" to choose from $10^{-5}$ to $10^{-1}$.
        scalar: A quadratic fitted to the same scores, to be mixed in by as much as
            lowers each task's leave-one-out error.
        num_unknowns: How many samples determine that quadratic: from fewer, nothing of it
            is mixed in.
        importance: Non-negative weights `[samples]` of the leave-one-out errors that degree
            and penalty are chosen by: a surrogate that is right near the front may be wrong
            about merges that nobody would take. All alike by default.
        capacity: The most samples that later fits will have: surrogates of one capacity
            have the same shapes, so that what was compiled for one serves all.
        num_experts: How many experts share the coefficients out, each a run of as many;
            by default each coefficient is an expert's only one.

    Returns:
        The surrogate, in float32 or wider.

    Raises:
        ValueError: If numbers of samples, tasks or examples differ, an output is no
            floating-point array, no sample is finite, an option is unknown, or the experts
            cannot share the coefficients evenly.

    Example:
        >>> import numpy as np
        >>> import mapjax as mj
        >>> c = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
        >>> logits = c @ np.array([[4.0, -2.0, 1.0, -1.0], [-3.0, 5.0, 1.0, -2.0]])
        >>> positive = np.array([1, 1, 0, 0])
        >>> surrogate = mj.surrogate.fit_outputs(
        ...     c, [logits], [positive], [mj.metrics.accuracy]
        ... )
        >>> surrogate(np.array([0.5, 0.5], np.float32)).tolist()
        [0.75]

    References:
        Astudillo & Frazier, *Bayesian Optimization of Composite Functions*, ICML 2019.
        Zhou et al., *On the Emergence of Cross-Task Linearity in the
        Pretraining-Finetuning Paradigm*, ICML 2024, arXiv 2402.03660.
    """
    c = _check(coefficients, outputs, targets, metrics, degree, ridge)
    if num_experts is not None:
        check_shares(num_experts, c.shape[1])
    outputs = [jax.tree.map(_settle, tree) for tree in outputs]
    finite = [
        np.all([_finite_rows(x) for x in jax.tree.leaves(tree)], axis=0) for tree in outputs
    ]
    usable = np.flatnonzero(np.all(finite, axis=0))
    if not usable.size:
        never = [t for t, rows in enumerate(finite) if not rows.any()]
        raise ValueError(
            "No sample has outputs without NaN or infinite values"
            + (f": those of task {never[0]} never are" if never else "")
            + ". Look for what makes them, or use surrogate='quadratic'."
        )
    c, count = c[usable], len(usable)
    experts = num_experts or c.shape[1]
    unit = experts / c.shape[1]
    most = max(capacity or count, len(finite[0]))
    dtype = jnp.result_type(float)
    rows = [
        _make(jax.tree.map(lambda x: _take(x, usable, dtype, most), tree), y, metric)
        for tree, y, metric in zip(outputs, targets, metrics, strict=True)
    ]
    measured = (
        _scores(rows, [np.eye(count)], dtype)[0]
        if scores is None
        else np.asarray(scores, np.float64)[usable]
    )
    measured = np.where(np.isfinite(measured), measured, np.nan)

    farthest = unit * np.sum(c**2, axis=1).max()
    degrees = _choices(degree, DEGREES if farthest < _TOO_FAR else DEGREES[1:])
    options = [
        (gram, penalty)
        for gram in (make_gram(c, unit, d) for d in degrees)
        for penalty in _choices(ridge, PENALTIES)
    ]
    others = np.flatnonzero(~_is_known(c, experts))
    # From base and experts alone only the steep law is safe: theirs are no small errors.
    few = len(others) < 3
    judged = np.arange(count) if few else others
    smoothers = np.stack([each.left_out(penalty) for each, penalty in options])
    smoothers[:, np.setdiff1d(np.arange(count), judged)] = np.nan
    # Of many examples a share tells which option is best, at a share of the cost.
    parted, tried = any(task.can_part for task in rows), [task.part() for task in rows]
    itself = [np.eye(count)] if parted else []
    predicted = _scores(tried, [*smoothers, *itself], dtype)
    truth = np.where(np.isnan(measured), np.nan, predicted[-1]) if parted else measured
    predicted = predicted[: len(options)]
    weights = np.ones(len(finite[0])) if importance is None else np.asarray(importance)
    seen = weights[usable][others]
    loss = losses(options, predicted[:, others], truth[others], seen)
    best = int(np.argmin(loss))
    chosen, penalty = options[best]
    # A series that ends early is sure of what it leaves out, so that one of the highest
    # degree tells how far any is off; but far from the base, one without end explodes.
    far = farthest > _FARTHEST
    highest = max((d for d in degrees if not (far and math.isinf(d))), default=math.inf)
    widest = np.asarray([gram.degree == highest for gram, _ in options])
    doubt, its_penalty = options[int(np.argmin(np.where(widest, loss, np.inf)))]
    again = [smoothers[best]] if parted else []
    whole, blend = _scores(rows, [chosen.hat(penalty), *again], dtype), np.zeros(len(rows))
    fitted, looked_at = whole[0], whole[1] if parted else predicted[best]
    if scalar is not None and len(others) >= LEAST_JUDGES and count >= num_unknowns:
        theirs = np.asarray(scalar.left_out, np.float64)[usable]
        blend = best_blend(looked_at[others], theirs[others], measured[others])
    if scalar is None or blend.max() < _LEAST_BLEND:
        blend = np.zeros(len(rows))
    else:
        looked_at = np.where(blend > 0, looked_at + blend * (theirs - looked_at), looked_at)
        mixed = fitted + blend * (np.asarray(scalar(c)) - fitted)
        fitted = np.where(blend > 0, mixed, fitted)

    noise, power = growth_of_errors(
        (measured - looked_at)[judged] ** 2,
        doubt.left_out_variance(its_penalty)[judged],
        (1.0,) if few else POWERS,
    )
    # Few errors say little of their size. Those of base and experts are too large already;
    # of others, it makes them Student's t, whose variance is n / (n - 2) times as large.
    n = len(judged)
    noise = noise * np.sqrt((1 + 2 / n) * (1 if few else n / (n - 2)))
    values = chosen.values[[0, -1]] + penalty
    kept = np.full((most, len(rows)), np.nan)
    kept[usable[others]] = looked_at[others]

    def on_device(value: Any) -> Array:
        # By way of NumPy: `jnp.asarray` compiles a conversion of a Python number.
        return jax.device_put(np.asarray(value, np.dtype(dtype)))

    def per_task(value: Any) -> Array:
        return on_device(np.broadcast_to(value, len(rows)))

    return OutputSurrogate(
        mean=chosen.kernel(penalty, most, dtype),
        doubt=doubt.kernel(its_penalty, most, dtype),
        tasks=tuple(_resize(r, most) for r in rows),
        noise=per_task(noise),
        power=on_device(power),
        blend=per_task(blend),
        # A task that it does not help may have none, and zero times NaN is NaN.
        scalar=jax.tree.map(lambda x: jax.device_put(np.nan_to_num(x)), scalar),
        left_out=on_device(kept),
        ridge=per_task(penalty),
        r2=per_task(explained(measured, fitted)),
        loo_r2=per_task(explained(measured[others], looked_at[others])),
        rank=jax.device_put(np.full(len(rows), chosen.rank, np.int32)),
        condition_number=per_task(np.sqrt(values.max() / values.min())),
    )


def _is_known(c: np.ndarray, num_experts: int) -> np.ndarray:
    """Tell the base and the experts from other merges."""
    each = c.reshape(len(c), num_experts, -1)
    whole = np.all(each == each[..., :1], axis=(1, 2))
    return whole & np.isin(c, (0.0, 1.0)).all(axis=1) & (each[..., 0].sum(axis=1) <= 1)


def _choices(given: Any, all_of_them: tuple) -> tuple:
    return all_of_them if given == "auto" else (given,)


def _settle(x: ArrayLike) -> ArrayLike:
    """Give a number to outputs that are infinite in every sample, as masked logits are."""
    values = np.asarray(x)
    if not np.isinf(values[0]).any():  # as a rule, which one sample tells
        return x
    always = np.isinf(values).all(axis=0)
    return np.where(always, np.sign(values) * _MASKED, values)


def _finite_rows(x: ArrayLike) -> np.ndarray:
    values = np.asarray(x)
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1))


def _take(x: ArrayLike, usable: np.ndarray, dtype: Any, capacity: int) -> np.ndarray:
    """Take the usable samples, with rows of zeros up to a power of two or the capacity.

    What is compiled for one number of samples then serves others.
    """
    room = min(room_for(len(usable), _LEAST_ROOM), capacity)
    taken = np.zeros((room, *x.shape[1:]), jnp.promote_types(x.dtype, dtype))
    values = np.asarray(x)
    taken[: len(usable)] = values if len(usable) == len(values) else values[usable]
    return taken


@eqx.filter_jit
def _make(outputs: PyTree, targets: PyTree, metric: Any) -> Rows:
    width = sum(x.size // x.shape[0] // x.shape[1] for x in jax.tree.leaves(outputs))
    targets = jax.tree.map(jnp.asarray, targets)
    return make_rows(outputs, targets, metric, max(1, BLOCK // max(width, 1)))


def _scores(rows: list[Rows], matrices: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    """Score weighted sums of samples, one per row of each matrix, on every task.

    A row with a NaN has NaN scores. Together, as few rows take as long as `_SETS`.

    Returns:
        `[matrices, rows, tasks]`.
    """
    matrix = np.concatenate(matrices)
    known = np.flatnonzero(~np.isnan(matrix).any(axis=1))
    room = jax.tree.leaves(rows[0].outputs)[0].shape[1]
    filled = np.zeros((-(-len(known) // _SETS) * _SETS, room), np.dtype(dtype))
    filled[: len(known), : matrix.shape[1]] = matrix[known]
    scores = np.full((len(matrix), len(rows)), np.nan)
    if known.size:
        blocks = np.split(filled, len(filled) // _SETS)
        found = [[_score_all(task, block) for block in blocks] for task in rows]
        columns = [np.concatenate(jax.device_get(x))[: len(known)] for x in found]
        scores[known] = np.stack(columns, axis=1)
    return scores.reshape(len(matrices), -1, len(rows))


@eqx.filter_jit
def _score_all(rows: Rows, matrix: Float[ArrayLike, "sets rows"]) -> Float[Array, " sets"]:
    at_once = _SETS if rows.metric.per_example else _WHOLE_SETS
    return jax.lax.map(rows.score, jnp.asarray(matrix), batch_size=at_once)


def _resize(rows: Rows, count: int) -> Rows:
    """Give the samples the number of rows that all surrogates of one capacity have."""

    def fit(x: Array) -> Array:
        room = [(0, 0), (0, max(0, count - x.shape[1])), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x[:, :count], room)

    return eqx.tree_at(lambda r: r.outputs, rows, jax.tree.map(fit, rows.outputs))


def _check(
    coefficients: Any, outputs: Any, targets: Any, metrics: Any, degree: Any, ridge: Any
) -> np.ndarray:
    c = np.asarray(coefficients, np.float64)
    if c.ndim != 2 or 0 in c.shape or not np.isfinite(c).all():
        raise ValueError(
            f"`coefficients` has shape {c.shape}, expected finite numbers [samples, "
            "coefficients], with at least one of each."
        )
    if not (len(outputs) == len(targets) == len(metrics) > 0):
        raise ValueError(
            f"There are {len(outputs)} `outputs`, {len(targets)} `targets` and "
            f"{len(metrics)} `metrics`. Pass one of each per task."
        )
    for t, (tree, wanted) in enumerate(zip(outputs, targets, strict=True)):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            where = f"`outputs[{t}]{jax.tree_util.keystr(path)}`"
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"{where} is {x.dtype}, but only floating-point outputs can be "
                    "predicted. Return logits instead of decisions, or use "
                    "surrogate='quadratic'."
                )
            examples = len(jax.tree.leaves(wanted)[0])
            if x.ndim < 2 or x.shape[:2] != (len(c), examples):
                raise ValueError(
                    f"{where} has shape {x.shape}, expected [{len(c)} samples, {examples} "
                    "examples, ...]."
                )
    if degree not in ("auto", *DEGREES):
        raise ValueError(f"`degree` is {degree!r}, expected 1, 2, infinity or 'auto'.")
    if ridge != "auto" and not (not isinstance(ridge, str) and 0 < ridge < np.inf):
        raise ValueError(f"`ridge` is {ridge!r}, expected a positive number or 'auto'.")
    return c
