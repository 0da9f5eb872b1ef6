"""Pareto fronts of merged models in JAX, from a handful of evaluations."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from mapjax import alignment as alignment
    from mapjax import design as design
    from mapjax import evaluation as evaluation
    from mapjax import io as io
    from mapjax import metrics as metrics
    from mapjax import pareto as pareto
    from mapjax import plot as plot
    from mapjax import rules as rules
    from mapjax import search as search
    from mapjax import surrogate as surrogate
    from mapjax import transforms as transforms
    from mapjax._batch_norm import recalibrate_batch_norm as recalibrate_batch_norm
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

# Everything waits for its use: JAX takes half a second to import, and flax longer.
_PACKAGES = (
    "alignment",
    "design",
    "evaluation",
    "io",
    "metrics",
    "pareto",
    "plot",
    "rules",
    "search",
    "surrogate",
    "transforms",
)
_HOMES = {
    "Evaluator": "evaluation",
    "Front": "_result",
    "LowRank": "_low_rank",
    "RESULTS": "_result",
    "Samples": "_result",
    "Solution": "_solution",
    "Task": "evaluation",
    "TaskVectors": "task_vectors",
    "adamerging": "_tuning",
    "bayesian_front": "_bayesian",
    "frank_wolfe": "_tuning",
    "from_lora": "_lora",
    "group": "_group",
    "low_rank": "_lora",
    "map_front": "_map",
    "merge": "task_vectors",
    "merge_factored": "_lora",
    "nested_front": "_nested",
    "recalibrate_batch_norm": "_batch_norm",
}


def __getattr__(name: str) -> typing.Any:
    if name in _PACKAGES:
        return importlib.import_module(f"mapjax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mapjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mapjax.{_HOMES[name]}"), name)
    globals()[name] = value  # the next use finds it at once
    return value


def __dir__() -> list[str]:
    return [*_PACKAGES, *_HOMES]
