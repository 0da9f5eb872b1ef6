"""Task vectors: a base, what fine-tuning added to it, and the linear merge."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from mapjax import _tree
from mapjax._jit import jit
from mapjax._low_rank import LowRank
from mapjax._types import ArrayLike, Rule, wide, widened


class Group(NamedTuple):
    """Tensors that share their coefficients: a name, and the tensors' key paths."""

    name: str
    paths: tuple[str, ...]


class TaskVectors(eqx.Module):
    r"""A base and the stacked differences of its experts, $v_i = \theta_i - \theta_0$.

    Made by `TaskVectors.from_params`; a pytree, so it can be jitted, sharded, donated
    and saved like one.

    Attributes:
        base: The base parameters, leaves that are not merged included.
        vectors: A tree like the base, with the differences of each leaf stacked along a
            new first axis `[coefficients, ...]`, a `LowRank` that stands for them, or None
            for a leaf that is left alone.
        names: The experts' names; the order of the coefficients.
        groups: What `mapjax.group` made: which tensors have coefficients of their own. Empty if
            each expert has one coefficient.
    """

    base: PyTree
    vectors: PyTree
    names: tuple[str, ...] = eqx.field(static=True)
    groups: tuple[Group, ...] = eqx.field(static=True, default=())

    @classmethod
    def from_params(
        cls,
        base: PyTree,
        experts: Mapping[str, PyTree] | Sequence[PyTree],
        *,
        names: Sequence[str] | None = None,
        statistics: bool = False,
        dtype: Any = None,
    ) -> "TaskVectors":
        r"""Subtract the base from every expert.

        Takes any pytree: nested dicts, flax linen parameters, `nnx.State`, equinox
        modules, registered dataclasses. Floating-point and complex leaves are merged.
        Left alone, and listed by `left_alone`: integers, booleans, random keys, what is no
        array (Python's numbers, which inside `jax.jit` are), all below an `opt_state`, and
        BatchNorm statistics (flax's `batch_stats`, `nnx.BatchStat`, PyTorch's `running_mean`
        and `running_var`). Differences are computed in float32 at least and rounded to the
        wider of two leaves' dtypes, bfloat16 for floats of eight bits, or a `dtype` wider.

        Args:
            base: The pretrained parameters.
            experts: The fine-tuned parameters, by name or in order. Their trees have
                the leaves of the base, with the same shapes.
            names: Names for a sequence of experts; `expert_0`, ... by default.
            statistics: Merge BatchNorm statistics as well.
            dtype: Keep the vectors in this floating-point dtype at least. float32 takes
                twice the memory of bfloat16, and gives experts back without rounding.

        Returns:
            The task vectors. Arrays keep the sharding of the experts' leaves.

        Raises:
            ValueError: If there are no experts, a name comes twice, a tree differs
                (missing, extra or renamed leaf, shape, kind of dtype), nothing can be
                merged, a parameter is NaN or infinite, a difference overflows its dtype,
                or `dtype` is not floating-point. The key path is named.

        Example:
            >>> import jax.numpy as jnp, mapjax as mj
            >>> base = {"w": jnp.zeros(2), "step": jnp.array(7)}
            >>> expert = {"w": jnp.array([1.0, 2.0]), "step": jnp.array(9)}
            >>> tv = mj.TaskVectors.from_params(base, {"mnist": expert})
            >>> tv.names, tv.left_alone
            (('mnist',), {"['step']": 'int32 leaf'})
        """
        trees, names = _named(experts, names)
        kept = _floating(dtype)
        base_leaves = _tree.leaves(base, statistics=statistics)
        if all(leaf.kept for leaf in base_leaves):
            raise ValueError(_nothing_to_merge(base, base_leaves))
        columns = []
        for name, tree in zip(names, trees, strict=True):
            column = _tree.leaves(tree, statistics=statistics)
            _tree.check_same_leaves(base_leaves, column, name)
            columns.append(column)
        for column, owner in zip(
            [base_leaves, *columns],
            ["the base", *map("expert {!r}".format, names)],
            strict=True,
        ):
            for leaf in column:
                _tree.check_finite(leaf, owner)
        arrays = [leaf.value if leaf.kept else _array(leaf) for leaf in base_leaves]
        vectors = []
        for leaf, array, *others in zip(base_leaves, arrays, *columns, strict=True):
            if leaf.kept:
                vectors.append(None)
                continue
            v, finite = _differences(array, [_array(e) for e in others], kept)
            _check_overflow(leaf.path, names, v, finite)
            vectors.append(v)
        return cls(_tree.rebuild(base, arrays), _tree.rebuild(base, vectors), names)

    @property
    def num_tasks(self) -> int:
        """The number of experts."""
        return len(self.names)

    @property
    def num_coefficients(self) -> int:
        """The number of experts, times that of the groups where there are any."""
        return len(self.names) * max(1, len(self.groups))

    @property
    def coefficient_names(self) -> tuple[str, ...]:
        """The experts, or experts and groups such as "mnist/layer0", group after group."""
        if not self.groups:
            return self.names
        return tuple(f"{name}/{group.name}" for name in self.names for group in self.groups)

    @property
    def left_alone(self) -> dict[str, str]:
        """Key paths of the leaves that a merge takes from the base, and why."""
        vectors = _tree.values_up_to(self.base, self.vectors)
        return {
            leaf.path: leaf.kept or "no vector"
            for leaf, v in zip(_tree.leaves(self.base), vectors, strict=True)
            if v is None
        }

    def norms(self) -> Float[Array, " experts"]:
        r"""Compute the Euclidean norm $\lVert v_i \rVert$ of each expert, in float32."""
        return _norms(_gram(self))

    def cosine_similarity(self) -> Float[Array, "experts experts"]:
        r"""Compute the cosines between the experts' vectors, those of all groups together.

        Values near 1 say that experts learned the same, near 0 that they can be added
        without much interference. A vector of norm zero has cosine 0 with every other.
        """
        gram = _gram(self)
        norms = _norms(gram)
        safe = jnp.where(norms > 0, norms, 1.0)  # an unchanged expert has no direction
        return jnp.clip(gram / (safe[:, None] * safe[None]), -1.0, 1.0)


