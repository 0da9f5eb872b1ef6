"""Hypervolume: exact up to six objectives, by Monte Carlo above."""

from math import comb
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mapjax._jit import jit
from mapjax._keys import check_key
from mapjax._types import ArrayLike, PRNGKey
from mapjax.pareto._checks import as_points, as_vector, is_concrete

_MOST_OBJECTIVES = 6
_MOST_NUMBERS = 100_000_000
"""Numbers that the boxes may take: two buffers of 0.4 GB."""
_CHUNK = 256
"""Boxes handled at a time: the cost of an insertion follows the boxes there are."""
_BLOCK = 1024
"""Monte Carlo samples drawn at a time: bounds memory at `_BLOCK x points`."""


def hypervolume(scores: ArrayLike, reference: ArrayLike) -> Float[Array, ""]:
    """Measure the volume between a set of points and a reference point, exactly.

    Points enter in the order of the first objective. Each adds the area that it newly
    dominates in the other objectives, times its distance to the reference in the first.
    The area is a sum over the boxes that partition what is not dominated yet, kept up to
    date as local upper bounds.

    Jitted for a shape, vmappable, and differentiable in forward mode (`jax.jacfwd`), not in
    reverse. On one CPU core: 1 ms for 100 points and 3
    objectives, 2 ms for 4, 4 ms for 5, 10 ms for 6; at 6, 200 points take 0.06 s and 400
    take 0.7 s. Memory grows with points to the power `(objectives - 1) // 2`.

    Args:
        scores: `[points, objectives]`, minimised, 2 to 6 objectives. Dominated points do
            no harm. Points with a NaN or infinite score, and points that are not below the
            reference in all objectives, add nothing.
        reference: The finite corner that bounds the volume, one number per objective.

    Returns:
        The volume, at least 0, larger is better.

    Raises:
        ValueError: If there is one objective or more than six, the points are too many for
            memory (over 4,000 at 6 objectives), a shape is wrong, or `reference` is not
            finite.

    Example:
        >>> import jax.numpy as jnp
        >>> float(hypervolume(jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([3.0, 3.0])))
        3.0

    References:
        Lacour, Klamroth and Fonseca, *A box decomposition algorithm to compute the
        hypervolume indicator*, Computers & Operations Research, 2017.
    """
    points = as_points(scores)
    num_objectives = points.shape[1]
    if not 2 <= num_objectives <= _MOST_OBJECTIVES:
        raise ValueError(
            f"`scores` has {num_objectives} objectives, but the exact hypervolume is for 2 "
            f"to {_MOST_OBJECTIVES}; above, use `hypervolume_monte_carlo`."
        )
    if num_objectives * _most_bounds(len(points), num_objectives - 1) > _MOST_NUMBERS:
        raise ValueError(
            f"`scores` has {len(points)} points, too many for memory at {num_objectives} "
            "objectives; keep fewer points or use `hypervolume_monte_carlo`."
        )
    corner = as_vector(reference, num_objectives, "reference").astype(points.dtype)
    return _hypervolume(points, corner)


def _enclosed(
    scores: Float[Array, "points objectives"], reference: Float[Array, " objectives"]
) -> Array:
    return jnp.all(jnp.isfinite(scores) & (scores < reference), axis=-1)


def _most_bounds(num_points: int, num_objectives: int) -> int:
    # Upper bound theorem: with the sides of the search region as further points, local
    # upper bounds are facets of a simplicial polytope, all but one.
    total, half = num_points + num_objectives, num_objectives // 2
    if num_objectives % 2:
        return 2 * comb(total - half - 1, half) - 1
    return comb(total - half, half) + comb(total - half - 1, half - 1) - 1


class _Bounds(NamedTuple):
    """Local upper bounds of what is not dominated yet.

    Attributes:
        defined_by: Per bound and objective, the index of the point that sets it there;
            indices from `points` on are the sides of the whole region.
        count: How many rows are in use.
    """

    defined_by: Int[Array, "bounds objectives"]
    count: Int[Array, ""]


