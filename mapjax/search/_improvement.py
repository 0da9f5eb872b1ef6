"""Which points to evaluate next, by how much they should add to the hypervolume."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mapjax._checks import check_count
from mapjax._jit import jit, unchecked
from mapjax._keys import check_key
from mapjax._types import ArrayLike, PRNGKey

_SMALLEST = 1e-6
"""A ray this flat along an objective does not ask for any of it."""


class Improvement(NamedTuple):
    """A batch of points, the best first, and what it should add.

    Attributes:
        chosen: Distinct indices of candidates.
        gain: What each adds to the hypervolume of the known points and of those chosen
            before it, on average over the draws.
        hypervolume: That of the known points, on average over the draws.
    """

    chosen: Int[Array, " batch"]
    gain: Float[Array, " batch"]
    hypervolume: Float[Array, ""]


@unchecked
def propose_improving(
    draws: ArrayLike,
    known: ArrayLike,
    *,
    reference: ArrayLike,
    ideal: ArrayLike,
    count: int,
    allowed: ArrayLike,
    key: Any,
    num_rays: int = 256,
) -> Improvement:
    r"""Choose a batch by noisy expected hypervolume improvement, for any number of objectives.

    Seen from the reference point, a set of points $y$ reaches
    $\rho(u) = \max_y \min_i y_i / u_i$ far along a ray $u$. With objectives in units of the
    box from the reference to the ideal point, and rays that end uniformly on the far faces
    of that box,

    $$\mathrm{HV} = \mathbb{E}_u\, \rho(u)^M,$$

    the hypervolume scalarisation of Zhang and Golovin with its rays drawn so that no power
    is above one inside the box. The improvement of a candidate is the mean of
    $\max(0, \rho_{new}^M - \rho_{known}^M)$ over rays and joint posterior draws, known points
    included where their scores are noisy. A batch is chosen greedily: each point joins the
    known ones of every draw, so that the next is judged by its own scenario of all of them.
    Time and memory grow with draws x candidates x rays; no box is ever enumerated.

    Args:
        draws: Objectives, minimised, drawn jointly for all candidates,
            `[draws, candidates, objectives]`. A candidate with a NaN adds nothing.
        known: Objectives of evaluated points, `[draws, known, objectives]` or, if they are
            exact, `[known, objectives]`. Points with a NaN or infinity count for nothing.
        reference: The finite corner that bounds the volume, `[objectives]`.
        ideal: The other corner, below the reference; what is better still counts in full.
        count: How many candidates to choose, at most as many as there are.
        allowed: Which candidates may be chosen, `[candidates]`; others come last, with gain 0.
        key: A typed key, for the rays.
        num_rays: The relative error of a gain falls with the root of this number.

    Returns:
        The batch; volumes as shares of the box. The first k of it are the batch of size k.

    Raises:
        ValueError: If a shape is wrong, a corner is not finite, `ideal` is not below
            `reference`, or a number is too small.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> known = jnp.array([[0.5, 0.5]])
        >>> draws = jnp.array([[[0.6, 0.6], [0.2, 0.5], [0.25, 0.5]]])
        >>> found = propose_improving(
        ...     draws, known, reference=jnp.ones(2), ideal=jnp.zeros(2), count=2,
        ...     allowed=jnp.ones(3, bool), key=jax.random.key(0), num_rays=4096,
        ... )
        >>> int(found.chosen[0]), round(float(found.gain[0]), 2)
        (1, 0.15)

    References:
        Zhang and Golovin, *Random Hypervolume Scalarizations for Provable Multi-Objective
        Black Box Optimization*, ICML 2020.
        Daulton, Balandat and Bakshy, *Parallel Bayesian Optimization of Multiple Noisy
        Objectives with Expected Hypervolume Improvement*, NeurIPS 2021.
    """
    d, k = jnp.asarray(draws), jnp.asarray(known)
    if d.ndim != 3 or 0 in d.shape:
        raise ValueError(
            f"`draws` has shape {d.shape}, but must be [draws, candidates, objectives] with "
            "at least one of each."
        )
    k = k if k.ndim == 3 else k[None]
    if k.ndim != 3 or k.shape[0] not in (1, len(d)) or k.shape[2] != d.shape[2]:
        raise ValueError(
            f"`known` has shape {jnp.shape(known)}, but must be [known, objectives] or "
            f"[{len(d)} draws, known, objectives] with {d.shape[2]} objectives."
        )
    corners = [np.asarray(x, float) for x in (reference, ideal)]
    for name, corner in zip(("reference", "ideal"), corners, strict=True):
        if corner.shape != d.shape[2:] or not np.isfinite(corner).all():
            raise ValueError(
                f"`{name}` is {corner}, but must hold {d.shape[2]} finite numbers, one per "
                "objective."
            )
    if not (corners[1] < corners[0]).all():
        raise ValueError(
            f"`ideal` is {corners[1]}, but must be below `reference`, {corners[0]}, in every "
            "objective; scores are minimised."
        )
    check_count("num_rays", num_rays, 1)
    check_count("count", count, 1)
    if count > d.shape[1]:
        raise ValueError(
            f"`count` is {count}, but there are {d.shape[1]} candidates; ask for fewer."
        )
    if jnp.shape(allowed) != d.shape[1:2]:
        raise ValueError(
            f"`allowed` has shape {jnp.shape(allowed)}, but must be [candidates] = "
            f"({d.shape[1]},)."
        )
    check_key(key)
    corner, best = (jnp.asarray(x, d.dtype) for x in corners)
    return _propose(d, k, corner, best, count, jnp.asarray(allowed, bool), key, num_rays)


@jit
def _propose(
    draws: Float[Array, "draws candidates objectives"],
    known: Float[Array, "some known objectives"],
    reference: Float[Array, " objectives"],
    ideal: Float[Array, " objectives"],
    count: int,
    allowed: Bool[Array, " candidates"],
    key: PRNGKey,
    num_rays: int,
) -> Improvement:
    inverse = 1 / _rays(num_rays, len(reference), key).astype(draws.dtype)

    def powers(scores):
        height = (reference - scores) / (reference - ideal)
        finite = jnp.all(jnp.isfinite(height), axis=-1, keepdims=True)
        height = jnp.where(finite, jnp.maximum(height, 0), 0)
        # Objective by objective: all at once would take as many times the memory.
        reach = height[..., :1] * inverse[0]
        for i in range(1, len(inverse)):
            reach = jnp.minimum(reach, height[..., i : i + 1] * inverse[i])
        return reach ** len(inverse)

    first = jnp.max(powers(known), axis=1)
    values = powers(draws)

    def choose(state, _):
        best, open_ = state
        gains = jnp.mean(jnp.maximum(values - best[:, None], 0), axis=(0, 2))
        gains = jnp.where(allowed, gains, 0)
        index = jnp.argmax(jnp.where(open_, jnp.where(allowed, gains, -1), -2))
        best = jnp.where(allowed[index], jnp.maximum(best, values[:, index]), best)
        return (best, open_.at[index].set(False)), (index, gains[index])

    start = (jnp.broadcast_to(first, (len(draws), num_rays)), jnp.ones(len(allowed), bool))
    _, (chosen, gain) = jax.lax.scan(choose, start, length=count)
    return Improvement(chosen, gain, jnp.mean(first))


def _rays(
    num_rays: int, num_objectives: int, key: PRNGKey
) -> Float[Array, "objectives rays"]:
    """Draw points on the far faces of the unit box, as many on each."""
    inside = jax.random.uniform(key, (num_objectives, num_rays), minval=_SMALLEST)
    face = jnp.arange(num_rays) % num_objectives
    return jnp.where(jnp.arange(num_objectives)[:, None] == face, 1.0, inside)