def merge(task_vectors: TaskVectors | Rule, coefficients: ArrayLike | Sequence) -> PyTree:
    r"""Merge linearly: $\theta(c) = \theta_0 + \sum_i c_i v_i$, with no normalisation.

    Sums in float32 at least and rounds once, to the dtype of each leaf of the base.
    Differentiable in the coefficients. For a batch of merges, `jax.vmap` it over the
    coefficients: one compiled pass makes all of them, and with `out_axes=-1` it also reads
    the base and the vectors only once on a CPU.

    Args:
        task_vectors: The base and the vectors; or a merge rule, such as those of
            `mapjax.rules`, which is called with the coefficients. What a driver's
            coefficients are for is what its evaluator was given.
        coefficients: One number per expert, in the order of `names`. Zeros give the
            base, a one at `i` gives expert `i` up to the rounding of its difference.
            With groups also one per expert and group, `[experts, groups]`, or the same in
            one row, as drivers have them: in the order of `coefficient_names`.

    Returns:
        Parameters like the base: same tree, dtypes and shardings.

    Raises:
        ValueError: If the number of coefficients is not the number of experts, or they are
            not real numbers.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), [jnp.ones(2), jnp.arange(2.0)])
        >>> mj.merge(tv, [0.5, 0.25])
        Array([0.5 , 0.75], dtype=float32)

    References:
        Ilharco et al., *Editing Models with Task Arithmetic*, ICLR 2023, arXiv 2212.04089.
    """
    if not isinstance(task_vectors, TaskVectors):
        return _by_rule(task_vectors, coefficients)
    return _merge(task_vectors, read_coefficients(task_vectors, coefficients))


