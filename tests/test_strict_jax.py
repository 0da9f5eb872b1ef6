"""Everything where JAX is strict, as users set it for their own code.

Neither ranks nor dtypes are promoted; and what stops at NaN, at leaked tracers, or compiles
nothing stops at no code of ours.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evosax.algorithms.distribution_based.cma_es import CMA_ES
from jax.core import Tracer
from test_explicit_axes import INPUTS, KEY, RULES, TRANSFORMS, predict

import mapjax as mj
from mapjax import alignment, design, pareto, rules, search, surrogate, transforms
from mapjax._jit import jit

RNG = np.random.default_rng(0)
SHAPES = {"layer_0": (8, 3), "layer_1": (3, 2), "bias": (3,), "temperature": ()}
BASE, *EXPERTS = [
    {name: np.float32(RNG.normal(size=shape)) for name, shape in SHAPES.items()}
    for _ in range(3)
]
C = RNG.random((9, 2)).astype(np.float32)
SCORES = np.stack([(C**2).sum(1), ((1 - C) ** 2).sum(1)], axis=1)
DRAWS = SCORES + 0.1 * RNG.normal(size=(5, *SCORES.shape)).astype(np.float32)
EQUAL = np.full(2, 0.5, np.float32)
SMALL: dict[str, Any] = dict(key=KEY, num_points=10, verify=1)
SHORT: dict[str, Any] = SMALL | dict(budget=6, num_generations=3)
LONGER: dict[str, Any] = SHORT | dict(budget=12)
METRICS = "accuracy", "cross_entropy"


@pytest.fixture(autouse=True)
def strict():
    """Set it as users do: `with jax.numpy_rank_promotion` would not reach other threads."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    yield
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")


def task_vectors():
    return mj.TaskVectors.from_params(BASE, EXPERTS)


def evaluator(rule=None, metric=mj.metrics.cross_entropy, predict=predict):
    tasks = []
    for i, x in enumerate(INPUTS):
        labels = np.arange(len(x)) % 2
        tasks.append(mj.Task(f"t{i}", predict, x, labels, metric))
    return mj.Evaluator(task_vectors() if rule is None else rule, tasks)


def two_corners(c):
    """Score merges so that the front lies between two corners of the box."""
    return np.stack([1 - (c**2).mean(axis=1), 1 - ((1 - c) ** 2).mean(axis=1)], axis=1)


def four_corners(c):
    return 1 - ((np.asarray(c)[:, None] - np.eye(4)) ** 2).mean(axis=2)


def objective(c):
    return jnp.stack([jnp.sum(c**2), jnp.sum((1 - c) ** 2)])


