"""The drivers of mapjax."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import mapjax as mj
from benchmarks.methods._found import Found
from benchmarks.suites import Suite, with_rule


def with_driver(
    suite: Suite,
    budget: int,
    *,
    driver: Callable[..., mj.Solution] = mj.map_front,
    rule: Any = None,
    **options: Any,
) -> Found:
    """Run any driver that returns a `Solution`; `options` are its own.

    Args:
        suite: The problem.
        budget: Of evaluations.
        driver: Of mapjax.
        rule: Task vectors or a merge rule in place of the suite's task vectors.
        **options: Of the driver.
    """
    evaluator = with_rule(suite.validation, rule)
    key = jax.random.key(suite.seed)
    with warnings.catch_warnings():
        # Few samples are what is measured.
        warnings.filterwarnings("ignore", message="There were fewer usable samples")
        solution = driver(evaluator, budget=budget, key=key, progress=False, **options)
    front, samples = solution.front, solution.samples
    # Else it picks from the front, by the weighted sum alone.
    guess = solution.result in (mj.RESULTS.few_samples, mj.RESULTS.rank_deficient)
    picks = solution.by_preference or guess
    return Found(
        np.asarray(samples.coefficients),
        np.asarray(samples.scores),
        np.asarray(front.coefficients),
        np.asarray(front.scores),
        None if front.std is None else np.asarray(front.std),
        solution.surrogate,
        rule,
        solution.pick if picks else None,
    )


def on_rule(
    suite: Suite, budget: int, *, make: Callable[[Suite], Any], **options: Any
) -> Found:
    """Run a driver on what a rule makes of the suite; see `with_driver`."""
    return with_driver(suite, budget, rule=make(suite), **options)


def regmean(suite: Suite) -> mj.TaskVectors:
    """Make the vectors of RegMean, from inputs of training examples without labels."""
    return mj.transforms.regmean(suite.task_vectors, grams(suite))


def regmean_mean(suite: Suite) -> mj.rules.MergeRule:
    """Weigh by the inputs of training examples, without labels."""
    return mj.rules.regmean_mean(suite.task_vectors, grams(suite))


def react(suite: Suite) -> Any:
    """Solve for the last layer of the uniform merge; the tasks share it."""
    predict = suite.train.tasks[0].predict
    return mj.rules.react(suite.task_vectors, predict, inputs(suite))


def match_layers(suite: Suite) -> Any:
    """Solve for every kernel, up to what tasks share."""
    predict = suite.features or suite.train.tasks[0].predict
    return mj.rules.match_layers(suite.task_vectors, predict, inputs(suite))


def grams(suite: Suite, most: int | None = 500) -> list[Any]:
    """Collect what every expert's layers read of training examples of its own task."""
    each = zip(suite.train.tasks, inputs(suite, most), suite.experts, strict=True)
    return [mj.transforms.gram_matrices(task.predict, one, x) for task, x, one in each]


def inputs(suite: Suite, most: int | None = 500) -> list[Any]:
    """Take the inputs of the first training examples of each task; None takes all."""
    return [jax.tree.map(lambda x: x[:most], task.inputs) for task in suite.train.tasks]
