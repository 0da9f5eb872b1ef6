"""What all rules share: coefficients become weights, and weights become parameters."""

import abc
import dataclasses
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mapjax import _tree
from mapjax._jit import jit
from mapjax._tensors import base_tensors, edit_tensors, per_task, sum_tasks, tensors
from mapjax._types import ArrayLike, widened
from mapjax.design import to_simplex
from mapjax.task_vectors import TaskVectors, group_numbers, read_coefficients
from mapjax.transforms._matrices import Shape


class MergeRule(eqx.Module):
    r"""A merge that is not linear: call it with coefficients, get parameters.

    Coefficients are weights of the experts. Only their proportions
    $w_i = c_i / \sum_j c_j$ matter, and negative ones count as zero. A one for a single
    expert gives that expert, up to the rounding of its difference, and zeros give the base.

    A rule is a pytree of its experts, and can be jitted, differentiated in the coefficients
    and batched: `jax.vmap(rule)(coefficients)`. Made by the functions of `mapjax.rules`.

    Attributes:
        task_vectors: The base and the vectors.
        data: What else the rule reads.
        change: From the weights `[tasks]`, the base and the vectors `[tasks, ...]` of
            every merged tensor, `data` and `shapes` to what is added to each tensor.
        shapes: How each merged tensor is a matrix; None if it is none.
        scales: Whether the change is multiplied by the sum of the coefficients.
    """

    task_vectors: TaskVectors
    data: PyTree
    change: Callable[..., list[Array]] = eqx.field(static=True)
    shapes: tuple[Shape | None, ...] = eqx.field(static=True)
    scales: bool = eqx.field(default=False, static=True)

    @property
    def num_coefficients(self) -> int:
        """How many coefficients the rule takes: one per expert, or expert and group."""
        return self.task_vectors.num_coefficients

    @property
    def coefficient_names(self) -> tuple[str, ...]:
        """The experts, or experts and groups, in the order of the coefficients."""
        return self.task_vectors.coefficient_names

    @property
    def label(self) -> str:
        """What tells this rule from others of the same experts, on every machine."""
        return f"{self.change.__qualname__}, shapes {self.shapes}, scales {self.scales}"

    @property
    def bounds(self) -> tuple[float, float] | str:
        """What drivers search by default: mixtures, where only proportions matter."""
        mixtures = not self.scales and self.task_vectors.num_tasks > 1
        return "simplex" if mixtures else (0.0, 1.0)

    def scaled(self) -> "MergeRule":
        r"""Let the sum of the coefficients scale the change from the base, as in `merge`.

        $\theta(c) = \theta_0 + (\sum_i c_i) (\text{rule}(c) - \theta_0)$: the same merges
        where coefficients sum to one, and continuous at zero. Over a box this is the wider
        family, and the one that a surrogate can follow; it holds merges beyond the mean,
        as task arithmetic does. At zero the derivative is that towards equal coefficients.

        Returns:
            The rule with the same experts.
        """
        return dataclasses.replace(self, scales=True)

    def __call__(self, coefficients: ArrayLike | Sequence[float]) -> PyTree:
        """Merge.

        Args:
            coefficients: One non-negative number per expert; with groups, that
                `mapjax.group` made, also one per expert and group, as in `mapjax.merge`.

        Returns:
            Parameters like the base: same tree and dtypes, computed in float32 at least.

        Raises:
            ValueError: If the number of coefficients is not the number of experts.
        """
        return _merge(self, read_coefficients(self.task_vectors, coefficients))


class AbstractPreferenceRule(eqx.Module):
    """A rule with a merge for every preference: its coefficients are the tasks' weights.

    Only their proportions count, and with none at all they are equal.
    """

    @property
    @abc.abstractmethod
    def coefficient_names(self) -> tuple[str, ...]:
        """The experts, in the order of the coefficients."""

    @abc.abstractmethod
    def merge(self, preference: Float[Array, " tasks"]) -> PyTree:
        """Merge for weights that sum to one."""

    @property
    def num_coefficients(self) -> int:
        """How many coefficients there are: the preference of each task."""
        return len(self.coefficient_names)

    @property
    def bounds(self) -> str:
        """What drivers search by default: preferences that sum to one."""
        return "simplex"

    @property
    def design(self) -> str:
        """Where drivers begin by default: around equal preferences.

        What most preferences want is nearly the middle, of which the corners tell little.
        """
        return "axial"

    def __call__(self, preference: ArrayLike | Sequence[float]) -> PyTree:
        """Merge for a preference; none at all counts as an equal one.

        Raises:
            ValueError: If there is not one number per expert.
        """
        names = self.coefficient_names
        if np.shape(preference) != (len(names),):
            raise ValueError(
                f"A preference of shape {np.shape(preference)} was given for the experts "
                f"{names}: pass one number for each, shape ({len(names)},). For a batch, "
                "use jax.vmap(rule)(coefficients)."
            )
        return self.merge(to_simplex(widened(jnp.asarray(preference))))


def dense(task_vectors: TaskVectors) -> TaskVectors:
    """Multiply out vectors that are kept as factors: a rule reads every entry."""
    return edit_tensors(task_vectors, lambda vectors: vectors)


@jit
def _merge(rule: MergeRule, c: Array) -> PyTree:
    tv = rule.task_vectors
    c = widened(c)
    c = jnp.where(c < 0, 0, c)  # which keeps NaN
    w, total = _proportions(c)
    if rule.scales:  # at zero, the change is towards equal coefficients
        w = jnp.where(total == 0, 1 / len(w), w)
    once = jnp.where(total == 0, 0.0, jnp.where(total > 0, 1.0, total))
    scale = jnp.sum(c, axis=0) if rule.scales else once
    groups = group_numbers(tv)

    def own(x: Array, path: str) -> Array:
        """Pick what belongs to the tensor's group, where groups have their own."""
        return x if c.ndim == 1 else x[..., groups[path]]

    named = tensors(tv)
    weights = [own(w, path) for path in named]
    bases = [widened(leaf) for leaf in base_tensors(tv)]
    vectors = [widened(v) for v in named.values()]
    changes = rule.change(weights, bases, vectors, rule.data, rule.shapes)
    steps = (own(scale, path) * x for path, x in zip(named, changes, strict=True))
    merged = [
        leaf if v is None else (widened(leaf) + next(steps)).astype(leaf.dtype)
        for leaf, v in zip(
            jax.tree.leaves(tv.base), _tree.values_up_to(tv.base, tv.vectors), strict=True
        )
    ]
    return _tree.rebuild(tv.base, merged)


def _proportions(c: Float[Array, "tasks ..."]) -> tuple[Array, Array]:
    """Divide coefficients by their sum; also return it, times a power of two."""
    # The sum of the largest numbers would be infinite, and the reciprocal that XLA divides
    # by flushed to zero. A power of two rounds nothing.
    c = jnp.where(jnp.max(c, axis=0) > 1, c * 0.5**64, c)
    total = jnp.sum(c, axis=0)
    return c / jnp.where(total == 0, 1, total), total


def weighted_sum(weights: Array, vectors: Float[Array, "tasks ..."]) -> Array:
    """Sum the vectors of a tensor with a weight for each."""
    return sum_tasks(per_task(weights, vectors) * vectors)
