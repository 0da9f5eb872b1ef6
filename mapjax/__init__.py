"""Pareto fronts of merged models in JAX, from a handful of evaluations."""

import importlib
import typing

from mapjax import design as design
from mapjax import metrics as metrics
from mapjax import pareto as pareto
from mapjax import surrogate as surrogate
from mapjax._bayesian import bayesian_front as bayesian_front
from mapjax._group import group as group
from mapjax._lora import from_lora as from_lora
from mapjax._lora import low_rank as low_rank
from mapjax._lora import merge_factored as merge_factored
from mapjax._low_rank import LowRank as LowRank
from mapjax._map import map_front as map_front
from mapjax._nested import nested_front as nested_front
from mapjax._result import RESULTS as RESULTS
from mapjax._result import Front as Front
from mapjax._result import Samples as Samples
from mapjax._solution import Solution as Solution
from mapjax._tuning import adamerging as adamerging
from mapjax._tuning import frank_wolfe as frank_wolfe
from mapjax.evaluation import Evaluator as Evaluator
from mapjax.evaluation import Task as Task
from mapjax.task_vectors import TaskVectors as TaskVectors
from mapjax.task_vectors import merge as merge

if typing.TYPE_CHECKING:
    from mapjax import alignment as alignment
    from mapjax import io as io
    from mapjax import plot as plot
    from mapjax import rules as rules
    from mapjax import search as search
    from mapjax import transforms as transforms


def __getattr__(name: str) -> typing.Any:
    # evosax, flax and matplotlib take longer to import than JAX: they wait for their use.
    if name in ("alignment", "io", "plot", "rules", "search", "transforms"):
        return importlib.import_module(f"mapjax.{name}")
    raise AttributeError(f"module 'mapjax' has no attribute {name!r}")
