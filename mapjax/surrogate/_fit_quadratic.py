"""Fit quadratic surrogates to evaluated merges."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mapjax._checks import check_shares
from mapjax._jit import unchecked
from mapjax._types import ArrayLike
from mapjax.surrogate._checks import (
    check_bounds,
    check_jacobian,
    check_links,
    check_num_examples,
    check_range,
    check_ridge,
    check_samples,
    check_weights,
)
from mapjax.surrogate._fit import PENALTIES, fit
from mapjax.surrogate._fit_gradient import IMPORTANCES, fit_gradient
from mapjax.surrogate._gradient_rows import num_determined
from mapjax.surrogate._quadratic import Quadratic, num_unknowns

PerTask = int | float | None | Sequence[int | float | None] | ArrayLike
"""A number for all tasks, or one per task."""


@unchecked
def fit_quadratic(
    coefficients: ArrayLike,
    scores: ArrayLike,
    *,
    link: str | Sequence[str] = "identity",
    bounds: Sequence[PerTask] | None = None,
    num_examples: PerTask | None = None,
    weights: ArrayLike | None = None,
    ridge: int | float | str | None = None,
    jacobian: ArrayLike | None = None,
    num_experts: int | None = None,
    num_tied: int = 0,
) -> Quadratic:
    r"""Fit $g(e + b \cdot c + \frac12 c^\top A c)$ to every task's scores.

    There are $p = (N+1)(N+2)/2$ unknowns per task. They come from linear least squares,
    in closed form: scores go through the inverse link $g^{-1}$ and are weighted by the
    inverse of their variance there (delta method). Coefficients and features are centred
    and scaled and decomposed by singular values, once for all tasks where these share
    weights (identity links, no score missing), else once per task.

    With a Jacobian, its rows join those least squares, linked by the chain rule and
    weighted by the delta method too. A sample then says up to $N + 1$ things at once, and
    base and experts alone determine the quadratic: no fewer than $N + 1$ samples do,
    since two values and the two slopes between them are tied for any quadratic. What a
    quadratic cannot follow has slopes $1 / \gamma$ times as variable as its values, per
    standard deviation of a coefficient; each task takes the $\gamma$ of 10, 1, 0.1 and 0 (no
    derivatives) with the least leave-one-out error of its scores, whole samples left out.

    Args:
        coefficients: One evaluated merge per row, `[samples, coefficients]`.
        scores: What was measured, `[samples, tasks]`, in any direction. NaN and infinite
            scores are left out, each for its own task alone.
        link: `"identity"`, `"sigmoid"` for scores bounded on both sides (accuracy) or
            `"softplus"` for scores bounded below (loss); one for all tasks or one each.
        bounds: Lowest and highest possible scores, each a number or one per task.
            Sigmoid reads both (default 0 and 1), softplus the lower one (default 0),
            identity none; an end that does not exist is None or infinite.
        num_examples: How many examples are behind a score of each task. Sigmoid links
            keep scores half a count, $1/(2n)$, away from the bounds, softplus links that
            share of the largest score above theirs; without it, $10^{-4}$.
        weights: Non-negative weights `[samples]` or `[samples, tasks]`; zero leaves out.
        ridge: Penalty $\lambda$ on the squared slopes of standardised features, added to
            the mean squared residual; never on the constant, and 50 times as heavy on
            the second order, so that a strong penalty means linear interpolation.
            `"auto"` chooses from $10^{-5}$ to $10^{-1}$, and 0 where $p$ samples
            determine the quadratic, by leave-one-out error of the scores. None is 0 where
            they determine it, else as `"auto"`.
        jacobian: Derivatives of the scores, `[samples, tasks, coefficients]`, as
            `Evaluator.value_and_jacobian` gives them. NaN where there are none. Those of
            scores too near a bound for their link are left out.
        num_experts: How many experts share the coefficients out, each a run of as many
            (the groups of `mapjax.group`), if the Hessian $A$ is to be a diagonal plus
            $P^\top S P$ with the experts' sums $P$: $1 + 2N + m(m+1)/2$ unknowns for $m$
            experts. On merges of whole experts it is a full quadratic still. Use it where
            samples are fewer than a full Hessian asks for.
        num_tied: How many sums of coefficients over experts are the same for all samples,
            each of another group: 1 where coefficients sum to one, and then $N(N+1)/2$
            samples determine the quadratic there.

    Returns:
        The surrogate, in float32 or wider.

    Raises:
        ValueError: If the arrays are not two-dimensional or differ in rows, a coefficient
            is not finite, a task has no finite score, a link is unknown, a score is
            outside the range of its link, bounds are reversed or missing, weights,
            counts or penalty are negative, the Jacobian has another shape, or the experts
            cannot share the coefficients evenly.

    Warns:
        UserWarning: If a task has too few usable scores and `ridge` is None.

    Example:
        >>> import numpy as np
        >>> import mapjax as mj
        >>> c = np.random.default_rng(0).random((12, 2))
        >>> scores = np.stack([1 + c[:, 0] * c[:, 1], 2 - c[:, 0] ** 2], axis=1)
        >>> quadratic = mj.surrogate.fit_quadratic(c, scores)
        >>> bool(np.allclose(quadratic(np.array([0.5, 0.5])), [1.25, 1.75], atol=1e-4))
        True

    References:
        Li et al., *MAP: Low-compute Model Merging with Amortized Pareto Fronts via
        Quadratic Approximation*, ICLR 2025, arXiv 2406.07529.
        Allen, *The Relationship Between Variable Selection and Data Augmentation and a
        Method for Prediction*, Technometrics 16(1), 1974 (leave-one-out).
    """
    c, s = check_samples(coefficients, scores)
    links = check_links(link, s.shape[1])
    lower, upper = check_bounds(bounds, links)
    check_range(s, links, lower, upper)
    margin = check_num_examples(num_examples, s.shape[1])
    w = check_weights(weights, s.shape)
    check_ridge(ridge)

    missing = ~np.isfinite(s)
    counts = (w > 0) & ~missing
    known = check_jacobian(jacobian, (*s.shape, c.shape[1])) & counts
    usable = int(np.min(np.sum(counts, axis=0)))
    told = int(np.min(num_determined(counts.sum(0), known.sum(0), c.shape[1])))
    if not 0 <= num_tied < c.shape[1]:
        raise ValueError(
            f"`num_tied` is {num_tied}, but must be from 0 to less than the number of "
            f"coefficients, {c.shape[1]}."
        )
    if num_experts is not None:
        check_shares(num_experts, c.shape[1])
    needed = num_unknowns(c.shape[1], num_experts, num_tied)
    told = min(told, needed)
    if usable == 0:
        raise ValueError(
            "`weights` are zero for every finite score of a task, so there is nothing to "
            "fit. Pass a positive weight for one."
        )
    if told < needed and ridge is None:
        warnings.warn(
            f"A quadratic of {c.shape[1]} coefficients has {needed} unknowns, but there "
            f"are {usable} usable samples: {needed - told} are missing. Made a ridge "
            'fit instead; evaluate more merges, or pass ridge="auto" to ask for this one.',
            UserWarning,
            stacklevel=2,
        )

    given = jnp.asarray(coefficients), jnp.asarray(scores)
    dtype = jnp.promote_types(jnp.promote_types(*(x.dtype for x in given)), jnp.float32)
    penalties = PENALTIES if ridge in (None, "auto") else np.array([ridge])
    weights_each = np.broadcast_to(w, s.shape)
    numbers = (weights_each, lower, upper - lower, margin, penalties)
    arrays = *(x.astype(dtype) for x in given), *(jnp.asarray(x, dtype) for x in numbers)
    alike = {(x == x[:, :1]).all() for x in (missing, known)} == {True}
    options: dict[str, Any] = dict(
        links=links,
        shared=set(links) == {"identity"} and w.shape[1] == 1 and alike,
        keep_zero=ridge is None,
        num_unknowns=needed,
        num_experts=num_experts,
    )
    if jacobian is None:
        return fit(*arrays, **options)
    slopes, importances = jnp.asarray(jacobian, dtype), jnp.asarray(IMPORTANCES, dtype)
    return fit_gradient(*arrays, jacobian=slopes, importances=importances, **options)
