"""Ways to a front, behind one signature: a suite and a budget in, a `Found` out."""

from benchmarks.methods._direct import nsga3_from as nsga3_from
from benchmarks.methods._direct import sobol_points as sobol_points
from benchmarks.methods._found import Found as Found
from benchmarks.methods._found import NotInstalledError as NotInstalledError
from benchmarks.methods._registry import METHODS as METHODS
from benchmarks.methods._registry import NOT_RUN as NOT_RUN
from benchmarks.methods._registry import Method as Method
