"""Real evaluations: from coefficients to scores."""

from mapjax.evaluation._evaluator import Evaluator as Evaluator
from mapjax.evaluation._problem import Problem as Problem
from mapjax.evaluation._problem import describe_problem as describe_problem
from mapjax.evaluation._problem import minimising_signs as minimising_signs
from mapjax.evaluation._program import host_memory as host_memory
from mapjax.evaluation._race import Race as Race
from mapjax.evaluation._race import race as race
from mapjax.evaluation._recorder import Recorder as Recorder
from mapjax.evaluation._task import Task as Task
