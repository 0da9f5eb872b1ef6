"""The files that a merge reads, and whether they fit each other."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mapjax import _tree
from mapjax._types import wide
from mapjax.io._msgpack import MsgpackCheckpoint
from mapjax.io._npz import NpzCheckpoint
from mapjax.io._orbax import OrbaxCheckpoint
from mapjax.io._tensor import AbstractCheckpoint, some
from mapjax.io._tied import RenamedCheckpoint, named_like

_UNSIGNED = np.dtype(ml_dtypes.float8_e8m0fnu)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The opened base and experts, which fit each other.

    Attributes:
        base: The base.
        experts: The experts.
        names: Their names.
        merged: The tensors to merge, in the order of the base's files.
        left_alone: The others, and why.
        dtype: What merged tensors are rounded to, but complex ones; None for the base's
            own.
    """

    base: AbstractCheckpoint
    experts: list[AbstractCheckpoint]
    names: tuple[str, ...]
    merged: tuple[str, ...]
    left_alone: dict[str, str]
    dtype: np.dtype | None

    def sums(self, name: str) -> np.dtype:
        """Say in which dtype a tensor is merged: float32 at least."""
        dtypes = [c.tensors[name].dtype for c in (self.base, *self.experts)]
        return functools.reduce(wide, dtypes, jnp.dtype(jnp.float32))

    def rounded(self, name: str) -> np.dtype:
        """Say which dtype a tensor is written in."""
        own = self.base.tensors[name].dtype
        if self.dtype is None or name not in self.merged or own.kind == "c":
            return own
        return self.dtype

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Number the merged tensors, whatever their order in the files."""
        return {name: i for i, name in enumerate(sorted(self.merged))}

    @property
    def doubles(self) -> bool:
        """Whether any tensor is merged in more than 32 bits."""
        single = (jnp.float32, jnp.complex64)
        return any(self.sums(name) not in single for name in self.merged)

    @property
    def workers(self) -> int:
        """How many pieces are under way at once."""
        if any(archive.compressed for archive in self._archives):
            return 1  # such an archive is read from front to back
        return max(2, min(4, len(os.sched_getaffinity(0))))

    @property
    def held(self) -> int:
        """How many bytes are held beside the pieces that are under way."""
        return sum(archive.held for archive in self._archives)

    @property
    def _archives(self) -> list[NpzCheckpoint]:
        opened = [self.base]
        for expert in self.experts:
            renamed = isinstance(expert, RenamedCheckpoint)
            opened.append(expert.checkpoint if renamed else expert)
        return [c for c in opened if isinstance(c, NpzCheckpoint)]


def read_experts(
    experts: Mapping[str, str | Path] | Sequence[str | Path],
) -> tuple[tuple[str, ...], list[Path]]:
    """Return names and paths of the experts."""
    if isinstance(experts, str | Path):
        raise ValueError(
            "`experts` is one path: pass a list of paths, or {name: path, ...}."
        )
    if isinstance(experts, Mapping):
        names, paths = tuple(experts), list(experts.values())
    else:
        paths = list(experts)
        names = tuple(f"expert_{i}" for i in range(len(paths)))
    if not paths:
        raise ValueError("There are no experts: pass at least one path.")
    return names, [Path(path) for path in paths]


def read_coefficients(coefficients: Any, names: tuple[str, ...]) -> np.ndarray:
    """Return one finite number per expert, in float64."""
    try:
        c = np.asarray(coefficients, np.float64)
    except (TypeError, ValueError):
        c = np.empty(0)
    if c.shape != (len(names),) or not np.isfinite(c).all():
        raise ValueError(
            f"`coefficients` is {coefficients}, but must be {len(names)} finite numbers, one "
            f"per expert in the order {names}."
        )
    return c


def check_inputs(
    base: AbstractCheckpoint,
    experts: list[AbstractCheckpoint],
    names: tuple[str, ...],
    *,
    statistics: bool,
    dtype: Any,
) -> Inputs:
    """Refuse experts that are not of this base.

    Raises:
        ValueError: If names, shapes or kinds of dtypes differ, nothing can be merged, a
            format cannot be read in parts, or `dtype` is not floating-point.
    """
    for opened in (base, *experts):
        if isinstance(opened, OrbaxCheckpoint | MsgpackCheckpoint):
            raise ValueError(
                f"{opened.path} is {opened.format}, which is not merged in pieces. Convert it, "
                "`mapjax.io.save('x.safetensors', mapjax.io.load(path))`, or merge in memory "
                "with `mapjax.merge`."
            )
    experts = [named_like(base, expert) for expert in experts]
    leaves = _leaves(base, list(base.tensors), statistics)
    for expert in experts:
        order = [n for n in base.tensors if n in expert.tensors]
        order += [n for n in expert.tensors if n not in base.tensors]
        _tree.check_same_leaves(
            leaves, _leaves(expert, order, statistics), str(expert.path)
        )
    kept = {leaf.path: leaf.kept for leaf in leaves if leaf.kept}
    merged = tuple(name for name in base.tensors if name not in kept)
    if not merged:
        raise ValueError(
            f"{base.path} has no tensor that can be merged, but {some(list(kept))}. Pass "
            "floating-point parameters."
        )
    if dtype is not None:
        try:
            dtype = np.dtype(dtype)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind == "O" or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                "`dtype` must be a floating-point dtype such as `jnp.bfloat16`, or None for "
                "those of the base."
            )
        if dtype == _UNSIGNED:
            raise ValueError(
                f"`dtype` is {dtype}, which has no sign and no zero: pass another one, such "
                "as `jnp.bfloat16`."
            )
    return Inputs(base, experts, names, merged, kept, dtype)


def _leaves(
    checkpoint: AbstractCheckpoint, order: list[str], statistics: bool
) -> list[_tree.Leaf]:
    found = []
    for name in order:
        info = checkpoint.tensors[name]
        kept = _tree.why_left([name], statistics=statistics)
        if not jnp.issubdtype(info.dtype, jnp.inexact):
            kept = f"{info.dtype} leaf"
        value = jax.ShapeDtypeStruct(info.shape, info.dtype)
        found.append(_tree.Leaf(name, value, kept))
    return found
