"""Search against pymoo and DEAP: a surrogate's front, and the test problems of the field."""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from deap import tools
from pymoo.algorithms.moo.nsga3 import NSGA3 as PymooNSGA3
from pymoo.core.problem import Problem
from pymoo.optimize import minimize
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

import mapjax as mj
from benchmarks._deap import PAPER_BOUNDS, run_nsga3
from benchmarks._problems import PROBLEMS
from benchmarks._report import against, parser, report, timed
from mapjax import pareto, search
from mapjax.search._archive import Archive, archive_weights

GENERATIONS = 150
DIRECTIONS = 100


class Quadratics(eqx.Module):
    """What MAP searches: one quadratic of the coefficients per task."""

    constant: jax.Array
    linear: jax.Array
    hessian: jax.Array

    def __call__(self, c: jax.Array) -> jax.Array:
        """Evaluate one point."""
        return self.constant + self.linear @ c + 0.5 * (self.hessian @ c) @ c


def quadratics(num: int, seed: int = 0) -> Quadratics:
    """Make tasks that conflict: each is best near its own expert, one of the corners."""
    rng = np.random.default_rng(seed)
    best = 0.9 * np.eye(num) + 0.1 * rng.random((num, num))
    roots = rng.normal(size=(num, num, num)) / np.sqrt(num)
    hessian = roots @ roots.transpose(0, 2, 1) + 0.5 * np.eye(num)
    linear = -np.einsum("tij,tj->ti", hessian, best)
    constant = -0.5 * np.einsum("ti,ti->t", linear, best)
    return Quadratics(*(jnp.asarray(x, jnp.float32) for x in (constant, linear, hessian)))


def in_numpy(objective: Quadratics) -> Callable[[np.ndarray], np.ndarray]:
    """The same quadratics, vectorised over points."""
    constant, linear, hessian = (np.asarray(x, float) for x in jax.tree.leaves(objective))
    rows, columns = np.triu_indices(len(constant))
    doubled = hessian[:, rows, columns] * np.where(rows == columns, 0.5, 1)
    return lambda x: constant + x @ linear.T + (x[:, rows] * x[:, columns]) @ doubled.T


class InPymoo(Problem):
    """A vectorised function on the unit box."""

    def __init__(self, function: Any, num_coefficients: int, num_objectives: int):
        super().__init__(n_var=num_coefficients, n_obj=num_objectives, xl=0.0, xu=1.0)
        self.function = function

    def _evaluate(self, x: np.ndarray, out: dict, *args: Any, **kwargs: Any) -> None:
        out["F"] = self.function(x)


def with_pymoo(
    function: Any, num: int, directions: np.ndarray, generations: int, seed: int
) -> np.ndarray:
    """Run pymoo's NSGA-III, and keep what none dominates in the last population.

    Its own result is the point closest to each direction alone.
    """
    problem = InPymoo(function, num, directions.shape[1])
    algorithm = PymooNSGA3(ref_dirs=directions, pop_size=len(directions))
    done: Any = minimize(problem, algorithm, ("n_gen", generations), seed=seed)
    scores = np.asarray(done.pop.get("F"))
    best = NonDominatedSorting().do(scores, only_non_dominated_front=True)
    return scores[np.asarray(best)]


class Archived(NamedTuple):
    """What DEAP found, and the seconds it took without and with its archive."""

    scores: np.ndarray
    seconds_of_search: float
    seconds: float


def with_deap(objective: Quadratics, generations: int, seed: int) -> Archived:
    """Follow the protocol of the MAP paper: DEAP's NSGA-III on sigmoids of quadratics.

    Individuals are scored one by one, and all that none dominates are kept, in DEAP's own
    archive. The box is the paper's, wider than where experts were sampled.
    """
    constant, linear, hessian = (np.asarray(x, float) for x in jax.tree.leaves(objective))
    num, tasks = len(linear[0]), list(zip(constant, linear, hessian, strict=True))

    def score(individual: list[float]) -> tuple[float, ...]:
        c = np.array(individual)
        quadratics = (e + b @ c + 0.5 * c @ a @ c for e, b, a in tasks)
        return tuple(1 / (1 + np.exp(-value)) for value in quadratics)

    archive, spent_on_archive = tools.ParetoFront(), 0.0

    def keep(scored: list) -> None:
        nonlocal spent_on_archive
        started = time.perf_counter()
        archive.update(scored)
        spent_on_archive += time.perf_counter() - started

    begun = time.perf_counter()
    run_nsga3(
        lambda individuals: map(score, individuals),
        num,
        num,
        maximize=False,
        generations=generations - 1,
        seed=seed,
        keep=keep,
    )
    spent = time.perf_counter() - begun
    scores = np.array([one.fitness.values for one in archive])
    return Archived(np.log(scores / (1 - scores)), spent - spent_on_archive, spent)


