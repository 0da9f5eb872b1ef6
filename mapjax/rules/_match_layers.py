"""Merges whose layers answer as the experts' do, one solve after the other."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from mapjax import _tree
from mapjax._algebra import matmul, solve
from mapjax._jit import automatic, jit
from mapjax._tensors import base_tensors, tensors
from mapjax._types import widened
from mapjax.rules._rule import AbstractPreferenceRule, dense, weighted_sum
from mapjax.task_vectors import TaskVectors, merge
from mapjax.transforms._checks import check_positive
from mapjax.transforms._fisher import count_examples
from mapjax.transforms._given import PerTask, each_task
from mapjax.transforms._operands import (
    Product,
    View,
    bind,
    called_program,
    find_product,
    follow,
)

Predict = Callable[[Any, Any], Any]
_RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""From which the default is chosen; the last one where there are hardly any examples."""


class LayerMatching(AbstractPreferenceRule):
    r"""From a preference to the merge whose layers answer as the experts' do.

    Made by `match_layers`, which says how.

    Attributes:
        task_vectors: The base and the vectors.
        predict: From parameters and inputs to outputs.
        inputs: Examples `[tasks, examples, ...]`.
        ridge: The pull to the average of the experts.
        matched: Key paths of the kernels that are solved for; other tensors are averaged.
    """

    task_vectors: TaskVectors
    predict: Predict
    inputs: PyTree
    ridge: Float[Array, ""]
    matched: tuple[str, ...] = eqx.field(static=True, default=())

    @property
    def coefficient_names(self) -> tuple[str, ...]:
        """The experts, in the order of the coefficients."""
        return self.task_vectors.names

    def merge(self, preference: Float[Array, " tasks"]) -> PyTree:
        """Solve for kernel after kernel; see `AbstractPreferenceRule`."""
        return _merge(self, preference)


def match_layers(
    task_vectors: TaskVectors,
    predict: Predict,
    inputs: PerTask,
    *,
    ridge: float | None = None,
) -> LayerMatching:
    r"""Solve for every kernel on what the merged ones before it pass on, by preference.

    When the inputs of task $t$ pass through the merge, a kernel reads $Z_t$; when they pass
    through expert $t$, it reads $X_t$ and gives $X_t K_t$. Kernel after kernel, in the order
    of their use, the one of the merge is the $K$ that minimises

    $$\sum_t p_t \|Z_t K - X_t K_t\|^2 + r \|K - \sum_t p_t K_t\|^2$$

    so that each corrects what those before it changed. All other tensors, such as biases,
    norms and embeddings, are averaged by preference, and so are kernels that `predict` uses
    in a loop or before anything is multiplied with them. Coefficients are preferences:
    those of a single task give its expert, and the merge of a preference is close to the
    best of all for it, before anything is evaluated.

    Needs unlabelled inputs of each task, some hundreds: fewer than a kernel has inputs cost
    quality. Costs, for each merge, a forward pass of all of these and a solve for each
    kernel, so about as much as an evaluation on as many examples. The strongest choice
    where inputs are at hand and the model is small enough for it; `regmean_mean` solves
    with what the experts alone read, once and for all, and `react` for the last layer only.

    Args:
        task_vectors: The base and the vectors.
        predict: From parameters and inputs to outputs, or to what the tasks' own heads
            read where these are not merged.
        inputs: Examples of each task, by name or in order, each a pytree of arrays with
            one example along each first axis. Of each task as many are used as the one
            with the fewest has.
        ridge: $r$ as a multiple of the mean square of what the kernel reads. By default the
            one of 0.001 to 1 with which the uniform merge is nearest to the experts'
            outputs on a fifth of the examples, when it is solved on the others.

    Returns:
        The rule: a function of one preference per expert. Only their proportions count, and
        with none at all they are equal (where a `MergeRule` gives the base).

    Raises:
        ValueError: If inputs are missing or of different shapes, `ridge` is not positive,
            or no kernel can be solved for.

    Example:
        >>> import jax.numpy as jnp, mapjax as mj
        >>> def predict(params, x):
        ...     return x @ params
        >>> tv = mj.TaskVectors.from_params(jnp.zeros((2, 1)), [jnp.ones((2, 1))] * 2)
        >>> rule = match_layers(tv, predict, [jnp.eye(2), 2 * jnp.eye(2)])
        >>> rule(jnp.array([0.5, 0.5])).round(3).tolist()
        [[1.0], [1.0]]

    References:
        The regression is that of Jin et al., ICLR 2023, arXiv 2212.09849; that layers are
        matched one after the other, on what the merge and what the experts pass on, is due
        to Xu et al., *Scalable Model Merging with Progressive Layer-wise Distillation*,
        ICML 2025, arXiv 2502.12706, who learn coefficients by gradients for it. The closed
        form by preference is ours.
    """
    if ridge is not None:
        check_positive("ridge", ridge, "0.01, or leave it out")
    examples = each_task(task_vectors, inputs, "inputs")
    counts = [count_examples(x, f"inputs[{i}]", 1) for i, x in enumerate(examples)]
    shapes = [jax.tree.map(lambda x: np.shape(x)[1:], x) for x in examples]
    for name, shape in zip(task_vectors.names, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"`inputs` of {name!r} have the shape {shape} for each example, those of "
                f"{task_vectors.names[0]!r} {shapes[0]}: pad them to one shape."
            )
    stacked = jax.tree.map(
        lambda *x: jnp.stack([jnp.asarray(each[: min(counts)]) for each in x]), *examples
    )
    first = _RIDGES[-1] if ridge is None else ridge
    rule = LayerMatching(dense(task_vectors), predict, stacked, jnp.asarray(float(first)))
    equal = jnp.full(len(counts), 1 / len(counts))
    found = eqx.filter_eval_shape(automatic(_solve), rule, equal)
    if not found:
        raise ValueError(
            "`predict` multiplies nothing with a leaf of the parameters that could be solved "
            "for. Use the parameters that it is given, unchanged, as kernels, and not in a "
            "loop; or choose another rule, such as `rules.weighted_average`."
        )
    rule = dataclasses.replace(rule, matched=tuple(found))
    return _with_best_ridge(rule) if ridge is None else rule


