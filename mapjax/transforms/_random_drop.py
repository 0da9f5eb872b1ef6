"""DARE and DELLA: drop entries at random and rescale what stays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mapjax._jit import jit
from mapjax._keys import check_key
from mapjax._tensors import edit_tensors
from mapjax._types import PRNGKey, widened
from mapjax.task_vectors import TaskVectors
from mapjax.transforms._checks import check_density, check_number, check_real
from mapjax.transforms._elect import disjoint_mean
from mapjax.transforms._order_statistics import standings


def dare(task_vectors: TaskVectors, *, density: float = 0.1, key: PRNGKey) -> TaskVectors:
    r"""Drop entries at random and rescale the others, so that the mean stays (DARE).

    Every entry of every $\tau_i$ is kept with probability `density`, on its own, and then
    divided by it: $\tau'_i = m_i \tau_i / \mathrm{density}$.

    Needs nothing but the vectors. Costs half a random number an entry. Fine-tuned language
    models hardly change under it, and sparse vectors collide less; compose it with others,
    as `ties(dare(task_vectors, key=key))` does. Coefficients of one give the sum of the
    sparse vectors, DARE with task arithmetic at a scale of one.

    In float16, what is divided by its probability may overflow: keep such vectors wider,
    with `TaskVectors.from_params(..., dtype=jnp.float32)`.

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
    return edit_tensors(task_vectors, _dare, jnp.asarray(density, jnp.float32), key)


@jit
def _dare(vectors: list[Array], density: Array, key: PRNGKey) -> list[Array]:
    def drop(v: Array, key: PRNGKey) -> Array:
        return _drop(widened(v), density, key).astype(v.dtype)

    return _each_task(vectors, key, drop)


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

    Needs nothing but the vectors. Costs a few passes over them and half a random number an
    entry. For what DARE is for, where magnitudes say which entries matter. Coefficients of
    one give DELLA with a scale of one. The paper ranks the entries of each output neuron
    apart; here they are ranked within the tensor, whatever its layout, and magnitudes that
    agree to 0.4 % share their mean rank.

    In float16, what is divided by its probability may overflow: keep such vectors wider,
    with `TaskVectors.from_params(..., dtype=jnp.float32)`.

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
    density_and_window = jnp.asarray([density, window], jnp.float32)
    return edit_tensors(task_vectors, _della, density_and_window, key)


@jit
def _della(vectors: list[Array], density_and_window: Array, key: PRNGKey) -> list[Array]:
    density, window = density_and_window

    def drop(v: Array, key: PRNGKey) -> Array:
        standing, kind = standings(jnp.abs(v))
        keep = density + window * (standing - 0.5)
        return _drop(widened(v), keep[kind], key)

    sparse = _each_task(vectors, key, drop)
    return [disjoint_mean(s).astype(v.dtype) for s, v in zip(sparse, vectors, strict=True)]


def _each_task(
    vectors: list[Array], key: PRNGKey, edit: Callable[[Array, PRNGKey], Array]
) -> list[Array]:
    """Edit each vector with a key of its own, on the CPU one after the other.

    All at once, the random numbers would take the memory of the vectors several times there;
    an accelerator makes them where they are used.
    """
    keys = jax.random.split(key, len(vectors))
    return [
        lax.platform_dependent(
            v,
            jax.random.split(key, len(v)),
            cpu=lambda v, keys: lax.map(lambda row: edit(*row), (v, keys)),
            default=jax.vmap(edit),
        )
        if v.size
        else v
        for v, key in zip(vectors, keys, strict=True)
    ]


def _drop(v: Array, keep: Float[Array, "..."], key: PRNGKey) -> Array:
    """Keep entries with the given probability, divided by it."""
    *shape, last = v.shape or (1,)
    # One word decides about two entries, once as it is and once with its halves exchanged:
    # both are uniform, and one says nothing of the other but where halves agree by chance.
    words = jax.random.bits(key, (*shape, (last + 1) // 2), jnp.uint32)
    words = jnp.concatenate([words, (words << 16) | (words >> 16)], axis=-1)
    words = words[..., :last].reshape(v.shape)
    uniform = (words >> 8).astype(jnp.float32) * 2**-24
    return jnp.where(uniform < keep, v / keep, 0)