def read_coefficients(task_vectors: TaskVectors, coefficients: Any) -> Array:
    """Return the coefficients `[experts]` or `[experts, groups]`, or say what is wrong."""
    try:
        c = jnp.asarray(coefficients)
    except (TypeError, ValueError) as error:
        raise ValueError(_not_numbers(task_vectors, coefficients)) from error
    if jnp.issubdtype(c.dtype, jnp.complexfloating):
        raise ValueError(_not_numbers(task_vectors, coefficients))
    n, num_groups = task_vectors.num_tasks, len(task_vectors.groups)
    if c.shape in ((n,), (n, num_groups)):
        return c
    if num_groups and c.shape == (n * num_groups,):
        return c.reshape(n, num_groups)
    grouped = f", or ({n}, {num_groups}) for one per group" if num_groups else ""
    raise ValueError(
        f"`coefficients` has shape {c.shape}, but there are {n} experts "
        f"{task_vectors.names}: pass one number per expert, shape ({n},){grouped}. For a "
        "batch use `jax.vmap(mapjax.merge, (None, 0))(task_vectors, coefficients)`."
    )


def group_numbers(task_vectors: TaskVectors) -> dict[str, int]:
    """Say by key path which group a tensor is in; empty if there are no groups."""
    return {path: i for i, group in enumerate(task_vectors.groups) for path in group.paths}


def merge_leaves(
    task_vectors: TaskVectors, c: Array, join: Callable[[Any, Array, Any], Any]
) -> PyTree:
    """Replace each merged leaf by what `join` makes of it, its coefficients and vectors.

    Args:
        task_vectors: The base and the vectors.
        c: `[experts]` or `[experts, groups]`.
        join: From a leaf of the base, coefficients `[experts]` and the leaf's vectors.
    """
    leaves = _tree.leaves(task_vectors.base)
    vectors = _tree.values_up_to(task_vectors.base, task_vectors.vectors)
    columns = group_numbers(task_vectors)
    merged = [
        leaf.value
        if v is None
        else join(leaf.value, c if c.ndim == 1 else c[:, columns[leaf.path]], v)
        for leaf, v in zip(leaves, vectors, strict=True)
    ]
    return _tree.rebuild(task_vectors.base, merged)


def _by_rule(rule: Any, coefficients: Any) -> PyTree:
    if not callable(rule):
        raise ValueError(
            f"`task_vectors` is a {type(rule).__name__}; pass `mapjax.TaskVectors` or a merge "
            "rule, a function from coefficients to parameters."
        )
    return rule(jnp.asarray(coefficients))


@eqx.filter_jit
def _merge(task_vectors: TaskVectors, c: Array) -> PyTree:
    return merge_leaves(task_vectors, c, _add)


def _add(leaf: Array, c: Array, vectors: Array | LowRank) -> Array:
    dtype = wide(leaf.dtype)
    total = leaf.astype(dtype)
    if isinstance(vectors, LowRank):
        return (total + vectors.combine(c.astype(dtype))).astype(leaf.dtype)
    # A chain of multiply-adds is one fused, multi-threaded loop, for a batch too; the same
    # contraction as a matrix product took 1.4 to 1.7 times as long on CPU, single or batched
    # (benchmarks/bench_merge.py).
    for i in range(vectors.shape[0]):
        total = total + c[i].astype(dtype) * vectors[i].astype(dtype)
    return total.astype(leaf.dtype)


def _not_numbers(task_vectors: TaskVectors, coefficients: object) -> str:
    return (
        f"`coefficients` is {coefficients}, but must be real numbers, one per expert in the "
        f"order {task_vectors.names}."
    )


def _named(
    experts: Mapping[str, PyTree] | Sequence[PyTree], names: Sequence[str] | None
) -> tuple[list[PyTree], tuple[str, ...]]:
    if isinstance(names, str):
        raise ValueError(f"`names` is {names!r}, one string: pass a list of names.")
    if isinstance(experts, Mapping):
        if names is not None:
            raise ValueError("`names` is for a sequence of experts; a mapping has its own.")
        names, trees = list(experts), list(experts.values())
    else:
        trees = list(experts)
        names = [f"expert_{i}" for i in range(len(trees))] if names is None else list(names)
    if not trees:
        raise ValueError("`experts` is empty: pass at least one fine-tuned model.")
    names = [str(name) for name in names]
    if len(names) != len(trees):
        raise ValueError(f"`names` has {len(names)} entries for {len(trees)} experts.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Expert names must be unique, but {twice} come more than once.")
    return trees, tuple(names)


