"""DARE and DELLA: drop entries at random and rescale what stays."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mapjax._keys import check_key
from mapjax._tensors import (
    edit_each,
    map_by_shape,
    replace_tensors,
    tensors,
)
from mapjax._types import PRNGKey
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_density, check_number, check_real
from mapjax.transforms._elect import disjoint_mean
from mapjax.transforms._order_statistics import ranks


def dare(task_vectors: TaskVectors, *, density: float = 0.1, key: PRNGKey) -> TaskVectors:
    r"""Drop entries at random and rescale the others, so that the mean stays (DARE).

    Every entry of every $\tau_i$ is kept with probability `density`, on its own, and then
    divided by it: $\tau'_i = m_i \tau_i / \mathrm{density}$.

    Needs nothing but the vectors. Costs one random number an entry. Fine-tuned language
    models hardly change under it, and sparse vectors collide less; compose it with others,
    as `ties(dare(task_vectors, key=key))` does. Coefficients of one give the sum of the
    sparse vectors, DARE with task arithmetic at a scale of one.

    Args:
        task_vectors: The base and the vectors.
        density: The probability of keeping an entry, in (0, 1]; the paper drops 90 %.
        key: The same key drops the same entries, on any number of devices.

    Returns:
        Task vectors whose sum is the published merge with a scale of one.

    Raises:
        ValueError: If `density` is outside (0, 1] or `key` is not one typed key.

    Example:
        >>> import jax, jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(1000), [jnp.ones(1000)])
        >>> sparse = mj.transforms.dare(tv, density=0.25, key=jax.random.key(0))
        >>> float(sparse.vectors.max()), bool(abs(sparse.vectors.mean() - 1) < 0.2)
        (4.0, True)

    References:
        Yu et al., *Language Models are Super Mario: Absorbing Abilities from Homologous
        Models as a Free Lunch*, ICML 2024, arXiv 2311.03099.
    """
    check_density(density)
    check_key(key)
    vectors = list(tensors(task_vectors).values())
    edited = _dare(vectors, jnp.asarray(density, jnp.float32), key)
    return replace_tensors(task_vectors, edited)


@eqx.filter_jit
def _dare(vectors: list[Array], density: Array, key: PRNGKey) -> list[Array]:
    def edit(v: Array, uniform: Array) -> Array:
        return _drop(v, density, uniform)

    return edit_each(vectors, edit, _uniforms(vectors, key))


def della(
    task_vectors: TaskVectors,
    *,
    density: float = 0.5,
    window: float = 0.2,
    key: PRNGKey,
) -> TaskVectors:
    r"""Drop small entries more often than large ones, then elect signs (DELLA).

    The entry of $\tau_i$ with the $r$-th smallest of $n$ magnitudes of its tensor,
    $r = 0, \dots, n - 1$, is kept with probability
    $\mathrm{density} + \mathrm{window} \, ((r + 1/2) / n - 1/2)$ and divided by it. What
    stays is elected and averaged as in `ties`.

    Needs nothing but the vectors. Costs a sort of each tensor and one random number an
    entry. For what DARE is for, where magnitudes say which entries matter. Coefficients of
    one give DELLA with a scale of one. The paper ranks the entries of each output neuron
    apart; here they are ranked within the tensor, whatever its layout.

    Args:
        task_vectors: The base and the vectors.
        density: The mean probability of keeping an entry, in (0, 1].
        window: How much the probability grows from the smallest entry to the largest, from
            0 to where it would leave [0, 1]. The paper tunes both.
        key: The same key drops the same entries, on any number of devices.

    Returns:
        Task vectors whose sum is the published merge.

    Raises:
        ValueError: If `density` is outside (0, 1], `window` leaves the range of a
            probability, `key` is not one typed key, or a tensor is complex.

    Example:
        >>> import jax, jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(1000), [jnp.arange(1000.0)])
        >>> sparse = mj.transforms.della(tv, density=0.5, window=1.0, key=jax.random.key(0))
        >>> kept = (sparse.vectors[0] > 0).reshape(2, 500).mean(1)
        >>> bool(kept[0] < 0.3), bool(kept[1] > 0.7)
        (True, True)

    References:
        Deep et al., *DELLA-Merging: Reducing Interference in Model Merging through
        Magnitude-Based Sampling*, 2024, arXiv 2406.11617.
    """
    check_density(density)
    check_number("window", window)
    most = 2 * min(density, 1 - density)
    if not 0 <= window <= most:
        raise ValueError(
            f"`window` is {window}, but with `density` {density} it must be from 0 to "
            f"{most:.6g}, so that {density} plus or minus half of it is a probability."
        )
    check_key(key)
    check_real(task_vectors, "della")
    vectors = list(tensors(task_vectors).values())
    edited = _della(vectors, jnp.asarray([density, window], jnp.float32), key)
    return replace_tensors(task_vectors, edited)


@eqx.filter_jit
def _della(vectors: list[Array], density_and_window: Array, key: PRNGKey) -> list[Array]:
    density, window = density_and_window

    def edit(v: Array, uniform: Array, rank: Array) -> Array:
        place = (rank + 0.5) / rank.shape[1]
        keep = density + window * (place - 0.5)
        return disjoint_mean(_drop(v, keep.reshape(v.shape), uniform))

    places = map_by_shape(ranks, [jnp.abs(v).reshape(v.shape[0], -1) for v in vectors])
    return edit_each(vectors, edit, _uniforms(vectors, key), places)


def _uniforms(vectors: list[Array], key: PRNGKey) -> list[Array]:
    """Draw a number from 0 to 1 for each entry."""
    keys = list(jax.random.split(key, len(vectors)))
    return map_by_shape(lambda key, v: jax.random.uniform(key, v.shape), keys, vectors)


def _drop(v: Array, keep: Array, uniform: Array) -> Array:
    """Keep entries with the given probability, divided by it."""
    return jnp.where(uniform < keep, v / keep, 0)
