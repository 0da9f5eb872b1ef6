"""The front of a surrogate: traced, predicted, and how sure it is."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax import pareto
from mapjax._domain import Domain
from mapjax._result import Front
from mapjax._sizes import USUAL_POINTS, padded
from mapjax._types import ArrayLike, PRNGKey

NUM_DRAWS = 64
CAUTION = 1.0
_NUM_STEPS = 20
_ROUGH_SHARE = 0.2
_EARLY_SHARE = 0.7
"""Of the generations, that a part of many examples is enough for."""
_MOST_INFLATION = 3.0


class Minimised(eqx.Module):
    """A surrogate whose scores all want to be small: what the search sees.

    Scores are made worse by `CAUTION` standard deviations. A search for the best predicted
    merges otherwise ends where the surrogate is most wrong, far from all samples.
    """

    surrogate: Any
    domain: Domain
    signs: Float[ArrayLike, " tasks"]

    def __call__(
        self, coefficients: Float[Array, " coefficients"]
    ) -> Float[Array, " tasks"]:
        """Predict the scores of one merge, negated where they are to be maximised."""
        placed = self.domain.place(coefficients)
        doubt = jnp.nan_to_num(self.surrogate.std(placed))
        return self.surrogate(placed) * self.signs + CAUTION * doubt


def trace(
    surrogate: Any,
    signs: np.ndarray,
    domain: Domain,
    *,
    num_points: int,
    num_generations: int,
    rough: bool,
    start: np.ndarray,
    key: PRNGKey,
) -> Front:
    """Evolve a front, then follow its gradient where there is one.

    Args:
        surrogate: From coefficients to scores.
        signs: What makes every score one to minimise.
        domain: Where to search.
        num_points: About how many points to trace.
        num_generations: Generations of the search.
        rough: Whether the front only leads to the next: a fifth of the effort is enough
            where a gradient finishes the search. Without one, what was proposed then was
            worth less, and the search takes all its generations.
        start: Points to begin from, possibly none.
        key: A typed key.
    """
    from mapjax import search  # evosax and flax behind it load only when needed

    share = _ROUGH_SHARE if rough else 1.0
    objective = Minimised(surrogate, domain, signs)
    towards = pareto.reference_directions(len(signs), num_points)
    algorithm = search.NSGA3(
        population_size=num_points,
        num_coefficients=len(domain.lower),
        num_objectives=len(signs),
        reference_directions=towards,
    )

    def evolve(objective: Minimised, generations: int, start: Any) -> Front:
        return search.evolve(
            *(objective, algorithm, generations),
            bounds=domain.box,
            key=key,
            start=start if len(start) else None,
            # With the population and the directions, nearly always of the usual size.
            archive_size=num_points * (2 if len(signs) <= 3 else 4),
        )

    left = (
        math.ceil(num_generations * share) if surrogate.differentiable else num_generations
    )
    part = getattr(surrogate, "part", None)
    if part is not None:
        early = int(_EARLY_SHARE * left)
        found = evolve(Minimised(part, domain, signs), early, start)
        kept = pareto.spread_subset(found.scores, num_points)
        left, start = left - early, np.asarray(found.coefficients)[kept]
    found = evolve(objective, left, start)
    if surrogate.differentiable:
        found = search.polish(
            objective,
            padded(np.asarray(found.coefficients), USUAL_POINTS),
            towards,
            bounds=domain.box,
            num_steps=int(_NUM_STEPS * share),
        )
    # The search was cautious; the front is of the scores themselves.
    return predicted_front(surrogate, signs, domain.place(found.coefficients))


def predicted_front(surrogate: Any, signs: np.ndarray, coefficients: Any) -> Front:
    """Predict scores, and keep the merges that no other dominates."""
    coefficients = np.asarray(coefficients)
    scores = np.asarray(surrogate(padded(coefficients, USUAL_POINTS)))[: len(coefficients)]
    kept = np.asarray(pareto.non_dominated(scores * signs))
    return Front(jax.device_put(coefficients[kept]), jax.device_put(scores[kept]))


def with_doubt(front: Front, surrogate: Any, signs: np.ndarray, key: PRNGKey) -> Front:
    """Say how sure the points of a predicted front are."""
    points, room = len(front), padded(np.asarray(front.coefficients), USUAL_POINTS)
    std = np.asarray(surrogate.std(room))[:points]
    errors = np.asarray(surrogate.errors(room, NUM_DRAWS, key=key))
    draws = np.full_like(errors, np.inf)  # what only fills up dominates nothing
    draws[:, :points] = (np.asarray(front.scores) + errors[:, :points]) * signs
    probability = np.asarray(pareto.probability_non_dominated(draws))[:points]
    doubt = map(jax.device_put, (std, probability))
    return Front(front.coefficients, front.scores, *doubt)


def importance(values: np.ndarray) -> np.ndarray:
    """Say how much each sample matters: by how near it comes to the best for someone.

    The mean over preferences of exp(-4 gap), with the gap to the best sample for a
    preference in standard deviations of all samples.

    Args:
        values: What each preference makes of each sample, minimised, `[samples,
            preferences]`; NaN where a score is missing.
    """
    spread = np.nanstd(values, axis=0)
    gap = (values - np.nanmin(values, axis=0)) / np.where(spread > 0, spread, 1.0)
    return np.nan_to_num(np.exp(-4 * gap)).mean(axis=1)


def inflation(missed: np.ndarray, std: np.ndarray, before: float) -> float:
    """Say what to scale standard deviations by, after what predictions were off by.

    Args:
        missed: What was measured, less what was predicted.
        std: Its standard deviations, scaled by `before`.
        before: The last such factor; at first 1.
    """
    surprise = missed / np.where(std > 0, std / before, np.nan)
    surprise = surprise[np.isfinite(surprise)]
    if not surprise.size:
        return before
    # A few points say little, so that what was seen before counts as much.
    seen = np.sqrt((np.mean(surprise**2) + before**2) / 2)
    return float(np.clip(seen, 1.0, _MOST_INFLATION))