def hypervolumes(reference: np.ndarray, *others: np.ndarray) -> list[float]:
    """Measure fronts relative to the first, in the box that the first spans and 10 %."""
    lower, upper = reference.min(axis=0), reference.max(axis=0)
    corner = np.full(len(lower), 1.1)

    def measure(front: np.ndarray) -> float:
        scaled = (front - lower) / (upper - lower)
        scaled = np.maximum(scaled[(scaled < 1.1).all(axis=1)], 0)
        if len(lower) <= 4:
            return float(pareto.hypervolume(scaled, corner))
        # The same samples for every front: the error of a ratio is far below 0.005.
        key, ideal = jax.random.key(0), np.zeros(len(lower))
        return float(
            pareto.hypervolume_monte_carlo(
                scaled, corner, key=key, num_samples=400_000, ideal=ideal
            )[0]
        )

    least = measure(reference)
    return [measure(other) / least for other in others]


def thinned(front: np.ndarray, most: int) -> np.ndarray:
    """Keep so many points of a front, far apart."""
    return front[np.asarray(pareto.spread_subset(front, most))]


def cold(who: str, num: int) -> None:
    """Print the seconds of the first search of this process, imports left out."""
    objective = quadratics(num)
    directions = np.asarray(pareto.reference_directions(num, DIRECTIONS), float)
    function, key = in_numpy(objective), jax.random.key(0)
    gc.freeze()  # what the imports of both have left is nobody's to look through
    begun = time.perf_counter()
    if who == "ours":
        algorithm = search.NSGA3(DIRECTIONS, num, num, directions)
        search.evolve(objective, algorithm, GENERATIONS, key=key)
    else:
        with_pymoo(function, num, directions, GENERATIONS, 0)
    print(time.perf_counter() - begun)


