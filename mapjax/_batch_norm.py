"""BatchNorm after a merge: its statistics measured anew, on data of your own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from mapjax import _tree
from mapjax._types import widened

_FAR = 2.0**40
"""A running average so large that no batch changes it; a power of two rounds nothing."""

_MANY = 2**30
"""So many updates that nothing is left to correct for."""

_CLOSE = 0.01
"""How far a statistic may be off, as a share of the layer's own scale."""


def recalibrate_batch_norm(
    update: Callable[[PyTree, Any], PyTree], statistics: PyTree, batches: Iterable[Any]
) -> PyTree:
    r"""Measure the statistics of a model's BatchNorm layers on data.

    Running averages belong to the parameters that they were recorded with: those of a merge
    have to be measured. They come out as the mean of the batches' means, and the mean of
    their variances plus the variance of their means, which for one layer are those of all
    examples at once. Neither the order of the batches nor the layer's momentum matters;
    batches weigh by their number of examples, the length of the first axis. As in training,
    every layer sees inputs that were normalised by batch, so take batches as large as then.

    Frameworks show running averages only, which a batch $b$ updates as $s \mapsto m s +
    (1 - m) b$. What they do to two known values of $s$ tells both $m$ and $b$, with a
    relative error of about $10^{-7} / (1 - m)$ in float32. The model itself runs once per
    batch, under `jax.jit`, and once more on the first, to check `update`. The whole may stand
    in a merge rule, for a front of recalibrated merges; pass `update` as
    `jax.tree_util.Partial(function, params)` to compile once for all of them. Call it once
    outside of `jax.jit`: inside, nothing is checked, and evaluation mode gives NaN.

    Args:
        update: From statistics and a batch to the statistics after one step in training
            mode, without side effects. With NNX, `nnx.merge(..., copy=True)` inside, or the
            keys of its Dropout cannot count (TraceContextError).
        statistics: Any, of the right shapes: the `batch_stats` of linen, `nnx.state(model,
            nnx.BatchStat)`, or the `eqx.nn.State` of a model whose layers have
            `mode="batch"` (with `mode="ema"`, one as `eqx.nn.make_with_state` made it). Means
            are found by name, and variances beside them; other leaves are left alone.
        batches: What `update` takes, one after another: arrays or trees of them, with the
            examples along the first axis. A list in a merge rule, which is traced often: a
            generator can be read only once.

    Returns:
        Statistics like those given. In an `eqx.nn.State` the count of updates is set high,
        as there is nothing left to correct for.

    Raises:
        ValueError: If there are no statistics or no batches, `update` returns another tree,
            runs the model in evaluation mode or does something else than averaging, or a
            statistic is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, mapjax as mj
        >>> def update(old, x):  # of a model that is one layer, with a momentum of 0.9
        ...     new = {"mean": x.mean(0), "var": x.var(0)}
        ...     return jax.tree.map(lambda o, n: 0.9 * o + 0.1 * n, old, new)
        >>> old = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
        >>> batches = jnp.array([[0.0], [2.0]]), jnp.array([[4.0], [6.0]])
        >>> new = mj.recalibrate_batch_norm(update, old, batches)
        >>> f"{new['mean'][0]:.3f}, {new['var'][0]:.3f}"
        '3.000, 5.000'

    References:
        Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*,
        UAI 2018, arXiv 1803.05407, section 3.2; Jordan et al., *REPAIR*, ICLR 2023, arXiv
        2211.08403.
    """
    leaves = _tree.leaves(statistics, statistics=True)
    places = _places(leaves)
    if hasattr(batches, "shape") or isinstance(batches, Mapping):
        what = "dict" if isinstance(batches, Mapping) else "array"
        raise ValueError(
            f"`batches` is one {what}: pass a list of batches, such as `[images]` for one."
        )
    total, pooled, after = 0, None, []
    for batch in batches:
        found, momenta, after = _measure(update, statistics, places, batch, None)
        if pooled is None and not isinstance(found[0], Tracer):
            again, _, _ = _measure(update, statistics, places, batch, found)
            _check_update(found, again, momenta, [leaves[i].path for i in places])
        count = _num_examples(batch)
        total += count
        pooled = found if pooled is None else _pool(pooled, found, count / total)
    if pooled is None:
        once = " A generator can be read only once: pass a list."
        raise ValueError(
            "`batches` is empty: pass at least one batch of examples."
            + once * isinstance(batches, Iterator)
        )
    values = [leaf.value for leaf in leaves]
    if isinstance(statistics, eqx.nn.State):
        values = [_settled(x, new) for x, new in zip(values, after, strict=True)]
    for i, x in zip(places, pooled, strict=True):
        if not isinstance(x, Tracer) and not bool(jnp.isfinite(x).all()):
            raise ValueError(
                f"Leaf {leaves[i].path} is not finite on these batches: look for NaN in the "
                "batches and in the parameters."
            )
        values[i] = x.astype(leaves[i].value.dtype)
    return _tree.rebuild(statistics, values)


