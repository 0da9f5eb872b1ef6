"""Who is merged with whom: the closest two, or as the user says."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mapjax._types import ArrayLike
from mapjax.evaluation import Evaluator
from mapjax.task_vectors import TaskVectors

PAIRINGS = ("scores", "cosine")


def read_pairing(pairing: Any, names: Sequence[str]) -> Any:
    """Return a name of `PAIRINGS`, or a tree of pairs of indices.

    Raises:
        ValueError: If it is neither, or an expert is unknown, missing or there twice.
    """
    if isinstance(pairing, str) and pairing in PAIRINGS:
        return pairing
    if isinstance(pairing, str) or not isinstance(pairing, Sequence):
        raise ValueError(
            f"`pairing` is {pairing!r}; use 'scores', 'cosine' or nested pairs of experts, "
            f"such as {(tuple(names[:2]), *names[2:3])}."
        )
    found: list[int] = []
    tree = _as_pairs(pairing, list(names), found)
    wrong = sorted(names[i] for i in range(len(names)) if found.count(i) != 1)
    if wrong:
        raise ValueError(
            f"`pairing` must hold every expert once, but {wrong} are missing or come twice. "
            f"The experts are {list(names)}."
        )
    return tree


def closest_pairs(distances: ArrayLike) -> tuple[list[tuple[int, int]], list[int]]:
    """Pair the closest two, then the closest two of the others, and so on.

    Args:
        distances: Symmetric, `[items, items]`.

    Returns:
        The pairs, and the one item that is left over if their number is odd.
    """
    d = np.array(distances, float)
    d[np.tril_indices(len(d))] = np.inf  # each pair once
    left, pairs = list(range(len(d))), []
    while len(left) > 1:
        part = d[np.ix_(left, left)]
        i, j = np.unravel_index(np.argmin(part), part.shape)
        pairs.append((left[i], left[j]))
        left = [k for k in left if k not in pairs[-1]]
    return pairs, left


def pairs_of_tree(tree: Any, items: Sequence[Any]) -> tuple[list[tuple[int, int]], list]:
    """List which of the items are siblings in a tree, as `closest_pairs` does."""
    places = {item: place for place, item in enumerate(items)}
    pairs: list[tuple[int, int]] = []

    def visit(node: Any) -> None:
        if node in places or not isinstance(node, tuple):
            return
        if all(child in places for child in node):
            pairs.append((places[node[0]], places[node[1]]))
            return
        for child in node:
            visit(child)

    visit(tree)
    used = {place for pair in pairs for place in pair}
    return pairs, [place for place in range(len(items)) if place not in used]


def gram_matrix(evaluate: Any) -> np.ndarray:
    """Give the scalar products of the task vectors of an `Evaluator`.

    Raises:
        ValueError: If there are none.
    """
    rule = evaluate.rule if isinstance(evaluate, Evaluator) else None
    vectors = (getattr(rule, "args", None) or (None,))[0]
    if not isinstance(vectors, TaskVectors):
        raise ValueError(
            "`pairing` is 'cosine', which compares task vectors, but `evaluate` is not a "
            "`mapjax.Evaluator` of a `mapjax.TaskVectors`. Use 'scores', or give the pairs."
        )
    norms = np.asarray(vectors.norms(), float)
    return np.asarray(vectors.cosine_similarity(), float) * norms * norms[:, None]


def _as_pairs(node: Any, names: list[str], found: list[int]) -> Any:
    """Turn nested sequences into nested pairs: longer ones are halved."""
    if isinstance(node, str) or not isinstance(node, Sequence):
        index: Any = names.index(node) if node in names else node
        if isinstance(index, bool) or index not in range(len(names)):
            raise ValueError(
                f"`pairing` names {node!r}, which is no expert. The experts are {names}; "
                "their indices count too."
            )
        found.append(index)
        return index
    if not node:
        raise ValueError("`pairing` holds an empty group. Leave it out.")
    children = [_as_pairs(child, names, found) for child in node]
    while len(children) > 1:
        rest = children[len(children) // 2 * 2 :]
        pairs = zip(children[:-1:2], children[1::2], strict=False)
        children = [*pairs, *rest]
    return children[0]