def in_new_processes(num: int, repeats: int) -> dict[str, float]:
    """Time first searches, each in a process of its own, in turn."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for who, times in found.items():
            command = [sys.executable, "-m", "benchmarks.bench_search", "--cold", who]
            out = subprocess.run(
                [*command, str(num)], capture_output=True, text=True, check=True
            )
            times.append(float(out.stdout.splitlines()[-1]))
    medians = {who: statistics.median(times) for who, times in found.items()}
    return medians | {"ours_over_theirs": medians["ours"] / medians["theirs"]}


def tracing(num: int, quick: bool) -> dict[str, Any]:
    """Trace the front of random quadratics, 15 000 evaluations each."""
    objective, key = quadratics(num), jax.random.key(0)
    directions = np.asarray(pareto.reference_directions(num, DIRECTIONS), float)
    algorithm, function = (
        search.NSGA3(DIRECTIONS, num, num, directions),
        in_numpy(objective),
    )
    fronts: list[mj.Front] = []
    populations: list[np.ndarray] = []

    def ours() -> jax.Array:
        run = jax.random.fold_in(key, len(fronts))
        fronts.append(search.evolve(objective, algorithm, GENERATIONS, key=run))
        return fronts[-1].scores

    def theirs() -> None:
        seed = len(populations)
        populations.append(with_pymoo(function, num, directions, GENERATIONS, seed))

    figures: dict[str, Any] = {"warm": against(ours, theirs, 2 if quick else 5)}
    figures["cold"] = in_new_processes(num, 1 if quick else 5)
    pairs = [
        (np.asarray(us.scores), them) for us, them in zip(fronts, populations, strict=True)
    ]
    found = [hypervolumes(them, us, thinned(us, len(them))) for us, them in pairs]
    whole, alike = (statistics.median(column) for column in zip(*found, strict=True))
    figures["hypervolume_over_pymoo"] = whole
    figures["hypervolume_over_pymoo_of_as_many_points"] = alike
    figures["points"] = {"ours": len(fronts[-1]), "pymoo": len(populations[-1])}

    start, towards = fronts[0].coefficients, directions
    figures["polish"] = timed(lambda: search.polish(objective, start, towards).scores)
    polished = np.asarray(search.polish(objective, start, towards).scores)
    gain = hypervolumes(np.asarray(fronts[0].scores), polished)[0]
    figures["polish"]["hypervolume_gain"] = gain

    def in_their_box() -> mj.Front:
        return search.evolve(objective, algorithm, GENERATIONS, PAPER_BOUNDS, key=key)

    us, them = timed(lambda: in_their_box().scores), with_deap(objective, GENERATIONS, 0)
    wide = np.asarray(in_their_box().scores)
    figures["deap"] = {
        "ours": us["median"],
        "seconds": them.seconds,
        "seconds_without_archive": them.seconds_of_search,
        "times_faster": them.seconds / us["median"],
        "times_faster_without_archive": them.seconds_of_search / us["median"],
        "archived": len(them.scores),
        "hypervolume_over_ours": hypervolumes(wide, them.scores)[0],
    }
    return figures | {"microseconds_a_generation": components(num)}


def components(num: int, generations: int = 300) -> dict[str, float]:
    """Time what each part adds to a generation."""
    objective, key = quadratics(num), jax.random.key(0)
    algorithm = search.NSGA3(DIRECTIONS, num, num)
    params, evaluate = algorithm.default_params, jax.vmap(objective)
    population = jax.random.uniform(key, (DIRECTIONS, num))
    weights = jnp.asarray(archive_weights(num, 200).T, jnp.float32)
    state = algorithm.init(key, population, evaluate(population), params)
    archive = Archive(jnp.zeros((200, num)), jnp.full((200, num), jnp.inf))

    def generation(parts, carry, keys):
        state, archive = carry
        population, state = algorithm.ask(keys[0], state, params)
        fitness = evaluate(population) if "objectives" in parts else state.fitness
        if "tell" in parts:
            state, _ = algorithm.tell(keys[1], population, fitness, state, params)
        else:
            state = state.replace(population=population, fitness=fitness)
        if "archive" in parts:
            ends = {"ideal": state.ideal, "nadir": state.nadir}
            archive = archive.update(population, fitness, weights=weights, **ends)
        return (state, archive), None

    figures: dict[str, float] = {}
    parts = ["ask"]
    keys = jax.random.split(key, (generations, 2))
    for part in ("ask", "objectives", "tell", "archive"):
        parts.append(part)
        step = partial(generation, tuple(parts))
        run = jax.jit(lambda carry, step=step: jax.lax.scan(step, carry, keys)[0])
        spent = timed(lambda run=run: run((state, archive)))["median"]
        figures[part] = 1e6 * spent / generations - sum(figures.values())
    return figures


def distance(name: str, seeds: int) -> dict[str, float]:
    """Compare IGD at equal evaluations: of the whole result, and of as many points."""
    function, num, generations, directions, true_front = PROBLEMS[name]
    size, objectives = directions.shape
    algorithm, front = search.NSGA3(size, num, objectives, directions), true_front()
    params = algorithm.default_params

    def objective(c: jax.Array) -> jax.Array:
        return function(c, jnp)

    @jax.jit
    def last_population(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, generations)
        population = jax.random.uniform(keys[0], (size, num))
        scores = jax.vmap(objective)(population)
        state = algorithm.init(key, population, scores, params)

        def step(state, key):
            population, state = algorithm.ask(key, state, params)
            scores = jax.vmap(objective)(population)
            return algorithm.tell(key, population, scores, state, params)[0], None

        return jax.lax.scan(step, state, keys[1:])[0].fitness

    def igd(scores: Any) -> float:
        scores = np.asarray(scores)
        return float(pareto.igd(scores[np.asarray(pareto.non_dominated(scores))], front))

    found: dict[str, list[float]] = {"ours": [], "our_population": [], "pymoo": []}
    for seed in range(seeds):
        key = jax.random.key(seed)
        found["ours"].append(
            igd(search.evolve(objective, algorithm, generations, key=key).scores)
        )
        found["our_population"].append(igd(last_population(key)))
        them = with_pymoo(lambda x: function(x, np), num, directions, generations, seed)
        found["pymoo"].append(igd(them))
    medians = {who: statistics.median(values) for who, values in found.items()}
    over = {
        f"{who}_over_pymoo": medians[who] / medians["pymoo"]
        for who in ("ours", "our_population")
    }
    return medians | over | {"evaluations": size * generations, "seeds": seeds}


def main() -> None:
    if "--cold" in sys.argv:
        who, num = sys.argv[-2:]
        return cold(who, int(num))
    arguments = parser(__doc__ or "").parse_args()
    quick = arguments.quick
    figures: dict[str, Any] = {
        "opponents": {name: metadata.version(name) for name in ("pymoo", "deap", "evosax")}
    }
    for num in (2,) if quick else (2, 4, 8):
        figures[f"N = T = {num}"] = tracing(num, quick)
        print(json.dumps(figures[f"N = T = {num}"]), file=sys.stderr)
    for name in ("ZDT1", "DTLZ2, 3") if quick else PROBLEMS:
        figures[name] = distance(name, 1 if quick else 11)
        print(name, json.dumps(figures[name]), file=sys.stderr)
    return report("search", figures, arguments.output)


if __name__ == "__main__":
    main()