def _nothing_to_merge(base: PyTree, leaves: list[_tree.Leaf]) -> str:
    if [leaf.path for leaf in leaves] == [_tree.ROOT] and leaves[0].kept == "not an array":
        return (
            f"`base` is a {type(base).__name__}, which JAX does not see as a pytree of "
            "arrays. Pass its parameters, or register the class, for example with "
            "`jax.tree_util.register_dataclass`."
        )
    reasons = {leaf.path: leaf.kept for leaf in leaves}
    return f"`base` has no leaf that can be merged: {reasons}. Pass floating-point arrays."


def _array(leaf: _tree.Leaf) -> Array:
    array = jnp.asarray(leaf.value)
    if array.dtype != leaf.value.dtype:
        warnings.warn(
            f"Leaf {leaf.path} is {leaf.value.dtype} and was narrowed to {array.dtype}, as "
            "JAX does by default. Set `jax.config.update('jax_enable_x64', True)` to keep it.",
            stacklevel=4,
        )
    return array


def _floating(dtype: Any) -> Any:
    """Return a dtype that vectors can be kept in, or say what is wrong with it."""
    if dtype is None:
        return None
    try:
        if jnp.issubdtype(dtype, jnp.floating):
            return jax.dtypes.canonicalize_dtype(dtype)
    except TypeError:
        pass  # no dtype at all, which is said in the same words
    raise ValueError(
        f"`dtype` is {dtype!r}, but vectors are kept in a floating-point dtype: pass one "
        "such as `jnp.float32`, or leave it out."
    )


@eqx.filter_jit
def _differences(
    base: Array, experts: list[Array], dtype: Any
) -> tuple[Array, Bool[Array, " tasks"]]:
    """Stack the differences, and say which experts' are finite."""

    def one(expert: Array) -> Array:
        kept = wide(base.dtype, expert.dtype)
        kept = kept if dtype is None else wide(kept, dtype)
        if kept.itemsize == 1:  # few differences of such floats are such floats
            kept = jnp.dtype(jnp.bfloat16)
        sums = wide(kept)
        return (expert.astype(sums) - base.astype(sums)).astype(kept)

    columns = [one(expert) for expert in experts]
    # Experts of different width stack as the widest of them.
    widest = functools.reduce(wide, [v.dtype for v in columns])
    v = jnp.stack([v.astype(widest) for v in columns])
    return v, jnp.all(jnp.isfinite(v), axis=tuple(range(1, v.ndim)))


def _check_overflow(
    path: str, names: Sequence[str], v: Array, finite: Bool[Array, " tasks"]
) -> None:
    """Refuse differences of finite leaves that are not finite; skipped if traced."""
    if isinstance(finite, Tracer) or all(finite.tolist()):
        return
    name = names[finite.tolist().index(False)]
    raise ValueError(
        f"Leaf {path} of expert {name!r} is so far from the base that the difference "
        f"overflows {v.dtype}. Keep differences wider, with `dtype=jnp.float32`; if they "
        "are as wide already, that leaf is broken: load another checkpoint."
    )


@jit
def _gram(task_vectors: TaskVectors) -> Float[Array, "experts experts"]:
    total = jnp.zeros((task_vectors.num_tasks,) * 2)
    for v in jax.tree.leaves(task_vectors.vectors, is_leaf=_is_low_rank):
        if isinstance(v, LowRank):
            total = total + v.gram()
            continue
        flat = widened(v.reshape(v.shape[0], -1))
        total += jnp.matmul(flat, flat.conj().T, precision=jax.lax.Precision.HIGHEST).real
    return total


def _norms(gram: Float[Array, "experts experts"]) -> Float[Array, " experts"]:
    # Rounding can leave products of factors that cancel a little below zero.
    return jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))


def _is_low_rank(node: Any) -> bool:
    return isinstance(node, LowRank)
