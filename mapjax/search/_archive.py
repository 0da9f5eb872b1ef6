"""An archive of fixed size: for each of many weights, the best point so far."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._jit import lenient
from mapjax.pareto import reference_directions
from mapjax.search._scalarize import LEAST_WEIGHT, max_product


def archive_weights(num_objectives: int, size: int) -> np.ndarray:
    """Spread weights for an archive: half of them evenly, the others as their squares.

    Squares lie nearer to the ends of the simplex, where fronts are steep. Together they
    lead to as much hypervolume as twice as many even ones, which take longer to make.

    Args:
        num_objectives: How many objectives, at least 2.
        size: How many weights, at least 1.

    Returns:
        Weights above zero, `[size, objectives]`.
    """
    even = np.asarray(reference_directions(num_objectives, (size + 1) // 2))
    squares = even**2 / np.sum(even**2, axis=1, keepdims=True)
    return np.maximum(np.concatenate([even, squares])[:size], LEAST_WEIGHT)


class Archive(eqx.Module):
    """The best point so far for each vector of weights, by Tchebycheff scalarisation.

    A population forgets good points; an archive of everything non-dominated grows without
    end. This one keeps its size, costs one small product a generation, and what it holds
    is spread by the weights.

    Attributes:
        coefficients: In the unit box.
        scores: Their objectives; infinite where there is no point yet.
    """

    coefficients: Float[Array, "points coefficients"]
    scores: Float[Array, "points objectives"]

    @lenient
    def update(
        self,
        coefficients: Float[Array, "population coefficients"],
        scores: Float[Array, "population objectives"],
        *,
        weights: Float[Array, "objectives points"],
        ideal: Float[Array, " objectives"],
        nadir: Float[Array, " objectives"],
    ) -> "Archive":
        """Let new points replace old ones that are worse for the same weights.

        Args:
            coefficients: Of the new points.
            scores: Without NaN; infinite where an evaluation failed.
            weights: Above zero, one column for each place in the archive.
            ideal: The ideal point.
            nadir: The nadir point; with the ideal point it makes objectives comparable.
        """
        width = jnp.where(nadir > ideal, nadir - ideal, 1)
        mine = jnp.max((self.scores - ideal) / width * weights.T, axis=1)
        theirs = max_product((scores - ideal) / width, weights)
        best = jnp.min(theirs, axis=0)
        # On CPUs an argmin takes three times as long as a minimum and a search for it.
        index = jnp.arange(len(scores), dtype=scores.dtype)[:, None]
        index = jnp.max(jnp.where(theirs == best, index, 0), axis=0).astype(int)
        better = (best < mine)[:, None]
        return Archive(
            jnp.where(better, coefficients[index], self.coefficients),
            jnp.where(better, scores[index], self.scores),
        )
