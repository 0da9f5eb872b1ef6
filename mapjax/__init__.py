"""Pareto fronts of merged models in JAX, from a handful of evaluations."""

import importlib
import typing

from mapjax import design as design
from mapjax import metrics as metrics
from mapjax import pareto as pareto
from mapjax import surrogate as surrogate
from mapjax._bayesian import bayesian_front as bayesian_front
from mapjax._map import map_front as map_front
from mapjax._nested import nested_front as nested_front
from mapjax._result import RESULTS as RESULTS
from mapjax._result import Front as Front
from mapjax._result import Samples as Samples
from mapjax._solution import Solution as Solution
from mapjax.evaluation import Evaluator as Evaluator
from mapjax.evaluation import Task as Task
from mapjax.task_vectors import TaskVectors as TaskVectors
from mapjax.task_vectors import merge as merge

if typing.TYPE_CHECKING:
    from mapjax import plot as plot
    from mapjax import search as search


def __getattr__(name: str) -> typing.Any:
    # evosax, flax and matplotlib take longer to import than JAX: they wait for their use.
    if name in ("plot", "search"):
        return importlib.import_module(f"mapjax.{name}")
    raise AttributeError(f"module 'mapjax' has no attribute {name!r}")
