"""Closed forms weighted by the preference: one solve for each point, no search."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import mapjax as mj
from benchmarks.methods._found import Found, best_of
from benchmarks.suites import Suite, with_rule
from mapjax import rules, transforms


def by_preference(
    suite: Suite, budget: int, *, rule: Callable[[Suite], Callable[..., PyTree]]
) -> Found:
    """Evaluate what a rule makes of preferences: of each task, of all, and random ones."""
    points = preferences(budget, suite.task_vectors.num_tasks, suite.seed)
    made = rule(suite)
    evaluator = with_rule(suite.validation, made)
    scores = np.asarray(evaluator(points, progress=False), float)
    # Whatever was evaluated, a preference is answered by its own merge.
    return best_of(points, scores, made)._replace(pick=np.asarray)


def preferences(count: int, num_tasks: int, seed: int) -> np.ndarray:
    """List the corners of the simplex, its centre, and uniform points of it."""
    rng = np.random.default_rng(seed)
    drawn = rng.dirichlet(np.ones(num_tasks), count)
    centre = np.full((1, num_tasks), 1 / num_tasks)
    return np.concatenate([np.eye(num_tasks), centre, drawn])[:count]


def wudi_mean(suite: Suite) -> rules.MergeRule:
    """Weigh by the vectors themselves."""
    return rules.wudi_mean(suite.task_vectors)


def fisher_mean(suite: Suite) -> rules.MergeRule:
    """Weigh by squared gradients of training examples, with their labels."""
    return rules.fisher_mean(suite.task_vectors, fishers(suite))


def fishers(suite: Suite, most: int | None = 500) -> list[PyTree]:
    """Estimate the diagonal Fisher information of each expert on its training examples."""
    each = zip(suite.train.tasks, suite.experts, strict=True)
    return [_fisher(task, expert, most) for task, expert in each]


def _fisher(task: mj.Task, params: PyTree, most: int | None) -> PyTree:
    def loss(params: PyTree, example: PyTree) -> Array:
        inputs, targets = jax.tree.map(lambda x: x[None], example)
        return mj.metrics.cross_entropy(task.predict(params, inputs), targets)

    data = jax.tree.map(lambda x: jnp.asarray(x[:most]), (task.inputs, task.targets))
    return transforms.fisher(loss, params, data)
