"""NSGA-III and NSGA-II against those of pymoo, at equal evaluations."""

import jax
import jax.numpy as jnp
import moocore
import numpy as np
import pytest
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3 as PymooNSGA3
from pymoo.core.problem import Problem
from pymoo.optimize import minimize

from mapjax.pareto import non_dominated, reference_directions
from mapjax.search import NSGA2, NSGA3


def zdt1(c, numpy=jnp):
    g = 1 + 9 * numpy.mean(c[..., 1:], axis=-1)
    return numpy.stack([c[..., 0], g - numpy.sqrt(c[..., 0] * g)], axis=-1)


def dtlz2(c, numpy=jnp):
    g = 1 + numpy.sum((c[..., 2:] - 0.5) ** 2, axis=-1)
    a, b = c[..., 0] * np.pi / 2, c[..., 1] * np.pi / 2
    parts = numpy.cos(a) * numpy.cos(b), numpy.cos(a) * numpy.sin(b), numpy.sin(a)
    return g[..., None] * numpy.stack(parts, axis=-1)


class InPymoo(Problem):
    def __init__(self, function, num_coefficients, num_objectives):
        super().__init__(n_var=num_coefficients, n_obj=num_objectives, xl=0.0, xu=1.0)
        self.function = function

    def _evaluate(self, x, out, *args, **kwargs):
        out["F"] = self.function(x, np)


def last_populations(function, algorithm, num_generations, num_runs):
    """The fronts of the last populations alone, by evosax's own loop."""
    params = algorithm.default_params

    @jax.jit
    def run(key):
        start_key, init_key, loop_key = jax.random.split(key, 3)
        shape = (algorithm.population_size, algorithm.num_dims)
        population = jax.random.uniform(start_key, shape)
        state = algorithm.init(init_key, population, function(population), params)

        def step(state, key):
            population, state = algorithm.ask(key, state, params)
            return algorithm.tell(key, population, function(population), state, params)

        keys = jax.random.split(loop_key, num_generations - 1)
        return jax.lax.scan(step, state, keys)[0].fitness

    for key in jax.random.split(jax.random.key(0), num_runs):
        fitness = np.asarray(run(key))
        yield fitness[np.asarray(non_dominated(fitness))]


@pytest.mark.parametrize(
    ("function", "num", "algorithm", "opponent"),
    [
        (zdt1, 6, "NSGA3", lambda d: PymooNSGA3(ref_dirs=d, pop_size=len(d))),
        (dtlz2, 6, "NSGA3", lambda d: PymooNSGA3(ref_dirs=d, pop_size=len(d))),
        (zdt1, 6, "NSGA2", lambda d: PymooNSGA2(pop_size=len(d))),
    ],
)
@pytest.mark.slow
def test_hypervolume_is_that_of_pymoo(function, num, algorithm, opponent):
    objectives, generations = (3, 80) if function is dtlz2 else (2, 80)
    directions = np.asarray(reference_directions(objectives, 21), np.float64)
    ours = (
        NSGA3(21, num, objectives, directions)
        if algorithm == "NSGA3"
        else NSGA2(21, num, objectives)
    )
    reference = np.full(objectives, 1.2)

    def hypervolume(front):
        return moocore.hypervolume(np.asarray(front, np.float64), ref=reference)

    mine = [
        hypervolume(front) for front in last_populations(function, ours, generations, 15)
    ]
    theirs = [
        hypervolume(
            minimize(
                InPymoo(function, num, objectives),
                opponent(directions),
                ("n_gen", generations),
                seed=seed,
            ).F
        )
        for seed in range(5)
    ]
    assert np.median(mine) > 0.98 * np.median(theirs)
    assert np.median(mine) < 1.03 * np.median(theirs)