@jit
def _hypervolume(
    scores: Float[Array, "points objectives"], reference: Float[Array, " objectives"]
) -> Float[Array, ""]:
    usable = _enclosed(scores, reference)
    scores = jnp.where(usable[:, None], scores, jnp.inf)
    scores = scores[jnp.argsort(scores[:, 0])]
    depth = reference[0] - scores[:, 0]

    scores, reference = scores[:, 1:], reference[1:]
    num_points, num_objectives = scores.shape
    # Ranks instead of scores, so that no two points tie: ties would break the partition,
    # and the boxes between tied points have no volume anyway.
    ranks = jnp.argsort(jnp.argsort(scores, axis=0), axis=0)
    values = jnp.concatenate(
        [jnp.minimum(jnp.sort(scores, axis=0), reference), reference[None]]
    )
    diagonal = jnp.eye(num_objectives, dtype=bool)
    ranks = jnp.concatenate([ranks, jnp.where(diagonal, num_points, -1)])

    most = _most_bounds(num_points, num_objectives)
    chunk = min(_CHUNK, most)
    # A chunk is written whole, with room for the children of all its boxes.
    room = jnp.zeros((most + (num_objectives + 1) * chunk, num_objectives), dtype=int)
    whole = _Bounds(room.at[0].set(num_points + jnp.arange(num_objectives)), jnp.array(1))

    def insert(index, state):
        volume, bounds, spare = state
        area, updated = _insert(index, bounds, spare, ranks, values, chunk)
        return volume + area * depth[index], updated, bounds.defined_by

    start = (jnp.zeros((), scores.dtype), whole, room)
    return jax.lax.fori_loop(0, jnp.sum(usable), insert, start)[0]


def _insert(index, bounds, spare, ranks, values, chunk):
    """Add a point: the area it newly dominates, and the bounds after it."""
    num_objectives = ranks.shape[1]
    objective = jnp.arange(num_objectives)
    own = jnp.eye(num_objectives, dtype=bool)
    earlier = objective[:, None] < objective[None, :]
    point = ranks[index]

    def one_chunk(number, state):
        area, written = state
        rows = jax.lax.dynamic_slice_in_dim(bounds.defined_by, number * chunk, chunk)
        live = number * chunk + jnp.arange(chunk) < bounds.count
        upper = ranks[rows, objective]
        split = live & jnp.all(point < upper, axis=1)

        def append(written, block, count):
            defined_by = jax.lax.dynamic_update_slice_in_dim(
                written.defined_by, block, written.count, axis=0
            )
            return _Bounds(defined_by, written.count + count)

        def keep_all(area, written):
            return area, append(written, rows, jnp.sum(live))

        def split_some(area, written):
            definers = ranks[rows]  # [bounds, definers, objectives]
            # The box of a bound begins, per objective, at its earlier definers.
            lower = jnp.max(jnp.where(earlier, definers, -1), axis=1)
            lower = jnp.maximum(lower, point)
            sides = values[upper, objective] - values[lower, objective]
            area = area + jnp.sum(jnp.where(split, jnp.prod(sides, axis=1), 0))

            # A child takes the point for one of its definers, if it is beyond the others.
            others = jnp.max(jnp.where(own, -1, definers), axis=1)
            children = jnp.where(own[:, None], index, rows[None])
            born = split & (point > others).T
            families = jnp.concatenate([rows[None], children]).reshape(-1, num_objectives)
            kept = jnp.concatenate([(live & ~split)[None], born]).reshape(-1)
            place = jnp.where(kept, jnp.cumsum(kept) - 1, kept.size)
            block = jnp.zeros_like(families).at[place].set(families, mode="drop")
            return area, append(written, block, jnp.sum(kept))

        return jax.lax.cond(jnp.any(split), split_some, keep_all, area, written)

    start = (jnp.zeros((), values.dtype), _Bounds(spare, jnp.array(0)))
    num_chunks = (bounds.count + chunk - 1) // chunk
    return jax.lax.fori_loop(0, num_chunks, one_chunk, start)


