"""Multi-objective search: evosax algorithms, and one jitted loop that runs them."""

from mapjax.search._angles import propose_cells as propose_cells
from mapjax.search._decomposition import Decomposition as Decomposition
from mapjax.search._evolve import evolve as evolve
from mapjax.search._improvement import Improvement as Improvement
from mapjax.search._improvement import propose_improving as propose_improving
from mapjax.search._nsga2 import NSGA2 as NSGA2
from mapjax.search._nsga3 import NSGA3 as NSGA3
from mapjax.search._polish import polish as polish
from mapjax.search._proposals import propose as propose
