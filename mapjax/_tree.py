"""Flat views of parameter trees: key paths, which leaves merge, and clear errors."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

ROOT = "(root)"
"""The path of a tree that is nothing but a leaf."""

_STATISTICS = (["running_mean"], ["running_var"])  # as PyTorch calls those of BatchNorm


class Leaf(NamedTuple):
    """One leaf of a tree, where it stands and why it is not merged ("" if it is)."""

    path: str
    value: Any
    kept: str


def _is_statistic(node: Any) -> bool:
    """Recognise flax's BatchNorm statistics without importing flax."""
    return any(c.__name__ == "BatchStat" for c in type(node).__mro__)


def _why_kept(value: Any) -> str:
    if not eqx.is_array(value) and not isinstance(value, np.ndarray | np.generic):
        return "not an array"
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return f"extended dtype {value.dtype}"
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return f"{value.dtype} leaf"
    return ""


def leaves(tree: PyTree, *, statistics: bool = False) -> list[Leaf]:
    """List the leaves of a tree in order; `statistics` merges BatchNorm's as well."""
    found = []
    for path, node in jtu.tree_leaves_with_path(tree, is_leaf=_is_statistic):
        for subpath, value in jtu.tree_leaves_with_path(node):
            keys = (*path, *subpath)
            where = jtu.keystr(keys) or ROOT
            kept = _why_kept(value)
            if not kept:
                names = [jtu.keystr((key,), simple=True) for key in keys]
                kept = why_left(names, statistics=statistics)
            if not kept and not statistics and _is_statistic(node):
                kept = "batch statistics"
            found.append(Leaf(where, value, kept))
    return found


def why_left(names: Iterable[str], *, statistics: bool) -> str:
    """Say by its path why a leaf is not merged ("" if it is), alike in memory and on disk.

    Args:
        names: The keys on the way to it; flat names are cut at "." and "/".
        statistics: Whether those of BatchNorm are merged.
    """
    parts = [part for name in names for part in re.split(r"[./]", name)]
    if "opt_state" in parts:
        # Moments add up to no state of any training: a merged one can be negative.
        return "optimizer state"
    measured = "batch_stats" in parts or parts[-1:] in _STATISTICS
    return "batch statistics" if measured and not statistics else ""


def rebuild(tree: PyTree, values: list[Any]) -> PyTree:
    """Put new leaves into the structure of `tree`."""
    return jtu.tree_unflatten(jtu.tree_structure(tree), values)


def check_same_leaves(base: list[Leaf], expert: list[Leaf], name: str) -> None:
    """Refuse an expert whose leaves are not those of the base, naming the key path."""
    base_paths, paths = [a.path for a in base], [b.path for b in expert]
    known, found = set(base_paths), set(paths)
    missing = [p for p in base_paths if p not in found]
    extra = [p for p in paths if p not in known]
    if paths == [ROOT] != base_paths:
        raise ValueError(
            f"Expert {name!r} is {_what(expert[0].value)}, not a tree of parameters like "
            "the base. Pass `experts` as `{name: parameters, ...}` or as a list of "
            "parameters."
        )
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks {some(missing)}, which the base has")
        if extra:
            parts.append(f"has {some(extra)}, which the base lacks")
        hint = _hint(missing, extra, name)
        raise ValueError(f"Expert {name!r} {' and '.join(parts)}. {hint}")
    for a, b in zip(base, expert, strict=True):
        if type(a.value) in (int, float, bool) and b.kept:
            continue  # a step that `jit` made an array of: the base's is taken
        if (a.kept == "not an array") != (b.kept == "not an array"):
            raise ValueError(
                f"Leaf {a.path} is {_what(a.value)} in the base but {_what(b.value)} in "
                f"expert {name!r}. Both must be arrays, or neither."
            )
        if a.kept == "not an array":
            continue
        if np.shape(a.value) != np.shape(b.value):
            raise ValueError(
                f"Leaf {a.path} has shape {np.shape(b.value)} in expert {name!r} but "
                f"{np.shape(a.value)} in the base. Experts must be fine-tuned from this "
                "base; keep leaves that differ by task (such as heads) out of the tree."
            )
        if _kind(a.value) != _kind(b.value):
            raise ValueError(
                f"Leaf {a.path} has dtype {b.value.dtype} in expert {name!r} but "
                f"{a.value.dtype} in the base, and these cannot be merged. Cast one of "
                "them (floating-point leaves of different width are fine)."
            )


def _hint(missing: list[str], extra: list[str], name: str) -> str:
    """Guess what made two trees differ, from the key paths that only one of them has."""
    if any("lora_" in path.lower() for path in extra):
        return (
            "It holds LoRA adapters, which are no parameters of the base: make task vectors of "
            "them by `mapjax.from_lora`, or add each to the base and save that (PEFT's "
            "`merge_and_unload`)."
        )
    flat = None
    if set(missing) & _nested(extra):
        flat = f"expert {name!r}"
    elif set(extra) & _nested(missing):
        flat = "the base"
    if flat is not None:
        return (
            f"The names of {flat} are flat. Load it nested: `mapjax.io.load(path, "
            'separator=".")`, or `separator = "."` in the configuration.'
        )
    renamed = "Was a leaf renamed? " if missing and extra else ""
    return (
        f"{renamed}Give the base and every expert the same tree, for example by dropping "
        "heads before merging."
    )


def _nested(paths: list[str]) -> set[str]:
    """Write key paths as they are where flat names are split at "."."""
    return {path.replace(".", "']['") for path in paths}


def check_finite(leaf: Leaf, owner: str) -> None:
    """Refuse NaN and infinity in parameters; skipped for traced values."""
    if not leaf.kept and not is_finite(leaf.value):
        raise ValueError(
            f"Leaf {leaf.path} of {owner} holds NaN or infinite values, which would "
            "spread to every merge. Load another checkpoint or repair that leaf."
        )


def is_finite(x: Any) -> bool:
    """Tell whether no entry is NaN or infinite; of traced values this is taken as given."""
    return isinstance(x, Tracer) or bool(_all_finite(x))


def values_up_to(tree: PyTree, other: PyTree) -> list[Any]:
    """List what `other` holds in the places where `tree` has its leaves."""
    return jtu.tree_structure(tree).flatten_up_to(other)


@eqx.filter_jit
def _all_finite(x: Any) -> Any:
    return jnp.all(jnp.isfinite(x))


def _kind(x: Any) -> str:
    for kind in (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_):
        if jnp.issubdtype(x.dtype, kind):
            return kind.__name__
    return str(x.dtype)


def _what(x: Any) -> str:
    return "an array" if hasattr(x, "dtype") else f"a {type(x).__name__}"


def some(paths: list[str], most: int = 3) -> str:
    """Name a few key paths, and say how many more there are."""
    shown = ", ".join(paths[:most])
    return shown if len(paths) <= most else f"{shown} and {len(paths) - most} more"
