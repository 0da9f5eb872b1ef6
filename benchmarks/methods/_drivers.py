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
    return Found(
        np.asarray(samples.coefficients),
        np.asarray(samples.scores),
        np.asarray(front.coefficients),
        np.asarray(front.scores),
        None if front.std is None else np.asarray(front.std),
        solution.surrogate,
        rule,
    )


def on_regmean(suite: Suite, budget: int) -> Found:
    """Run `map_front` on the vectors of `transforms.regmean`.

    It reads inputs of training examples, up to 500 for each task, and no labels.
    """
    return with_driver(suite, budget, rule=regmean(suite))


def on_regmean_mean(suite: Suite, budget: int, **options: Any) -> Found:
    """Run `map_front` on the weights of `rules.regmean_mean`, which reads the same."""
    rule = mj.rules.regmean_mean(*with_grams(suite))
    return with_driver(suite, budget, rule=rule, **options)


def on_react(suite: Suite, budget: int, **options: Any) -> Found:
    """Run `map_front` on the preferences of `rules.react`, which reads the same."""
    return with_driver(suite, budget, rule=react(suite), **options)


def react(suite: Suite, most: int = 500) -> Any:
    """Solve for the last layer of the uniform merge; the tasks share it."""
    tasks = suite.train.tasks
    inputs = [jax.tree.map(lambda x: x[:most], task.inputs) for task in tasks]
    return mj.rules.react(suite.task_vectors, tasks[0].predict, inputs)


def on_match_layers(suite: Suite, budget: int, **options: Any) -> Found:
    """Run `map_front` on the preferences of `rules.match_layers`, which reads the same."""
    return with_driver(suite, budget, rule=match_layers(suite), **options)


def match_layers(suite: Suite, most: int = 500) -> Any:
    """Solve for every kernel, up to what tasks share."""
    tasks = suite.train.tasks
    inputs = [jax.tree.map(lambda x: x[:most], task.inputs) for task in tasks]
    predict = suite.features or tasks[0].predict
    return mj.rules.match_layers(suite.task_vectors, predict, inputs)


def regmean(suite: Suite) -> mj.TaskVectors:
    """Make the vectors of RegMean."""
    return mj.transforms.regmean(*with_grams(suite))


def with_grams(suite: Suite, most: int = 500) -> tuple[mj.TaskVectors, list[Any]]:
    """Give the task vectors, and what every expert's layers read of its own task."""
    vectors = suite.task_vectors
    experts = np.eye(vectors.num_tasks, dtype=np.float32)
    grams = [
        mj.transforms.gram_matrices(
            task.predict,
            mj.merge(vectors, one),
            jax.tree.map(lambda x: x[:most], task.inputs),
        )
        for task, one in zip(suite.train.tasks, experts, strict=True)
    ]
    return vectors, grams