def hypervolume_monte_carlo(
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    key: Any,
    num_samples: int | Int[Array, ""] = 100_000,
    ideal: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Estimate the hypervolume for any number of objectives, with a standard error.

    The share of uniform samples of the box between `ideal` and `reference` that some point
    weakly dominates, times the volume of the box. A derivative in the scores would be
    wrong, since samples are counted.

    Args:
        scores: `[points, objectives]`, minimised. Points with a NaN or infinite score, and
            points that are not below the reference in all objectives, add nothing.
        reference: The finite corner that bounds the volume, one number per objective.
        key: A typed key, for the samples.
        num_samples: How many, at least 2. Time grows with `num_samples x points`, memory
            does not.
        ideal: The best corner of the sampled box; volume outside of the box is not
            counted. None takes the least score of the points, and so counts everything.

    Returns:
        The estimate and its standard error, which falls with the square root of
        `num_samples`. The error is 0 where all samples agree.

    Raises:
        ValueError: If a shape is wrong, a corner is not finite, `ideal` is not below
            `reference`, `num_samples` is too small, or the key is not typed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> front = jnp.array([[1.0, 2.0], [2.0, 1.0]])
        >>> volume, error = hypervolume_monte_carlo(
        ...     front, jnp.array([3.0, 3.0]), key=jax.random.key(0)
        ... )
        >>> abs(float(volume) - 3.0) < 4 * float(error) < 0.1
        True

    References:
        Bader and Zitzler, *HypE: an algorithm for fast hypervolume-based many-objective
        optimization*, Evolutionary Computation, 2011.
    """
    check_key(key)
    points = as_points(scores)
    corner = as_vector(reference, points.shape[1], "reference").astype(points.dtype)
    samples = jnp.asarray(num_samples)
    if not jnp.issubdtype(samples.dtype, jnp.integer) or (
        is_concrete(num_samples) and num_samples < 2
    ):
        raise ValueError(
            f"`num_samples` is {num_samples}, but must be an int of at least 2."
        )
    if ideal is not None:
        ideal = as_vector(ideal, points.shape[1], "ideal").astype(points.dtype)
        if is_concrete(ideal, corner) and np.any(np.asarray(ideal) >= np.asarray(corner)):
            raise ValueError(
                f"`ideal` is {ideal}, but must be below `reference`, {corner}, in every "
                "objective; scores are minimised."
            )
    return _monte_carlo(points, corner, ideal, samples, key)


def exact_or_estimated(scores: Any, reference: Any, key: Any) -> Float[Array, ""]:
    """Measure the hypervolume, or estimate it where the objectives are too many.

    Raises:
        ValueError: If they are, and there is no key.
    """
    if len(reference) <= _MOST_OBJECTIVES:
        return hypervolume(scores, reference)
    if key is None:
        raise ValueError(
            f"There are {len(reference)} tasks, and above {_MOST_OBJECTIVES} a hypervolume is "
            "estimated from random samples: pass `key=jax.random.key(0)`."
        )
    return hypervolume_monte_carlo(scores, reference, key=key)[0]


@jit
def _monte_carlo(
    scores: Float[Array, "points objectives"],
    reference: Float[Array, " objectives"],
    ideal: Float[Array, " objectives"] | None,
    num_samples: Int[Array, ""],
    key: PRNGKey,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    usable = _enclosed(scores, reference)[:, None]
    if ideal is None:
        ideal = jnp.min(jnp.where(usable, scores, reference), axis=0)
    scores = jnp.where(usable, scores, jnp.inf)

    def count_block(block, count):
        uniform = jax.random.uniform(
            jax.random.fold_in(key, block), (_BLOCK, scores.shape[1]), scores.dtype
        )
        samples = ideal + uniform * (reference - ideal)
        hit = jnp.any(jnp.all(scores <= samples[:, None], axis=-1), axis=-1)
        drawn = block * _BLOCK + jnp.arange(_BLOCK) < num_samples
        return count + jnp.sum(hit & drawn)

    num_blocks = (num_samples + _BLOCK - 1) // _BLOCK
    count = jax.lax.fori_loop(0, num_blocks, count_block, jnp.array(0))
    share = (count / num_samples).astype(scores.dtype)
    volume = jnp.prod(reference - ideal)
    error = jnp.sqrt(share * (1 - share) / (num_samples - 1).astype(scores.dtype))
    return volume * share, volume * error
