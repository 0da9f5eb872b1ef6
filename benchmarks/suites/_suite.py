"""What a suite is: task vectors and two evaluators of them."""

import hashlib
from typing import NamedTuple

import jax
import numpy as np

import mapjax as mj


class Suite(NamedTuple):
    """A problem with models in it.

    Attributes:
        name: What it is called on the command line.
        seed: What the training of its models was drawn from.
        task_vectors: The base and the experts, one per task.
        validation: Scores merges on the examples that coefficients are chosen on.
        test: Scores merges on examples that nothing was chosen on.
    """

    name: str
    seed: int
    task_vectors: mj.TaskVectors
    validation: mj.Evaluator
    test: mj.Evaluator

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order of the scores."""
        return self.validation.task_names

    def fingerprint(self) -> str:
        """Name the models and the validation examples by their bytes.

        What is kept on disk goes by this name, so that another version of anything that
        trains a model never meets figures of the old one.
        """
        digest = hashlib.sha256()
        for task in self.validation.tasks:
            for leaf in jax.tree.leaves((task.inputs, task.targets)):
                digest.update(np.asarray(leaf).tobytes())
        for leaf in jax.tree.leaves(self.task_vectors):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]