def _with_best_ridge(rule: LayerMatching) -> LayerMatching:
    """Choose by what outputs lose on a fifth of the examples, solved on the others."""
    count = len(jax.tree.leaves(rule.inputs)[0][0])
    if count < 5:
        return rule
    last = np.arange(count) % 5 == 4
    own, held_out = (
        jax.tree.map(lambda x, some=some: x[:, some], rule.inputs) for some in (~last, last)
    )
    part = dataclasses.replace(rule, inputs=own)
    errors = [
        float(_error(dataclasses.replace(part, ridge=jnp.asarray(r)), held_out))
        for r in _RIDGES
    ]
    return dataclasses.replace(rule, ridge=jnp.asarray(_RIDGES[int(np.nanargmin(errors))]))


@jit
def _error(rule: LayerMatching, held_out: PyTree) -> Float[Array, ""]:
    """Compare outputs of the uniform merge with those of the experts, task by task."""
    tasks = rule.num_coefficients
    merged = rule(jnp.ones(tasks))
    total = jnp.zeros(())
    for i, one in enumerate(np.eye(tasks, dtype=np.float32)):
        x = jax.tree.map(lambda x, i=i: x[i], held_out)
        models = merged, merge(rule.task_vectors, one)
        got, wanted = (eqx.filter(rule.predict(m, x), eqx.is_inexact_array) for m in models)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            a, b = widened(a), widened(b)
            total += jnp.mean((a - b) ** 2) / jnp.maximum(jnp.var(b), 1e-30)
    return total


@jit
def _merge(rule: LayerMatching, p: Float[Array, " tasks"]) -> PyTree:
    tv = rule.task_vectors
    solved = _solve(rule, p)
    sums = (weighted_sum(p, widened(v)) for v in tensors(tv).values())
    merged = {
        path: (widened(leaf) + v).astype(leaf.dtype)
        for path, leaf, v in zip(tensors(tv), base_tensors(tv), sums, strict=True)
    } | solved
    leaves = _tree.leaves(tv.base)
    return _tree.rebuild(tv.base, [merged.get(leaf.path, leaf.value) for leaf in leaves])


def _solve(rule: LayerMatching, p: Float[Array, " tasks"]) -> dict[str, Array]:
    """Run the merge and the experts side by side, and solve for what the merge reads.

    Returns:
        The solved kernels, by key path.
    """
    tv = rule.task_vectors
    vectors = tensors(tv)
    places = [i for i, leaf in enumerate(_tree.leaves(tv.base)) if leaf.path in vectors]
    given = []
    for path, leaf, v in zip(vectors, base_tensors(tv), vectors.values(), strict=True):
        average = widened(leaf) + weighted_sum(p, widened(v))
        experts = widened(leaf)[None] + widened(v)
        average, experts = average.astype(leaf.dtype), experts.astype(leaf.dtype)
        given.append(_Shown(average, experts, (False, True), View.whole(path, leaf.shape)))
    given += [_Shown(x, x, (True, True), None) for x in jax.tree.leaves(rule.inputs)]

    def run(arrays: list[Any], inputs: PyTree) -> Any:
        leaves = jax.tree.leaves(tv.base)
        for i, array in zip(places, arrays, strict=True):
            leaves[i] = array
        outputs = rule.predict(_tree.rebuild(tv.base, leaves), inputs)
        return eqx.filter(outputs, eqx.is_array)

    one = jax.tree.map(lambda x: x[0], rule.inputs)
    program = jax.make_jaxpr(run)([x.merged for x in given[: len(places)]], one)
    state = _State(p, rule.ridge, {}, set())
    _run(program, given, state)
    return state.solved


