"""Where a driver may go: a box of coefficients, or the mixtures of the experts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mapjax._checks import read_bounds
from mapjax._types import ArrayLike, PRNGKey
from mapjax.design import make_design, to_simplex
from mapjax.evaluation import Problem

_NEAREST = 1e-3
_MOST_DRAWS = 10

IsKnown = Callable[[Any], np.ndarray]


class Domain(eqx.Module):
    """The coefficients that are sampled and searched.

    Attributes:
        lower: Lower end of each coefficient.
        upper: Upper end of each coefficient.
        num_experts: How many experts share the coefficients out.
        mixtures: Whether coefficients are to sum to one, in each group.
        design: Where to sample at first.
        by_preference: Whether coefficients are weights that a rule gives the experts, and
            each task has an expert of its name.
        repeats: How many groups a searched coefficient is for.
    """

    lower: Float[ArrayLike, " coefficients"]
    upper: Float[ArrayLike, " coefficients"]
    num_experts: int = eqx.field(static=True)
    mixtures: bool = eqx.field(static=True, default=False)
    design: str = eqx.field(static=True, default="multiscale")
    by_preference: bool = eqx.field(static=True, default=False)
    repeats: int = eqx.field(static=True, default=1)

    @property
    def box(self) -> tuple[Any, Any]:
        """Both ends of each coefficient."""
        return self.lower, self.upper

    @property
    def bounds(self) -> Any:
        """Both ends, or "simplex", as a design is told."""
        return "simplex" if self.mixtures else self.box

    @property
    def first(self) -> str:
        """What is evaluated besides the experts at first, in words."""
        return "uniform merge" if self.mixtures else "base"

    @property
    def num_first(self) -> int:
        """How many merges say enough for a first surrogate of outputs, if there are as many.

        The base or the uniform merge, and the experts; or all that "axial" knows of.
        """
        both_ways = self.mixtures and self.design == "axial"
        return 1 + self.num_experts * (2 if both_ways else 1)

    @property
    def num_tied(self) -> int:
        """How many sums of coefficients are fixed: one for each group, or none."""
        return len(self.lower) // self.num_experts if self.mixtures else 0

    def whole_experts(self) -> "Domain":
        """Give all groups of an expert one coefficient, where they have the same bounds."""
        ends = [np.asarray(end).reshape(self.num_experts, -1) for end in self.box]
        if any((end != end[:, :1]).any() for end in ends):
            return self
        lower, upper = (jnp.asarray(end[:, 0]) for end in ends)
        repeats = ends[0].shape[1]
        return dataclasses.replace(self, lower=lower, upper=upper, repeats=repeats)

    def place(
        self, searched: Float[ArrayLike, "*batch searched"]
    ) -> Float[Array, "*batch coefficients"]:
        """Make coefficients of what is searched: repeated, or scaled so as to sum to one."""
        placed = jnp.asarray(searched)
        if self.mixtures:
            placed = to_simplex(placed, self.num_experts)
        return placed if self.repeats == 1 else jnp.repeat(placed, self.repeats, axis=-1)

    def sample(self, count: int, key: PRNGKey) -> Float[Array, "points coefficients"]:
        """Make the design."""
        shape: dict[str, Any] = dict(bounds=self.bounds, num_experts=self.num_experts)
        return make_design(self.design, count, len(self.lower), key=key, **shape)

    def design_beside(self, count: int, key: PRNGKey, is_known: IsKnown) -> np.ndarray:
        """Make the design with other points in the place of known ones.

        The base, or the uniform mixture, and the experts stay.
        """
        first = 1 + self.num_experts
        return np.concatenate(self._parted(first, count - first, key, is_known))

    def fresh(self, count: int, key: PRNGKey, is_known: IsKnown) -> np.ndarray:
        """Draw points that are not known, beyond those that come first in every design."""
        if not count:
            return np.zeros((0, len(self.lower)), np.float32)
        return self._parted(self.num_first + 1, count, key, is_known)[1]

    def _parted(
        self, num_first: int, count: int, key: PRNGKey, is_known: IsKnown
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make a design, and part what comes first from as many others that are not known."""
        size = count
        for _ in range(_MOST_DRAWS):  # some designs repeat themselves
            points = np.asarray(self.sample(num_first + size, key))
            first, others = np.split(points, [num_first])
            others = others[~is_known(others)]
            if len(others) >= count:
                break
            size += count - len(others)
        return first, others[:count]

    def start(self, count: int, key: PRNGKey) -> np.ndarray:
        """Draw points for a search to begin from; none where those of the box will do.

        Points of the box crowd around the uniform mixture once they are scaled.
        """
        if not self.mixtures:
            return np.zeros((0, len(self.lower)), np.float32)
        return np.asarray(dataclasses.replace(self, design="dirichlet").sample(count, key))

    def is_new(self, candidates: np.ndarray, known: Any) -> np.ndarray:
        """Tell which candidates are neither known nor repeat an earlier one."""
        width = np.asarray(self.upper - self.lower)
        steps = np.abs((candidates[:, None] - np.asarray(known)) / width)
        first = np.zeros(len(candidates), bool)
        first[np.unique(candidates, axis=0, return_index=True)[1]] = True
        return first & (steps.max(axis=2).min(axis=1) > _NEAREST)


def read_domain(bounds: Any, problem: Problem, design: str | None = None) -> Domain:
    """Return the box or the simplex that is asked for, or else what the rule says."""
    asked = problem.bounds if bounds is None else bounds
    mixtures, usually_mixtures = (
        isinstance(b, str) and b == "simplex" for b in (asked, problem.bounds)
    )
    ends = read_bounds(
        (0.0, 1.0) if mixtures else asked,
        problem.num_coefficients,
        jnp.zeros(()).dtype,
        simplex=True,
    )
    weights = mixtures and usually_mixtures
    # A rule's design is for what it wants searched, and all mixtures are the same.
    if design is None and (bounds is None or weights):
        design = problem.design
    usual = "dirichlet" if mixtures else "multiscale"
    named = {*(problem.task_names or ())} <= {*problem.expert_names}
    lower, upper = (jnp.asarray(end) for end in ends)
    return Domain(
        lower, upper, problem.num_experts, mixtures, design or usual, weights and named
    )
