"""NSGA-III's association of points with reference directions, and its niching."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mapjax._algebra import matmul


def associate(
    columns: Float[Array, "objectives points"],
    directions: Float[Array, "directions objectives"],
) -> tuple[Int[Array, " points"], Float[Array, " points"]]:
    """Find the reference direction nearest to each point, by perpendicular distance.

    Args:
        columns: Objectives, normalised: the ideal point at the origin.
        directions: Of length one.

    Returns:
        Index of the nearest direction, and squared distance from it.
    """
    # The squared distance is |f|^2 - (f.w)^2, smallest for the largest f.w, as none is
    # negative.
    along = matmul(directions, columns)
    furthest = jnp.max(along, axis=0)
    # On CPUs an argmax takes three times as long as a maximum and a search for it.
    index = jnp.arange(len(directions))[:, None]
    index = jnp.max(jnp.where(along == furthest, index, 0), axis=0)
    return index, jnp.sum(columns**2, axis=0) - furthest**2


def niche_levels(
    niche: Int[Array, " points"],
    distance: Float[Array, " points"],
    selected: Bool[Array, " points"],
    candidate: Bool[Array, " points"],
    draw: Float[Array, " points"],
) -> Float[Array, " points"]:
    """Count the members that each candidate's niche has when its turn comes.

    Deb and Jain give away places one by one, each to a niche with the fewest members: to
    its closest candidate if it is empty, else to a random one. So the candidates of a
    niche with r members come at levels r, r + 1, ..., and lower levels come first.
    Candidates taken in the order of their levels, at random within a level, are chosen
    just as they are by that loop.

    Args:
        niche: Index of each point's direction.
        distance: From that direction.
        selected: Which points are on fronts that fit as a whole.
        candidate: Which points are on the front that does not.
        draw: Random numbers inside (0, 1).

    Returns:
        Levels of the candidates; other entries mean nothing.
    """
    # Comparisons of floats are vectorised with the others; those of integers are not.
    niche_number = niche.astype(draw.dtype)

    def count_earlier(turn):
        earlier = turn[:, None] < turn
        together = niche_number[:, None] == niche_number
        # On CPUs a product with ones takes a third of the time of a sum.
        return jnp.ones_like(turn) @ jnp.where(earlier & together, 1.0, 0.0)

    def queue(turn):
        return jnp.where(selected, -jnp.inf, jnp.where(candidate, turn, jnp.inf))

    # One count answers both: is the niche empty, and is this its closest candidate?
    closest_of_empty = count_earlier(queue(distance)) == 0
    return count_earlier(queue(jnp.where(closest_of_empty, 0, draw)))
