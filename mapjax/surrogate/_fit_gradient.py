"""A quadratic fitted to scores and their derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._jit import jit
from mapjax.surrogate._fit import fit
from mapjax.surrogate._quadratic import Quadratic

IMPORTANCES = np.array([10.0, 1.0, 0.1, 0.0])
"""How much a derivative may count, in units of a score: what `fit_gradient` tries."""


@jit
def fit_gradient(
    *arrays: Array,
    jacobian: Float[Array, "samples tasks coefficients"],
    importances: Float[Array, " importances"],
    links: tuple[str, ...],
    shared: bool,
    keep_zero: bool,
    num_unknowns: int,
    num_experts: int | None = None,
) -> Quadratic:
    r"""Fit a quadratic per task, choosing how much derivatives count.

    What a quadratic cannot follow has a value and a slope. Per unit of a standardised
    coefficient, their variances are in a ratio $\gamma$ that depends on how fast it
    wiggles; so a row of the Jacobian weighs $\gamma$ times a score. Of the $\gamma$ given
    each task takes the one with the least leave-one-out error of its scores, a sample
    leaving together with its derivatives. Nothing is checked: `fit_quadratic` does that.

    Args:
        arrays: As `fit` takes them.
        jacobian: Derivatives of the scores; NaN where there are none.
        importances: $\gamma$ to choose from, in descending order, so that ties go to
            more information. With zero among them, derivatives that mislead are dropped.
        links: As `fit` takes it, and so are those below.
        shared: Derivatives included.
        keep_zero: As there; derivatives that determine more are then never dropped.
        num_unknowns: As there.
        num_experts: As there.
    """
    options: dict[str, Any] = dict(
        links=links,
        shared=shared,
        keep_zero=keep_zero,
        num_unknowns=num_unknowns,
        num_experts=num_experts,
        jacobian=jacobian,
    )

    def one(importance: Array) -> Quadratic:
        return fit(*arrays, importance=importance, **options)

    found = jax.lax.map(one, importances)
    explained = jnp.where(jnp.isnan(found.loo_r2), -jnp.inf, found.loo_r2)
    if keep_zero:  # what determines more goes first
        explained = jnp.where(found.rank == found.rank.max(0), explained, -jnp.inf)
    best = jnp.argmax(explained, axis=0)
    task = jnp.arange(len(links))

    def take(x: Array) -> Array:
        return x[best, task]

    common = {"shift", "scale"}  # by coefficient
    static = {"links": links, "num_experts": num_experts}
    fields = {name: getattr(found, name) for name in vars(found) if name not in static}
    chosen = {k: x[0] if k in common else take(x) for k, x in fields.items()}
    left_out = jnp.moveaxis(found.left_out[best, :, task], 0, 1)
    return Quadratic(**(chosen | {"left_out": left_out}), **static)
