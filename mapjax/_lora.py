"""Low-rank task vectors: from adapters, from dense vectors, and merged without a product."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from mapjax import _tree
from mapjax._algebra import matmul, norms, svd
from mapjax._checks import check_least
from mapjax._jit import jit
from mapjax._low_rank import Factored, LowRank
from mapjax._tensors import AT_ONCE
from mapjax._types import ArrayLike, wide, widened
from mapjax.task_vectors import TaskVectors, merge_leaves, read_coefficients


def from_lora(
    base: PyTree, adapters: Mapping[str, Mapping[str, Sequence[Any]]]
) -> TaskVectors:
    r"""Make task vectors of LoRA adapters, $v_i = \frac{\alpha}{r} A_i B_i$.

    They stay factors. Merges are those of the products, exactly, and hold one product at
    a time. Adapters of different rank go together, and one that an expert lacks counts as
    zero. Parameters without an adapter are those of the base.

    Args:
        base: The pretrained parameters.
        adapters: For each expert's name, by key path of a leaf such as `['layer_0']['w']`:
            `(A, B)` or `(A, B, alpha)`, whose product `A @ B` has the leaf's shape (the last
            axis of `A` and the first of `B` are the rank). Where kernels are `[in, out]`,
            `A` is `[in, rank]`; where they are `[out, in]`, as in PyTorch, the pair is
            `(lora_B, lora_A, alpha)`. Without `alpha` the product is taken as it is.

    Returns:
        The task vectors, with a `LowRank` for each leaf that has an adapter.

    Raises:
        ValueError: If there are no adapters or they have no names, a key path is unknown or
            its leaf cannot be merged, an entry has other than two or three parts, the shapes
            or the kinds of dtype do not fit, two experts split the axes of a leaf
            differently, or a factor, an alpha or the base is not finite.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> a, b = jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 0.0, 1.0]])
        >>> tv = from_lora({"w": jnp.zeros((2, 3))}, {"mnist": {"['w']": (a, b, 2.0)}})
        >>> mj.merge(tv, [0.5])["w"].tolist()
        [[1.0, 0.0, 1.0], [2.0, 0.0, 2.0]]

    References:
        Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022, arXiv
        2106.09685, eq. (3).
    """
    _check_mappings(adapters)
    leaves = _tree.leaves(base)
    for leaf in leaves:
        _tree.check_finite(leaf, "the base")
    known = {leaf.path: leaf for leaf in leaves}
    read = [
        {path: _read(name, path, entry, known) for path, entry in each.items()}
        for name, each in adapters.items()
    ]
    places = []
    for leaf in leaves:
        entries = [each.get(leaf.path) for each in read]
        _check_split(leaf.path, dict(zip(adapters, entries, strict=True)))
        places.append(_stack(entries) if any(e is not None for e in entries) else None)
    arrays = [leaf.value if leaf.kept else jnp.asarray(leaf.value) for leaf in leaves]
    names = tuple(str(name) for name in adapters)
    return TaskVectors(_tree.rebuild(base, arrays), _tree.rebuild(base, places), names)


def merge_factored(task_vectors: TaskVectors, coefficients: ArrayLike | Sequence) -> PyTree:
    r"""Merge, but leave low-rank leaves as factors: for `predict` to multiply by.

    Each such leaf is a `Factored`: `x @ leaf` is $x W_0 + \sum_i c_i (x A_i) B_i$. Under
    `jax.vmap` over coefficients no candidate has a dense leaf, and all of them share the
    product with $W_0$. So for `leaf @ x`, as layers of equinox multiply; those of flax work,
    but turn the leaf into a dense array first. As a rule:
    `mapjax.Evaluator(jax.tree_util.Partial(merge_factored, task_vectors), tasks,
    num_coefficients=task_vectors.num_coefficients)`.

    Args:
        task_vectors: With low-rank leaves; the others are merged as by `mapjax.merge`.
        coefficients: As for `mapjax.merge`.

    Returns:
        A tree like the base, with a `Factored` in the place of each low-rank leaf.

    Raises:
        ValueError: As `mapjax.merge`.

    Example:
        >>> import jax.numpy as jnp
        >>> pair = jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 0.0, 1.0]])
        >>> tv = from_lora({"w": jnp.ones((2, 3))}, {"mnist": {"['w']": pair}})
        >>> (jnp.ones(2) @ merge_factored(tv, [0.5])["w"]).tolist()
        [3.5, 2.0, 3.5]
    """

    def join(leaf: Array, c: Array, v: Array | LowRank) -> Any:
        if isinstance(v, LowRank):
            return Factored(leaf, v, c.astype(wide(leaf.dtype)))
        dtype = wide(leaf.dtype)
        total = jnp.tensordot(c.astype(dtype), v.astype(dtype), 1, precision="highest")
        return (leaf.astype(dtype) + total).astype(leaf.dtype)

    return merge_leaves(task_vectors, read_coefficients(task_vectors, coefficients), join)


def low_rank(
    task_vectors: TaskVectors,
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> TaskVectors:
    r"""Replace vectors of two axes or more by their best approximation of low rank.

    Truncates singular values. Tensors with more axes are read as matrices whose sides are
    as equal as can be. Tensors of one axis, and those whose factors would hold as many
    numbers as they do, stay dense. Each `LowRank` states its `error`, the share of each
    vector's norm that is lost. Takes a singular value decomposition of each vector, in
    batches of equal shape: cubic in the smaller side of a matrix.

    Args:
        task_vectors: The base and the vectors; adapters are multiplied out first.
        rank: How many singular values to keep of each vector.
        energy: Or what share of the sum of their squares, in (0, 1]: each tensor takes the
            least rank that is enough for all experts.

    Returns:
        The task vectors with factors, of the same dtype and in the same groups.

    Raises:
        ValueError: If not one of rank and energy is given, or it is out of range: a rank
            must not be larger than the smaller side of the largest matrix, and there must
            be a matrix.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros((4, 4)), {"mnist": jnp.ones((4, 4))})
        >>> low_rank(tv, energy=0.99).vectors.rank
        1

    References:
        Eckart & Young, *The approximation of one matrix by another of lower rank*,
        Psychometrika 1, 1936.
    """
    if (rank is None) == (energy is None):
        raise ValueError(f"`rank` is {rank} and `energy` is {energy}: pass one of them.")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"`energy` is {energy}, but must be a share in (0, 1].")
    check_least("rank", rank, 1)
    places = _tree.values_up_to(task_vectors.base, task_vectors.vectors)
    places = [v.dense() if isinstance(v, LowRank) else v for v in places]
    shapes = {
        i: _as_matrix(v.shape[1:])
        for i, v in enumerate(places)
        if v is not None and v.ndim > 2 and v.size and jnp.issubdtype(v.dtype, jnp.floating)
    }
    most = max((min(rows, columns) for _, rows, columns in shapes.values()), default=0)
    if rank is not None and not shapes:
        raise ValueError(
            f"`rank` is {rank}, but none of `task_vectors` is a floating-point matrix that "
            "could have one: leave them as they are."
        )
    if rank is not None and rank > most:
        raise ValueError(
            f"`rank` is {rank}, but must be from 1 to {most}, the smaller side of the largest "
            "matrix among the vectors."
        )
    batches: dict[Any, list[int]] = {}
    for i, (_, rows, columns) in shapes.items():
        batches.setdefault((rows, columns, places[i].dtype), []).append(i)
    for (rows, columns, _), members in batches.items():
        count = len(task_vectors.names)
        vectors = [places[i] for i in members]
        left, values, right = _decompose(vectors, (count, rows, columns))
        for k, i in enumerate(members):
            r = rank or _least_rank(np.asarray(values[k]), energy or 1.0)
            r = min(r, rows, columns)
            if r * (rows + columns) < rows * columns:
                places[i] = _truncate(
                    (left[k], values[k], right[k]), r, shapes[i][0], places[i]
                )
    vectors = _tree.rebuild(task_vectors.base, places)
    return TaskVectors(task_vectors.base, vectors, task_vectors.names, task_vectors.groups)


def _check_mappings(adapters: Any) -> None:
    """Refuse what is not a mapping of mappings, such as that of a single expert."""
    wanted = "pass `{name: {key path: (A, B, alpha)}}`, with a name for each expert."
    if not isinstance(adapters, Mapping):
        raise ValueError(f"`adapters` is a {type(adapters).__name__}: {wanted}")
    for name, each in adapters.items():
        if not isinstance(each, Mapping):
            raise ValueError(f"`adapters[{name!r}]` is a {type(each).__name__}: {wanted}")
    if not any(adapters.values()):
        raise ValueError(f"`adapters` is empty: {wanted}")


def _read(name: str, path: str, entry: Any, known: dict[str, _tree.Leaf]) -> tuple:
    """Read an adapter as arrays, or say why it does not fit the leaf it is for."""
    where = f"`adapters` of expert {name!r} for {path}"
    if path not in known:
        some = list(known)[:4]
        raise ValueError(f"{where}: the base has no such leaf. Its key paths are {some}...")
    leaf = known[path]
    if leaf.kept:
        raise ValueError(f"{where}: this leaf is not merged ({leaf.kept}).")
    if not isinstance(entry, Sequence) or len(entry) not in (2, 3):
        raise ValueError(f"{where} must be `(A, B)` or `(A, B, alpha)`.")
    try:
        factors = tuple(map(jnp.asarray, entry[:2]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: A and B must be arrays of numbers.") from error
    a, b = (x.shape for x in factors)
    if len(a) < 2 or len(b) < 2 or a[-1] != b[0] or (*a[:-1], *b[1:]) != leaf.value.shape:
        raise ValueError(
            f"{where}: factors of shapes {a} and {b} do not multiply to the leaf's "
            f"{leaf.value.shape}. Pass `(A, B)` with `A @ B` of that shape: for kernels "
            "[out, in] the pair is `(lora_B, lora_A)`."
        )
    if not a[-1]:
        raise ValueError(f"{where} is of rank 0: leave this entry out, which adds nothing.")
    for letter, factor in zip("AB", factors, strict=True):
        if jnp.iscomplexobj(factor) and not jnp.iscomplexobj(leaf.value):
            raise ValueError(
                f"{where}: {letter} is {factor.dtype}, but the leaf is {leaf.value.dtype}. "
                "Pass real factors."
            )
        _tree.check_finite(_tree.Leaf(path, factor, ""), f"{letter} of adapter {name!r}")
    return (*factors, *(_read_alpha(where, alpha) for alpha in entry[2:]))


def _read_alpha(where: str, alpha: Any) -> Any:
    """Refuse anything but one finite number; traced ones are not looked at."""
    if isinstance(alpha, Tracer):
        return alpha
    try:
        number = float(alpha) if np.ndim(alpha) == 0 else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{where}: alpha is {alpha!r}, but must be one finite number. Without a third "
            "entry, `(A, B)`, the product is taken as it is."
        )
    return number


def _check_split(path: str, entries: dict[Any, Any]) -> None:
    """Refuse factors of a leaf of which some have other axes than those of others."""
    rows = {name: e[0].ndim - 1 for name, e in entries.items() if e is not None}
    first = next(iter(rows), None)
    for name, count in rows.items():
        if count != rows[first]:
            raise ValueError(
                f"`adapters` of expert {name!r} for {path}: A has the first {count} of the "
                f"leaf's axes, but that of expert {first!r} has {rows[first]}. Reshape A and "
                "B, so that the factors of all experts have the same axes."
            )


def _stack(entries: list[Any]) -> LowRank:
    """Stack the adapters of one leaf, None for an expert that has none."""
    given = [e[:2] for e in entries if e is not None]
    dtype = functools.reduce(
        wide, [x.dtype for pair in given for x in pair], given[0][0].dtype
    )
    if not jnp.issubdtype(dtype, jnp.inexact):  # products with a scale are no integers
        dtype = wide(dtype)
    rank = max(a.shape[-1] for a, _ in given)
    rows, columns = given[0][0].shape[:-1], given[0][1].shape[1:]
    firsts, seconds, scales = [], [], []
    nothing = jnp.zeros((*rows, 1)), jnp.zeros((1, *columns))
    for entry in entries:
        a, b, *alpha = nothing if entry is None else entry
        a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        r = a.shape[-1]
        firsts.append(jnp.pad(a, [*[(0, 0)] * len(rows), (0, rank - r)]))
        seconds.append(jnp.pad(b, [(0, rank - r), *[(0, 0)] * len(columns)]))
        scales.append(alpha[0] / r if alpha else 1.0)
    scale = jnp.asarray(scales, jnp.finfo(wide(dtype)).dtype)  # real for complex factors
    return LowRank(jnp.stack(firsts), jnp.stack(seconds), scale, jnp.zeros_like(scale))


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Say after how many axes to split a tensor into rows and columns, and how many."""
    sides = [
        (int(np.prod(shape[:k])) + int(np.prod(shape[k:])), k) for k in range(1, len(shape))
    ]
    k = min(sides)[1]
    return k, int(np.prod(shape[:k])), int(np.prod(shape[k:]))