def _places(leaves: list[_tree.Leaf]) -> tuple[int, ...]:
    """Find the statistics: a mean, its variance, the next layer's mean, ..."""
    index = {leaf.path: i for i, leaf in enumerate(leaves)}
    places = []
    for i, leaf in enumerate(leaves):
        before, name, rest = leaf.path.rpartition("mean")
        # equinox keeps a mean and a variance as a tuple without names.
        other = f"{before}var{rest}" if name else leaf.path.removesuffix("[0]") + "[1]"
        j = index.get(other, i)
        if i != j and np.shape(leaf.value) == np.shape(leaves[j].value):
            places += [i, j]
    if not places:
        raise ValueError(
            f"`statistics` has no BatchNorm statistics, but {_tree.some(list(index), 5)}: pass "
            '`variables["batch_stats"]` of linen, `nnx.state(model, nnx.BatchStat)`, or the '
            "`State` of an equinox model."
        )
    return tuple(places)


@eqx.filter_jit
def _measure(
    update: Any,
    statistics: PyTree,
    places: tuple[int, ...],
    batch: Any,
    near: list[Array] | None,
) -> tuple[list[Array], list[Array], list[Any]]:
    """Read a batch's statistics from what the update makes of two running averages.

    Args:
        update: The step in training mode.
        statistics: The tree that it takes.
        places: Which leaves are statistics.
        batch: One batch.
        near: One of the running averages, zeros by default; the other is `_FAR`.

    Returns:
        The batch's statistics, their momenta, and all leaves as the update returned them.
    """
    leaves = _tree.leaves(statistics, statistics=True)
    if near is None:
        near = [jnp.zeros_like(widened(leaves[i].value)) for i in places]

    def step(averages: list[Array]) -> tuple[list[Array], list[Any]]:
        values = [leaf.value for leaf in leaves]
        for i, x in zip(places, averages, strict=True):
            values[i] = x
        new = _tree.leaves(
            update(_tree.rebuild(statistics, values), batch), statistics=True
        )
        _check_tree(leaves, new)
        for i in places:
            _check_wide(new[i])
        rest = [leaf.value if eqx.is_array(leaf.value) else None for leaf in new]
        return [widened(new[i].value) for i in places], rest

    # Training mode does not read the averages, so that the model runs once, not twice.
    both = [jnp.stack([x, jnp.full_like(x, _FAR)]) for x in near]
    averages, rest = jax.vmap(step)(both)
    momenta = [(x[1] - x[0]) / _FAR for x in averages]
    found = [
        (x[0] - m * old) / (1 - m)
        for x, m, old in zip(averages, momenta, near, strict=True)
    ]
    return found, momenta, jax.tree.map(lambda x: x[0], rest)


def _pool(pooled: list[Array], found: list[Array], share: float) -> list[Array]:
    """Add a batch that is such a share of all examples so far."""
    both = []
    for k in range(0, len(found), 2):
        (mean, var), (batch_mean, batch_var) = pooled[k : k + 2], found[k : k + 2]
        step = batch_mean - mean
        both += [
            mean + share * step,
            (1 - share) * var + share * batch_var + share * (1 - share) * step**2,
        ]
    return both


def _settled(before: Any, after: Any) -> Any:
    """Set the flags of an equinox state to what an update makes of them, and counts high."""
    if not eqx.is_array(before) or jnp.issubdtype(before.dtype, jnp.inexact):
        return before
    if before.dtype == jnp.bool_:
        return after
    counted = after == before + 1
    return jnp.where(counted, jnp.asarray(_MANY, before.dtype), before)


def _num_examples(batch: Any) -> int:
    shapes = [np.shape(x) for x in jax.tree.leaves(batch)]
    if not shapes or not shapes[0] or not shapes[0][0]:
        raise ValueError(
            "A batch has no examples: `batches` must give arrays, or trees of them, with the "
            "examples along the first axis."
        )
    return shapes[0][0]


def _check_tree(before: list[_tree.Leaf], after: list[_tree.Leaf]) -> None:
    old = {leaf.path: np.shape(leaf.value) for leaf in before}
    new = {leaf.path: np.shape(leaf.value) for leaf in after}
    if old != new:
        other = [path for path in {**old, **new} if old.get(path) != new.get(path)]
        raise ValueError(
            f"`update` must return statistics like those it is given, but differs in "
            f"{_tree.some(other)}. Return the new statistics alone, such as "
            '`new["batch_stats"]`.'
        )


def _check_wide(leaf: _tree.Leaf) -> None:
    """Refuse averages that cannot hold what a batch is read from."""
    if jnp.finfo(leaf.value.dtype).bits < 32:
        raise ValueError(
            f"`update` returns {leaf.path} in {leaf.value.dtype}, in which an average rounds "
            "away what a batch adds to it: keep the averages in float32 (of flax, give "
            "BatchNorm no half-precision `param_dtype`; of others, do not cast them)."
        )


def _check_update(
    found: list[Array], again: list[Array], momenta: list[Array], paths: list[str]
) -> None:
    """Refuse an update that learns nothing of the batch, or is no running average."""
    for k, path in enumerate(paths):
        if bool(jnp.any(momenta[k] == 1)):
            raise ValueError(
                f"`update` leaves {path} as it is: run the model in training mode "
                "(`use_running_average=False`, `model.train()`, `inference=False`) and return "
                "the statistics that come out."
            )
        var = found[k | 1]
        scale = jnp.abs(found[k]) + (var if k % 2 else jnp.sqrt(jnp.abs(var)))
        if bool(jnp.any(jnp.abs(again[k] - found[k]) > _CLOSE * scale)):
            raise ValueError(
                f"`update` makes no running average of {path}, or its batch statistics depend "
                "on the average before. If it is equinox's BatchNorm with mode='ema', pass the "
                "state as `equinox.nn.make_with_state` made it."
            )
