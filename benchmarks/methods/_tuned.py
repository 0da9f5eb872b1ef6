"""AdaMerging: one merge, tuned on inputs without labels."""

import jax
import jax.numpy as jnp
import numpy as np

import mapjax as mj
from benchmarks.methods._found import Found
from benchmarks.suites import Suite


def adamerging(suite: Suite, budget: int, *, by: str | None = None) -> Found:
    """Evaluate the merge whose predictions are the most confident.

    Args:
        suite: The problem.
        budget: One evaluation is made.
        by: What `mapjax.group` takes; by default each expert has one coefficient.

    References:
        Yang et al., *AdaMerging: Adaptive Model Merging for Multi-Task Learning*, ICLR 2024,
        arXiv 2310.02575.
    """
    vectors = mj.group(suite.task_vectors, by) if by else suite.task_vectors
    blind = [_without_labels(task) for task in suite.validation.tasks]
    key = jax.random.key(suite.seed)
    tuned = mj.adamerging(mj.Evaluator(vectors, blind), key=key, progress=False)
    point = np.asarray(tuned.pick(), float)[None]
    evaluator = mj.Evaluator(vectors, suite.validation.tasks)
    scores = np.asarray(evaluator(point, progress=False), float)
    return Found(point, scores, point, scores, rule=vectors if by else None)


def _without_labels(task: mj.Task) -> mj.Task:
    """Leave nothing that a tuner could read but the inputs.

    It also scores what it starts and ends with; the mean of the outputs takes the place of
    a score, as a metric that is constant would be warned of.
    """
    nothing = jnp.zeros(task.num_examples)
    return mj.Task(task.name, task.predict, task.inputs, nothing, _mean)


def _mean(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(outputs)