def usual(names, quick):
    """Run few of many with the usual tests."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", usual(TRANSFORMS | RULES, {"ties", "slerp"}))
def test_transforms_and_rules(name):
    tv, measured = task_vectors(), list(zip(EXPERTS, INPUTS, strict=True))
    if name in RULES:
        rule = RULES[name](tv, measured)
        both = jax.jit(jax.vmap(rule))(jnp.asarray(C[:2]))
        merged = rule(jnp.asarray(C[0]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, 1e-3), both, merged)
    else:
        merged = mj.merge(TRANSFORMS[name](tv, measured), C[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(merged))


DTYPES = {"layer_0": "float32", "layer_1": "float32", "layer_2": "bfloat16"}


@pytest.mark.parametrize("name", usual(TRANSFORMS | RULES, {"della", "ties", "slerp"}))
def test_nothing_is_promoted_unasked(name):
    rng = np.random.default_rng(0)
    base, *experts = (
        {k: jnp.asarray(rng.normal(size=(8, 8)), dtype) for k, dtype in DTYPES.items()}
        for _ in range(3)
    )
    tv = mj.TaskVectors.from_params(base, experts)
    measured = list(zip(experts, map(jnp.asarray, INPUTS), strict=True))
    edited = (TRANSFORMS | RULES)[name](tv, measured)
    for c in ([1, 1], np.array([0.3, 0.5], np.float32)):
        merged = mj.merge(edited, c)
        assert {k: x.dtype for k, x in merged.items()} == DTYPES
        assert all(np.isfinite(x).all() for x in merged.values())
    if name in RULES:

        def total(c):
            return jnp.sum(mj.merge(edited, c)["layer_1"])

        slope = jax.grad(total)(jnp.array([0.3, 0.5]))
        assert np.isfinite(slope).all()


VECTORS = {
    "group": lambda tv: mj.merge(mj.group(tv, {"first": "layer_0"}), C[:2]),
    "low_rank": lambda tv: INPUTS @ factored(tv)["layer_0"],
    "norms": lambda tv: (tv.norms(), tv.cosine_similarity()),
    "second_moments": lambda tv: transforms.second_moments(optax.adam(0.1).init(BASE)),
    "shares_base": lambda tv: alignment.shares_base(BASE, EXPERTS, least_cosine=-1.0),
    "weight_matching": lambda tv: match(("layer_0", "layer_1")),
}


def factored(tv):
    return mj.merge_factored(mj.low_rank(tv, rank=1), C[0])


def match(names):
    a, b = ({name: x[name] for name in names} for x in EXPERTS)
    spec = alignment.mlp_spec(a)
    return alignment.permute(spec, b, alignment.weight_matching(spec, a, b, key=KEY))


@pytest.mark.parametrize("name", VECTORS)
def test_task_vectors(name):
    VECTORS[name](task_vectors())


@pytest.mark.parametrize("transform", [None, mj.io.TIES(density=0.5), transforms.magmax])
def test_files(transform, tmp_path):
    for i, expert in enumerate([BASE, *EXPERTS]):
        mj.io.save(tmp_path / f"{i}.npz", expert)
    base, *experts = (tmp_path / f"{i}.npz" for i in range(3))
    out = tmp_path / "out.safetensors"
    mj.io.merge_files(base, experts, out, C[0], transform=transform)
    assert set(mj.io.load(out)) == set(SHAPES)


PARETO = {
    "attainment_band": lambda: pareto.attainment_band(DRAWS, np.linspace(0, 1, 4)),
    "coverage": lambda: pareto.coverage(SCORES, SCORES),
    "crowding_distance": lambda: pareto.crowding_distance(SCORES),
    "das_dennis": lambda: pareto.das_dennis(3, 4),
    "dominance_matrix": lambda: pareto.dominance_matrix(SCORES),
    "gd": lambda: pareto.gd(SCORES, SCORES),
    "gd_plus": lambda: pareto.gd_plus(SCORES, SCORES),
    "hypervolume": lambda: pareto.hypervolume(SCORES, np.full(2, 2.0)),
    "hypervolume_monte_carlo": lambda: pareto.hypervolume_monte_carlo(
        SCORES, np.full(2, 2.0), key=KEY, num_samples=100
    ),
    "igd": lambda: pareto.igd(SCORES, SCORES),
    "igd_plus": lambda: pareto.igd_plus(SCORES, SCORES),
    "non_dominated": lambda: pareto.non_dominated(SCORES),
    "non_dominated_ranks": lambda: pareto.non_dominated_ranks(SCORES),
    "pick_achievement": lambda: pareto.pick_achievement(SCORES, EQUAL),
    "pick_knee": lambda: pareto.pick_knee(SCORES),
    "pick_tchebycheff": lambda: pareto.pick_tchebycheff(SCORES, EQUAL),
    "pick_weighted_sum": lambda: pareto.pick_weighted_sum(SCORES, EQUAL),
    "probability_non_dominated": lambda: pareto.probability_non_dominated(DRAWS),
    "reference_directions": lambda: pareto.reference_directions(3, 10),
    "riesz_energy": lambda: pareto.riesz_energy(3, 6, key=KEY),
    "spacing": lambda: pareto.spacing(SCORES),
    "spread_subset": lambda: pareto.spread_subset(SCORES, 3),
    "two_layer": lambda: pareto.two_layer(3, 3, 2),
    "win_rate": lambda: pareto.win_rate(SCORES, SCORES),
}


def test_none_is_left_out():
    assert set(PARETO) == {n for n, x in vars(pareto).items() if inspect.isfunction(x)}


@pytest.mark.parametrize("name", PARETO)
def test_pareto(name):
    PARETO[name]()


@pytest.mark.parametrize("name", design.DESIGNS)
def test_designs(name):
    points = design.make_design(name, 9, 3, key=KEY)
    design.to_simplex(points)


QUADRATICS: list[dict[str, Any]] = [
    dict(ridge="auto"),
    dict(link=["sigmoid", "softplus"]),
    dict(jacobian=np.ones((9, 2, 2))),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", QUADRATICS)
def test_quadratics(options):
    fitted = surrogate.fit_quadratic(C, 0.4 * SCORES, **options)
    fitted(C), fitted(C[0]), fitted.std(C), fitted.errors(C, 2, key=KEY)
    assert fitted.constant.shape + fitted.linear.shape == (2, 2, 2)
    assert fitted.hessian.shape == (2, 2, 2)


def strategies():
    yield search.NSGA2(6, 2, 2)
    yield search.NSGA3(6, 2, 2)
    strategy = CMA_ES(population_size=4, solution=jnp.zeros(2))
    for kind in ("tchebycheff", "smooth_tchebycheff", "pbi"):
        yield search.Decomposition(strategy, 2, np.eye(2), kind)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_searches(number):
    """In one loop, and step by step as users of evosax do."""
    algorithm = list(strategies())[number]
    front = search.evolve(objective, algorithm, 2, key=KEY, archive_size=5)
    assert len(front) > 0
    score, params = jax.vmap(objective), algorithm.default_params
    population = jnp.full((algorithm.population_size, 2), 0.5)
    state = algorithm.init(KEY, population, score(population), params)
    population, state = algorithm.ask(KEY, state, params)
    algorithm.tell(KEY, population, score(population), state, params)


def test_proposals():
    search.polish(objective, C, np.ones((1, 2)), num_steps=2)
    search.propose_cells(C, SCORES[:, 0], 2, key=KEY)
    allowed = np.ones(len(C), bool)
    search.propose(jnp.asarray(DRAWS), jnp.ones((len(DRAWS), 2)), allowed)
    found = dict(reference=np.full(2, 2.0), ideal=np.zeros(2), allowed=allowed)
    search.propose_improving(DRAWS, DRAWS[:, :2], count=2, key=KEY, num_rays=8, **found)


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_an_evaluator(name):
    metric = getattr(mj.metrics, name)
    scorer = evaluator(metric=metric)
    scorer(C), scorer.scores_and_outputs(C)
    if metric.differentiable:
        scorer.value_and_jacobian(C)
    mj.evaluation.race(scorer, C, np.eye(2), key=KEY, first=8)


DRIVERS = {
    "quadratic": lambda: mj.map_front(two_corners, num_coefficients=2, **SHORT),
    "sigmoid": lambda: mj.map_front(
        two_corners, num_coefficients=2, link="sigmoid", tolerance=1e-9, **SHORT
    ),
    "outputs": lambda: mj.map_front(evaluator(), **SHORT),
    "accuracy": lambda: mj.map_front(evaluator(metric=mj.metrics.accuracy), **SHORT),
    "gradient": lambda: mj.map_front(evaluator(), surrogate="gradient", **LONGER),
    "groups": lambda: mj.map_front(evaluator(mj.group(task_vectors(), "tensor")), **SHORT),
    "rule": lambda: mj.map_front(evaluator(rules.wudi_mean(task_vectors())), **SHORT),
    "transform": lambda: mj.map_front(evaluator(transforms.ties(task_vectors())), **SHORT),
    "bayesian": lambda: mj.bayesian_front(evaluator(), **SHORT),
    "cells": lambda: mj.bayesian_front(
        two_corners, num_coefficients=2, acquisition="cells", **SHORT
    ),
    "composed": lambda: mj.nested_front(four_corners, num_coefficients=4, **SMALL),
    "paper": lambda: mj.nested_front(
        four_corners, num_coefficients=4, preference=np.ones(4), method="paper", **SMALL
    ),
    "adamerging": lambda: mj.adamerging(evaluator(), key=KEY, num_steps=2),
    "frank_wolfe": lambda: mj.frank_wolfe(evaluator(), key=KEY, num_steps=2),
}


@pytest.mark.parametrize("name", usual(DRIVERS, {"cells"}))
def test_drivers(name):
    solution = DRIVERS[name]()
    tasks = solution.samples.scores.shape[1]
    solution.pick(), solution.pick([1.0] * tasks)
    solution.hypervolume(), str(solution)
    if solution.surrogate is not None:
        solution.predicted(solution.front.coefficients[:2])


DEBUGGING = {
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "leaks": jax.checking_leaks,
}


@pytest.mark.parametrize("switch", DEBUGGING)
@pytest.mark.parametrize("name", usual(DRIVERS, {"cells"}))
def test_drivers_pass_where_models_are_debugged(name, switch):
    with DEBUGGING[switch]():
        DRIVERS[name]()


@pytest.mark.slow
def test_an_evaluator_compiles_nothing_where_that_is_switched_off():
    seen = []
    scorer = evaluator(predict=lambda p, x: seen.append(x) or predict(p, x))
    want = scorer(C[:2])
    seen.clear()
    with jax.disable_jit():
        np.testing.assert_allclose(scorer(C[:2]), want, rtol=1e-5)
    assert not isinstance(seen[0], Tracer)
    with jax.disable_jit():
        assert len(search.polish(objective, C, np.ones((1, 2)), num_steps=1)) > 0


def promoting(c):
    return jnp.sum(jnp.eye(2) * c, axis=1)


def with_bias(params, x):
    return predict(params, x) + jnp.ones(2)


USER_CODE = {
    "evolve": lambda: search.evolve(promoting, search.NSGA3(6, 2, 2), 1, key=KEY),
    "polish": lambda: search.polish(promoting, C, np.ones((1, 2)), num_steps=1),
    "an evaluator": lambda: evaluator(predict=with_bias),
    "gram_matrices": lambda: transforms.gram_matrices(with_bias, BASE, INPUTS[0]),
    "react": lambda: rules.react(task_vectors(), with_bias, list(INPUTS)),
    "match_layers": lambda: rules.match_layers(task_vectors(), with_bias, list(INPUTS)),
}


@pytest.mark.parametrize("name", USER_CODE)
def test_user_code_is_held_to_it_still(name):
    with pytest.raises(ValueError, match="could not be broadcast together"):
        USER_CODE[name]()


def test_nothing_is_traced_twice():
    """Called again, or within a function that a user compiled."""
    traced = []

    @jit
    def add(matrix, vector):
        traced.append(matrix.shape)
        return matrix + vector

    matrix, vector = jnp.ones((2, 3)), jnp.ones(3)
    for _ in range(2):
        np.testing.assert_array_equal(add(matrix, vector), np.full((2, 3), 2))
    assert traced == [(2, 3)]
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(add(matrix, v))))
    for _ in range(2):
        assert gradient(vector).tolist() == [2, 2, 2]
    assert len(traced) <= 2
    with pytest.raises(ValueError, match="could not be broadcast together"):
        matrix + vector  # as before, outside
