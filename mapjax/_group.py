"""Coefficients per task and block: which tensors go together."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mapjax import _tree
from mapjax._layers import layer_numbers
from mapjax._tensors import kept_tensors
from mapjax.task_vectors import Group, TaskVectors


def group(
    task_vectors: TaskVectors,
    by: Any,
    *,
    rest: str | None = "rest",
) -> TaskVectors:
    r"""Give every expert one coefficient per group of tensors.

    Tensor $l$ of a merge is then $\theta_0^{(l)} + \sum_i c_{i g(l)} v_i^{(l)}$ with its
    group $g(l)$. `mapjax.merge` takes `[experts, groups]`; an `Evaluator` and the drivers
    take that row by row, `[candidates, experts * groups]`, with the coefficients of one
    expert side by side. Ones in all groups of an expert give the expert.

    Args:
        task_vectors: The base and the vectors.
        by: "depth", a group `layer<n>` for each number of a layer in key paths such as
            `['block_3']['w']`; "tensor", a group for each tensor, named by its key path;
            one or more regular expressions, each a group of the tensors in whose key path
            it is found (`re.search`) and none before it is; a mapping from names to such
            expressions; or a function from a key path to the name of a group, None for
            the rest.
        rest: Name of the last group, of the tensors that are in no other. None to raise an
            error if there are any.

    Returns:
        The same task vectors with `groups`; old ones are replaced.

    Raises:
        ValueError: If a group is empty, a name comes twice, no tensor has a layer number,
            an expression cannot be read, or tensors are left and `rest` is None.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> base = {"embed": jnp.zeros(2), "head": jnp.zeros(3)}
        >>> expert = {"embed": jnp.ones(2), "head": jnp.ones(3)}
        >>> tv = group(mj.TaskVectors.from_params(base, {"mnist": expert}), "embed")
        >>> tv.coefficient_names
        ('mnist/embed', 'mnist/rest')
        >>> mj.merge(tv, [[0.5, 1.0]])["embed"].tolist()
        [0.5, 0.5]

    References:
        Yang et al., *AdaMerging: Adaptive Model Merging for Multi-Task Learning*, ICLR
        2024, arXiv 2310.02575 (layer-wise coefficients).
    """
    paths = list(kept_tensors(task_vectors))
    members = _members(by, paths)
    empty = [name for name, found in members.items() if not found]
    if empty:
        raise ValueError(
            f"`by` has no tensor in {empty}: no key path that is not taken before matches. "
            f"The tensors are {_tree.some(paths)}."
        )
    left = [path for path in paths if path not in set().union(*members.values())]
    if left and rest is None:
        raise ValueError(
            f"`by` leaves {_tree.some(left)} in no group. Add one for them, or pass `rest`, "
            "the name of a group of all that is left."
        )
    if left and rest in members:
        raise ValueError(
            f"`by` has a group {rest!r} already, but {_tree.some(left)} are left. Pass another "
            "name as `rest`."
        )
    if left:
        members[str(rest)] = left
    groups = tuple(Group(name, tuple(found)) for name, found in members.items())
    return dataclasses.replace(task_vectors, groups=groups)


def _members(by: Any, paths: list[str]) -> dict[str, list[str]]:
    """List the tensors of every group, in the order of the groups."""
    if isinstance(by, str) and by == "tensor":
        return {path: [path] for path in paths}
    if isinstance(by, str) and by == "depth":
        numbers = layer_numbers(paths)
        known = sorted({n for n in numbers.values() if n is not None})
        if not known:
            raise ValueError(
                "`by` is 'depth', but no key path has the number of a layer: "
                f"{_tree.some(paths)}. Pass patterns, or a function of the key path."
            )
        return {f"layer{n}": [p for p in paths if numbers[p] == n] for n in known}
    if callable(by):
        return _by_function(by, paths)
    return _by_patterns(_patterns(by), paths)


def _by_function(by: Callable[[str], Any], paths: list[str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for path in paths:
        name = by(path)
        if name is not None and not isinstance(name, str):
            raise ValueError(
                f"`by` returned {name!r} for {path}: return the name of a group, a string, "
                "or None for the rest."
            )
        if name is not None:
            members.setdefault(name, []).append(path)
    return members


def _by_patterns(
    patterns: dict[str, list[re.Pattern]], paths: list[str]
) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {name: [] for name in patterns}
    for path in paths:
        for name, each in patterns.items():
            if any(pattern.search(path) for pattern in each):
                members[name].append(path)
                break
    return members


def _patterns(by: Any) -> dict[str, list[re.Pattern]]:
    if isinstance(by, str):
        by = [by]
    if isinstance(by, Sequence):
        if len(set(by)) < len(by):
            raise ValueError(f"`by` holds a pattern twice: {list(by)}.")
        by = {each: each for each in by}
    if not isinstance(by, Mapping) or not by:
        raise ValueError(
            f"`by` is {by!r}; pass 'depth', 'tensor', one or more regular expressions, a "
            "mapping from names to such, or a function of a key path."
        )
    found = {}
    for name, given in by.items():
        each = (
            given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        )
        try:
            found[str(name)] = [re.compile(pattern) for pattern in each]
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`by` has {given!r} for group {name!r}, which is no regular expression: "
                f"{error}. `re.escape` takes text as it is."
            ) from error
    return found
