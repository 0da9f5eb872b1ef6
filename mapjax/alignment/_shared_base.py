"""Telling experts of one base from networks that were initialised on their own."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mapjax._jit import jit
from mapjax._tensors import base_tensors, tensors
from mapjax._types import wide
from mapjax.task_vectors import TaskVectors


class SharedBase(NamedTuple):
    r"""How near experts are to a base; true if all plainly come from it.

    Attributes:
        names: The experts.
        cosines: $\cos(\theta_i, \theta_0)$ of each: near 1 for what was fine-tuned from the
            base, near 0 for what was initialised on its own. 0 if one of them is zero.
        relative_norms: $\|\theta_i - \theta_0\| / \|\theta_0\|$ of each: well below 1, or
            near $\sqrt 2$.
        least_cosine: The cosine from which on a base counts as shared.
    """

    names: tuple[str, ...]
    cosines: tuple[float, ...]
    relative_norms: tuple[float, ...]
    least_cosine: float

    def __bool__(self) -> bool:
        return not self.strangers

    @property
    def strangers(self) -> tuple[str, ...]:
        """The experts that plainly do not come from the base."""
        each = zip(self.names, self.cosines, strict=True)
        return tuple(name for name, cosine in each if not cosine >= self.least_cosine)

    def __str__(self) -> str:
        """Say in a line for each expert how near it is."""
        return "\n".join(
            f"{name}: cosine {cosine:.3f} with the base, change {norm:.3f} of its norm"
            f"{', not from this base' if name in self.strangers else ''}"
            for name, cosine, norm in zip(*self[:3], strict=True)
        )


def shares_base(
    base: PyTree,
    experts: Mapping[str, PyTree] | Sequence[PyTree],
    *,
    least_cosine: float = 0.5,
) -> SharedBase:
    """Compare experts with the base that they are said to be fine-tuned from.

    All tensors with two axes or more are compared as one vector: scales that start as ones
    are alike in all networks. If there is none, all tensors are.

    Args:
        base: The pretrained parameters.
        experts: The fine-tuned parameters, by name or in order.
        least_cosine: From which cosine on a base counts as shared.

    Returns:
        The comparison: true if all experts share the base; print it for the numbers.

    Raises:
        ValueError: If the trees differ; see `TaskVectors.from_params`.

    Example:
        >>> import jax.numpy as jnp
        >>> base = jnp.array([[1.0, -2.0], [3.0, -4.0]])
        >>> print(shares_base(base, {"tuned": base + 0.1, "other": base[:, ::-1]}))
        tuned: cosine 0.999 with the base, change 0.037 of its norm
        other: cosine -0.933 with the base, change 1.966 of its norm, not from this base

    References:
        Neyshabur et al., *What is being transferred in transfer learning?*, NeurIPS 2020,
        arXiv 2008.11687.
    """
    tv = TaskVectors.from_params(base, experts)
    merged = list(zip(base_tensors(tv), tensors(tv).values(), strict=True))
    matrices = [(leaf, v) for leaf, v in merged if leaf.ndim > 1] or merged
    return compare_with_base(tv.names, np.asarray(_moments(matrices), float), least_cosine)


def compare_with_base(
    names: Sequence[str],
    sums: np.ndarray,
    least_cosine: float = 0.5,
) -> SharedBase:
    """Judge by sums over the numbers of each expert.

    Args:
        names: The experts.
        sums: `[3, experts]`, of base times base, base times change, and change times change.
        least_cosine: As in `shares_base`.
    """
    squares, dots, changes = sums
    norm = np.sqrt(squares)
    own = np.sqrt(np.maximum(squares + 2 * dots + changes, 0))
    product = norm * own
    cosines = (squares + dots) / np.where(product > 0, product, np.inf)
    relative = np.sqrt(changes) / np.where(norm > 0, norm, np.nan)
    return SharedBase(
        tuple(names), tuple(cosines.tolist()), tuple(relative.tolist()), least_cosine
    )


def check_shared_base(
    base: PyTree,
    experts: Mapping[str, PyTree] | Sequence[PyTree],
    *,
    least_cosine: float = 0.5,
) -> None:
    """Refuse experts that plainly do not come from the base.

    Args:
        base: The pretrained parameters.
        experts: The fine-tuned parameters, by name or in order.
        least_cosine: As in `shares_base`.

    Raises:
        ValueError: If there is one, with the cosines and what to do; or as `shares_base`.
    """
    found = shares_base(base, experts, least_cosine=least_cosine)
    if not found:
        raise ValueError(
            f"Experts {found.strangers} do not share the base: merging adds up what has "
            f"nothing to do with one another.\n{found}\nPass the checkpoint that they were "
            "fine-tuned from as the base; or, for networks trained from their own "
            "initialisations, align each with one of them first: see "
            "`mapjax.alignment.weight_matching`."
        )


@jit
def _moments(pairs: list[tuple[Array, Array]]) -> Float[Array, "3 tasks"]:
    """Sum base times base, base times change, and change times change, in a unit of theirs."""

    def flat(base: Array, v: Array) -> tuple[Array, Array]:
        dtype = wide(wide(base.dtype, v.dtype))
        return base.astype(dtype).reshape(1, -1), v.astype(dtype).reshape(len(v), -1)

    def largest(base: Array, v: Array) -> Array:
        return jnp.maximum(*(jnp.max(jnp.abs(x), axis=1, initial=0) for x in (base, v)))

    pairs = [flat(*pair) for pair in pairs]
    # Squares of very large and very small numbers are none in single precision.
    unit = functools.reduce(jnp.maximum, (largest(*pair) for pair in pairs))
    unit = jnp.where(unit > 0, unit, 1)[:, None]

    def rows(base: Array, v: Array) -> Array:
        base, v = base / unit, v / unit
        sums = [jnp.abs(base) ** 2, (base.conj() * v).real, jnp.abs(v) ** 2]
        return jnp.stack([jnp.sum(x, axis=1) for x in sums])

    return sum((rows(*pair) for pair in pairs[1:]), start=rows(*pairs[0]))