@jit
def _decompose(
    vectors: list[Array], shape: tuple[int, int, int]
) -> tuple[Array, Array, Array]:
    count, rows, columns = shape
    flat = jnp.stack([v.reshape(shape) for v in vectors]).reshape(-1, rows, columns)

    found = svd(widened(flat), max(1, AT_ONCE // (rows * columns)))
    left, values, right = (x.reshape(-1, count, *x.shape[1:]) for x in found)
    return left, values, right


def _least_rank(values: np.ndarray, energy: float) -> int:
    """Count the singular values `[coefficients, rank]` that hold a share of the energy."""
    total = np.cumsum(np.asarray(values, np.float64) ** 2, axis=1)
    return 1 + int(np.max(np.sum(total < energy * total[:, -1:], axis=1)))


@jit
def _truncate(parts: Any, rank: int, split: int, like: Array) -> LowRank:
    left, values, right = parts
    root = jnp.sqrt(values[:, :rank])
    a = (left[:, :, :rank] * root[:, None]).astype(like.dtype)
    b = (root[..., None] * right[:, :rank]).astype(like.dtype)
    # Not from the singular values alone: the factors' rounding is lost as well.
    rest = widened(like).reshape(*left.shape[:2], -1) - matmul(widened(a), widened(b))
    norm = norms(values, 1)
    shape = like.shape[1:]
    return LowRank(
        a.reshape(-1, *shape[:split], rank),
        b.reshape(-1, rank, *shape[split:]),
        jnp.ones_like(norm),
        norms(rest, (1, 2)) / jnp.where(norm > 0, norm, 1.0),
    )
