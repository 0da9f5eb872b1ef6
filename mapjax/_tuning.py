"""Tuners: one set of coefficients by gradients, with or without labels."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from mapjax import metrics
from mapjax._checks import check_count, read_bounds
from mapjax._jit import automatic, lenient
from mapjax._keys import check_key
from mapjax._result import RESULTS, Front, Samples, explain, judge, provenance
from mapjax._solution import Solution
from mapjax._types import ArrayLike, PRNGKey, widened
from mapjax.design import corners
from mapjax.evaluation import Evaluator, Recorder, Task, describe_problem

Loss = str | Callable[..., Any]


def adamerging(
    evaluator: Any,
    *,
    key: Any,
    num_steps: int = 500,
    learning_rate: float = 1e-3,
    start: float | Sequence[float] | ArrayLike = 0.3,
    bounds: tuple[Any, Any] = (0.0, 1.0),
    loss: Any = "entropy",
    batch_size: int = 16,
    progress: bool | None = None,
) -> Solution:
    r"""Tune coefficients by Adam until predictions are confident (AdaMerging).

    Minimises the sum over tasks of the mean entropy of predictions on the tasks' inputs;
    their targets are not read. Every step takes the gradient on a few examples of each
    task, drawn with replacement, and clips the coefficients to the bounds. All steps are one
    compiled scan; a step whose gradient is not finite is not made. Each coefficient moves
    by at most about `num_steps * learning_rate`. Then the base, the experts, the start and
    the end are evaluated. With groups there is a coefficient per task and group.

    Args:
        evaluator: An `Evaluator`, of tasks that return logits, for the entropy; or what
            the head of the metric makes logits of (see `mapjax.metrics.Metric.after`).
        key: A typed key. The same key gives the same solution.
        num_steps: At least 1.
        learning_rate: Of Adam.
        start: Where to start: a number, or one for each coefficient.
        bounds: The box that coefficients stay in: two numbers, or two arrays
            `[coefficients]`.
        loss: "entropy"; a differentiable metric such as `mapjax.metrics.cross_entropy`,
            which reads the targets; or a function of outputs and targets, to minimise.
        batch_size: Examples of each task in a step. All of them, if there are no more.
        progress: As in `Evaluator`.

    Returns:
        A solution whose `front` and `verified` are one measured point, the end, without a
        surrogate. `stats` has the `losses` of all steps and `num_skipped`.

    Raises:
        ValueError: If there is no evaluator, an argument is wrong, the metric has no
            derivative, or no step has a finite gradient.

    Example:
        >>> import jax, jax.numpy as jnp, mapjax as mj
        >>> tv = mj.TaskVectors.from_params(jnp.zeros(2), list(jnp.eye(2)))
        >>> def predict(params, x):
        ...     return x @ jnp.diag(params)
        >>> tasks = [mj.Task(n, predict, 9 * jnp.eye(2), jnp.arange(2)) for n in "ab"]
        >>> solution = adamerging(mj.Evaluator(tv, tasks), key=jax.random.key(0))
        >>> bool((solution.pick() > 0.5).all())
        True

    References:
        Yang et al., *AdaMerging: Adaptive Model Merging for Multi-Task Learning*, ICLR
        2024, arXiv 2310.02575.
    """
    import optax  # slow to import

    _check(evaluator, loss, key, num_steps, batch_size)
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` is {learning_rate}, but must be positive.")
    ends = read_bounds(bounds, evaluator.num_coefficients, jnp.zeros(()).dtype)
    box = tuple(jnp.asarray(end) for end in ends)
    c = np.asarray(start, box[0].dtype)
    if c.shape not in ((), (evaluator.num_coefficients,)):
        raise ValueError(
            f"`start` has shape {c.shape}, but must be a number or one for each of the "
            f"{evaluator.num_coefficients} coefficients."
        )
    c = jnp.clip(jnp.broadcast_to(c, (evaluator.num_coefficients,)), *box)
    rate = jnp.asarray(learning_rate, c.dtype)
    how = (jax.tree_util.Partial(_adam, rate, *box), optax.adam(rate).init(c))
    return _tune(evaluator, c, how, loss, num_steps, batch_size, key, progress)


def frank_wolfe(
    evaluator: Any,
    *,
    key: Any,
    num_steps: int = 20,
    loss: Any = "entropy",
    batch_size: int = 128,
    progress: bool | None = None,
) -> Solution:
    r"""Step again and again towards the expert that lowers the loss fastest (Frank-Wolfe).

    From the base, or the uniform mixture for the rules of `mapjax.rules`, step
    $k = 0, 1, \dots$ goes $\gamma_k = 2 / (k + 2)$ of the way to the expert with the least
    $\partial L / \partial c_i$, which for a linear merge is $\langle \nabla L, \tau_i
    \rangle$: $c \leftarrow (1 - \gamma_k) c + \gamma_k e_i$.
    Coefficients are non-negative and sum to one, in each group by itself, and experts that do
    not help keep a zero: a choice for many experts of unknown worth.

    Args:
        evaluator: As for `adamerging`, like all that is not said here.
        key: A typed key. The same key gives the same solution.
        num_steps: At least 1; also the most experts that take part.
        loss: The paper uses the cross-entropy.
        batch_size: Examples of each task in a step.
        progress: As in `Evaluator`.

    Returns:
        A solution as that of `adamerging`.

    Raises:
        ValueError: As `adamerging`.

    References:
        Chen et al., *FW-Merging: Scaling Model Merging with Frank-Wolfe Optimization*, ICCV
        2025, arXiv 2503.12649 (hard, task-wise).
    """
    _check(evaluator, loss, key, num_steps, batch_size)
    n, c = len(evaluator.expert_names), jnp.zeros(evaluator.num_coefficients)
    if hasattr(evaluator.rule, "bounds"):  # not linear: at zero all experts are alike
        c = jnp.full_like(c, 1 / n)
    how = (jax.tree_util.Partial(_vertex, n), jnp.zeros(()))
    return _tune(evaluator, c, how, loss, num_steps, batch_size, key, progress)


def _check(evaluator: Any, loss: Any, key: Any, num_steps: int, batch_size: int) -> None:
    if not isinstance(evaluator, Evaluator):
        raise ValueError(
            f"`evaluator` is a {type(evaluator).__name__}; pass a `mapjax.Evaluator`: a "
            "tuner differentiates through the merge."
        )
    if loss != "entropy" and not callable(loss):
        raise ValueError(
            f"`loss` is {loss!r}; use 'entropy', a metric such as "
            "`mapjax.metrics.cross_entropy`, or a function of outputs and targets."
        )
    if isinstance(loss, metrics.Metric) and not loss.differentiable:
        raise ValueError(
            "`loss` is a metric without a derivative (a step function). Use one such as "
            "`mapjax.metrics.cross_entropy`."
        )
    describe_problem(evaluator)  # as for drivers, at least two tasks
    check_key(key)
    check_count("num_steps", num_steps, 1)
    check_count("batch_size", batch_size, 1)


@lenient
def _adam(
    rate: Array, lower: Array, upper: Array, c: Array, gradient: Array, state: PyTree
) -> tuple[Array, PyTree]:
    import optax

    updates, state = optax.adam(rate).update(gradient, state)
    c = jax.tree.map(jnp.add, c, updates)
    return jnp.clip(c, lower, upper), state


def _vertex(
    num_experts: int, c: Array, gradient: Array, step: Array
) -> tuple[Array, PyTree]:
    best = jnp.argmin(gradient.reshape(num_experts, -1), axis=0)  # of each group
    corner = jax.nn.one_hot(best, num_experts, axis=0, dtype=c.dtype).ravel()
    return c + 2 / (step + 2) * (corner - c), step + 1


def _tune(
    evaluator: Evaluator,
    start: Array,
    how: tuple[Callable[..., Any], PyTree],
    loss: Loss,
    num_steps: int,
    batch_size: int,
    key: PRNGKey,
    progress: bool | None,
) -> Solution:
    begun = time.perf_counter()
    move, state = how
    rule, tasks, keys = evaluator.rule, evaluator.tasks, jax.random.split(key, num_steps)
    walked = _walk(rule, tasks, loss, move, start, state, keys, batch_size)
    end, losses, taken = (np.asarray(x) for x in walked)
    if not taken.any():
        raise ValueError(
            f"The loss or its gradient was not finite in any of {num_steps} steps, from "
            f"coefficients {np.asarray(start).tolist()}. Evaluate that merge, and start at "
            "one with finite outputs."
        )
    tuned = time.perf_counter()
    samples, scores = _measure(evaluator, np.asarray(start), end, progress)
    result = judge(np.asarray(samples.scores), 1)
    if result != RESULTS.successful:
        words = explain(result, np.asarray(samples.scores), evaluator.task_names)
        warnings.warn(words, stacklevel=3)
    front = Front(jnp.asarray(end)[None], scores[None])
    return Solution(
        front=front,
        samples=samples,
        verified=front,
        surrogate=None,
        result=result,
        stats={
            "losses": losses,
            "num_skipped": int(np.sum(~taken)),
            "num_evaluations": len(samples),
            "num_failed": int(np.sum(~np.isfinite(samples.scores).all(axis=1))),
            "seconds": {"tune": tuned - begun, "evaluate": time.perf_counter() - tuned},
            **provenance(key),
        },
        num_verified=1,
        task_names=evaluator.task_names,
        coefficient_names=evaluator.coefficient_names,
        directions=evaluator.directions,
        experts=evaluator.expert_names,
    )


def _measure(
    evaluator: Evaluator, start: np.ndarray, end: np.ndarray, progress: bool | None
) -> tuple[Samples, Array]:
    """Evaluate the base, the experts, the start and the end, and give the end's scores."""
    problem = describe_problem(evaluator)
    recorder = Recorder(problem, progress=progress)
    base_and_experts = corners(problem.num_coefficients, problem.num_experts)
    rows = np.concatenate([base_and_experts, start[None], end[None]])
    scores = recorder(rows)
    return recorder.samples, scores[-1]


