"""What a suite is: models, and examples to choose and to judge merges by."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

import mapjax as mj


def with_rule(
    evaluator: mj.Evaluator, rule: Any, num_coefficients: int | None = None
) -> mj.Evaluator:
    """Score the same tasks, merged by another rule; None leaves the evaluator as it is.

    Args:
        evaluator: Of a suite.
        rule: Task vectors or a function `coefficients -> parameters`.
        num_coefficients: How many a function takes that does not say so itself.
    """
    if rule is None:
        return evaluator
    return mj.Evaluator(rule, evaluator.tasks, num_coefficients=num_coefficients)


class Suite(NamedTuple):
    """A problem with models in it. All metrics are maximised.

    Attributes:
        name: What it is called on the command line.
        seed: What the training of its models was drawn from.
        task_vectors: The base and the experts, one per task.
        train: Scores merges on examples that experts were trained on.
        validation: Scores merges on the examples that coefficients are chosen on.
        test: Scores merges on examples that nothing was chosen on.
        held_out: Scores merges on test examples of two tasks that no model was trained on.
        features: Where tasks keep heads of their own: from parameters and inputs to what
            these read.
    """

    name: str
    seed: int
    task_vectors: mj.TaskVectors
    train: mj.Evaluator
    validation: mj.Evaluator
    test: mj.Evaluator
    held_out: mj.Evaluator
    features: Callable[[PyTree, PyTree], Array] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order of the scores."""
        return self.validation.task_names

    @property
    def experts(self) -> list[PyTree]:
        """The experts' parameters, in the order of the tasks."""
        ones = np.eye(self.task_vectors.num_tasks, dtype=np.float32)
        return [mj.merge(self.task_vectors, one) for one in ones]

    def fingerprint(self) -> str:
        """Name the models, heads included, and the validation examples by their bytes.

        What is kept on disk goes by this name, so that another version of anything that
        trains a model never meets figures of the old one.
        """
        digest = hashlib.sha256()
        arrays = eqx.filter((self.validation.tasks, self.task_vectors), eqx.is_array)
        for leaf in jax.tree.leaves(arrays):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]