class _Shown(NamedTuple):
    """A value as the merge computes it, and as the experts do.

    Attributes:
        merged: With the merge, `[tasks, ...]` if it differs by task.
        expert: With each expert, likewise.
        by_task: Whether the one and the other differ by task.
        view: The parameter that it shows, if it does.
    """

    merged: Any
    expert: Any
    by_task: tuple[bool, bool]
    view: View | None


class _State(NamedTuple):
    """What is known so far.

    Attributes:
        preference: Weights of the tasks.
        ridge: Of the regressions.
        solved: Kernels, by key path.
        fixed: Parameters that something else has read, which must stay what they were.
    """

    preference: Float[Array, " tasks"]
    ridge: Float[Array, ""]
    solved: dict[str, Array]
    fixed: set[str]


def _run(program: Any, given: list[_Shown], state: _State) -> list[_Shown]:
    """Run a program of one task for the merge and for all experts."""
    jaxpr = program.jaxpr
    values = {
        var: _Shown(x, x, (False, False), None)
        for var, x in zip(jaxpr.constvars, program.consts, strict=True)
    }
    values.update(zip(jaxpr.invars, given, strict=True))

    def read(atom: Any) -> _Shown:
        if isinstance(atom, core.Literal):
            return _Shown(atom.val, atom.val, (False, False), None)
        shown = values[atom]
        if shown.view is not None and shown.view.path in state.solved:
            kernel = shown.view.show(state.solved[shown.view.path])
            return shown._replace(merged=kernel.astype(shown.merged.dtype))
        return shown

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        views = [x.view for x in operands]
        if called := called_program(eqn):
            results = _run(called, operands, state)
        else:
            product = find_product(
                eqn.primitive.name, eqn.params, [x.merged for x in operands], views
            )
            if product is not None and product.path not in state.fixed | {*state.solved}:
                _solve_kernel(product, operands, state)
                operands = [read(atom) for atom in eqn.invars]
            merged, merged_by_task = _bind(eqn, operands, 0)
            expert, expert_by_task = _bind(eqn, operands, 1)
            by_task = merged_by_task, expert_by_task
            view = None if eqn.primitive.multiple_results else follow(eqn, views)
            if view is None and product is None:
                state.fixed.update(v.path for v in views if v is not None)
            results = [
                _Shown(m, e, by_task, view) for m, e in zip(merged, expert, strict=True)
            ]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(eqn: Any, operands: list[_Shown], which: int) -> tuple[list[Any], bool]:
    """Do an operation for each task, or once if no operand differs by task."""
    given = [x[which] for x in operands]
    axes = [0 if x.by_task[which] else None for x in operands]
    if 0 not in axes:
        return bind(eqn, given), False
    return jax.vmap(lambda *each: bind(eqn, list(each)), in_axes=axes)(*given), True


def _solve_kernel(product: Product, operands: list[_Shown], state: _State) -> None:
    """Solve for the kernel of a product, and take note of it."""
    kernel, inputs = operands[product.kernel], operands[1 - product.kernel]
    tasks, p = len(state.preference), state.preference
    z, x = (
        jax.vmap(lambda each: widened(product.rows(each)))(value)
        if by_task
        else jnp.broadcast_to(rows := widened(product.rows(value)), (tasks, *rows.shape))
        for value, by_task in zip(inputs[:2], inputs.by_task, strict=True)
    )
    kernels = jax.vmap(lambda each: widened(product.matrix(each)))(kernel.expert)
    weighted = (z * (p / z.shape[1])[:, None, None]).reshape(-1, z.shape[2])
    moments = matmul(weighted.T, z.reshape(-1, z.shape[2]))
    targets = matmul(x, kernels)
    mean = weighted_sum(p, kernels)
    # A pull below the rounding of the largest eigenvalue would not make it definite.
    least = 4 * jnp.finfo(z.dtype).eps * len(moments)
    pull = jnp.maximum(state.ridge, least) * jnp.trace(moments) / len(moments)
    definite = moments + jnp.where(pull > 0, pull, 1) * jnp.eye(len(moments))
    missing = targets - matmul(z, mean)  # of what the average already gives
    right = matmul(weighted.T, missing.reshape(-1, missing.shape[2]))
    matrix = mean + solve(definite, right[None])[0]
    assert kernel.view is not None
    whole = kernel.view.undo(product.undo(matrix, kernel.merged))
    state.solved[product.path] = whole.astype(kernel.merged.dtype)