@eqx.filter_jit
@automatic
def _walk(
    rule: Callable[..., PyTree],
    tasks: tuple[Task, ...],
    loss: Loss,
    move: Callable[..., tuple[Array, PyTree]],
    start: Float[Array, " coefficients"],
    state: PyTree,
    keys: Key[Array, " steps"],
    batch_size: int,
) -> tuple[Float[Array, " coefficients"], Float[Array, " steps"], Bool[Array, " steps"]]:
    """Make all steps; also give the loss before each, and whether it was made."""

    def total(c: Array, key: PRNGKey) -> Array:
        params = rule(c)
        draws = zip(tasks, jax.random.split(key, len(tasks)), strict=True)
        return sum(
            (_loss(loss, task, params, *_batch(task, batch_size, k)) for task, k in draws),
            start=jnp.zeros(()),
        )

    def step(at: tuple[Array, PyTree], key: PRNGKey) -> tuple[Any, tuple[Array, Array]]:
        value, gradient = jax.value_and_grad(total)(at[0], key)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        moved = move(at[0], gradient, at[1])
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, at)
        return kept, (value, finite)

    (end, _), (losses, taken) = jax.lax.scan(step, (start, state), keys)
    return end, losses, taken


def _batch(task: Task, batch_size: int, key: PRNGKey) -> tuple[PyTree, PyTree]:
    if batch_size >= task.num_examples:
        return task.inputs, task.targets
    rows = jax.random.randint(key, (batch_size,), 0, task.num_examples)
    return jax.tree.map(lambda x: x[rows], (task.inputs, task.targets))


def _loss(loss: Loss, task: Task, params: PyTree, inputs: PyTree, targets: PyTree) -> Array:
    outputs = task.predict(params, inputs)
    if isinstance(loss, str):
        return _entropy(_logits(task, outputs))
    value = jnp.mean(loss(outputs, targets))
    upwards = isinstance(loss, metrics.Metric) and loss.direction == "maximize"
    return -value if upwards else value


def _logits(task: Task, outputs: PyTree) -> Array:
    """Give what the task's metric decides on, or say why it has no entropy."""
    if task.metric.head is not None:
        outputs = task.metric.head(outputs)
    squared = task.metric.function is metrics.mean_squared_error.function
    if squared or not hasattr(outputs, "dtype"):
        what = "numbers" if squared else f"a {type(outputs).__name__}"
        raise ValueError(
            f"`loss` is 'entropy', which is of classes, but task {task.name!r} predicts "
            f"{what}. Choose the logits by `metric.after(lambda outputs: outputs[...])`, or "
            "pass `loss=`, such as `mapjax.metrics.mean_squared_error`."
        )
    return outputs


def _entropy(outputs: Array) -> Array:
    # The cross-entropy of a distribution with itself. Classes that are ruled out by a
    # logit of minus infinity would give it a derivative that is NaN.
    logits = jnp.maximum(widened(outputs), -1e9)
    single = logits.ndim == 1 or logits.shape[-1] == 1
    probabilities = jax.nn.sigmoid(logits) if single else jax.nn.softmax(logits)
    return metrics.cross_entropy(logits, probabilities)
