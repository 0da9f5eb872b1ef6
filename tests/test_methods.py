"""Benchmarks: every method keeps to its budget, and does what its paper says."""

import json
import sys

import jax.numpy as jnp
import moocore
import numpy as np
import pytest
from bench_tools import N, toy_suite
from pymoo.core.problem import Problem
from pymoo.optimize import minimize

import mapjax as mj
from benchmarks import bench_transforms
from benchmarks.methods import METHODS, _botorch, _closed, _direct, _paper, _single
from benchmarks.methods._registry import NOT_RUN

ONES_WITH_A_SERVER = {"botorch_qnehvi"}
DRIVERS = {name for name, method in METHODS.items() if method.is_ours}
TESTED = sorted({*METHODS} - ONES_WITH_A_SERVER - DRIVERS | {"map_front"})
SINGLE = {"task_arithmetic", "ties", "dare", "tsv", "iso_c", "wudi"}
TUNED = {"adamerging", "adamerging_layerwise"}
BY_PREFERENCE = {"regmean_mean", "fisher_mean", "wudi_mean", "react"}
SEARCHES = {"nsga2": _direct.nsga2, "nsga3": _direct.nsga3, "moead": _direct.moead}
BUDGET = 20


@pytest.fixture(scope="module")
def suite():
    return toy_suite()


def corners():
    return np.eye(N + 1, N, k=-1)


def test_every_transform_and_rule_is_measured():
    helpers = {
        "Gram",
        "InputAxes",
        "MergeRule",
        "fisher",
        "gram_matrices",
        "second_moments",
    }
    not_for_eight = {"slerp", "nuslerp"}
    as_soups = {"weighted_average"}  # task arithmetic among mixtures
    public = {
        name
        for module in (mj.transforms, mj.rules)
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_")
    }
    measured = {
        rule.removeprefix("rules.").split(" of ")[0].split(",")[0]
        for rule in bench_transforms.RULES
    }
    assert public - helpers - not_for_eight - as_soups == measured - {
        "low_rank",
        "task arithmetic",
    }


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.slow
def test_methods_keep_to_the_budget_and_report_what_they_evaluated(name, suite):
    # Rounds of a driver take long to compile.
    budget = N + 2 if name in DRIVERS else BUDGET
    found = METHODS[name].run(suite, budget)
    count, width = found.evaluated.shape
    assert found.scores.shape == (count, N)
    assert found.predicted.shape == (len(found.coefficients), N)
    rule = suite.task_vectors if found.rule is None else found.rule
    evaluator = mj.Evaluator(rule, suite.validation.tasks, num_coefficients=width)
    np.testing.assert_allclose(
        evaluator(found.evaluated), found.scores, rtol=1e-5, atol=1e-6
    )
    if name in SINGLE | TUNED:
        assert count <= budget
        assert len(found.coefficients) == 1
        best = found.scores[found.scores.mean(axis=1).argmax()]
        np.testing.assert_array_equal(found.predicted[0], best)
    else:
        assert count == budget
        assert len(np.unique(found.evaluated.round(6), axis=0)) > 0.75 * budget
        first = np.eye(N) if name in BY_PREFERENCE | {"paper_protocol"} else corners()
        np.testing.assert_array_equal(found.evaluated[: len(first)], first)
    if found.surrogate is not None:
        predicted = np.asarray(found.surrogate(found.coefficients))
        np.testing.assert_allclose(predicted, found.predicted, rtol=1e-3, atol=1e-4)
    else:
        best = np.asarray(moocore.is_nondominated(found.scores, maximise=True))
        assert name in SINGLE or {*map(tuple, found.scores[best])} == {
            *map(tuple, found.predicted)
        }
    again = METHODS[name].run(suite, budget)
    np.testing.assert_array_equal(found.coefficients, again.coefficients)
    np.testing.assert_array_equal(found.evaluated, again.evaluated)


@pytest.mark.slow
def test_methods_make_do_with_the_base_and_the_experts(suite):
    for name in {*TESTED} - {"map_front", "paper_protocol"} - TUNED:
        assert len(METHODS[name].run(suite, N + 1).evaluated) <= N + 1, name


def test_what_is_not_run_has_a_reason_with_a_version():
    assert not {*NOT_RUN} & {*METHODS}
    assert all(reason[0].isdigit() for reason in NOT_RUN.values())


def test_the_papers_grid_has_two_levels_and_lacks_rank_at_eight(suite):
    seen = []

    class Recorder:
        def __call__(self, c, **options):
            seen.append(c)
            return np.stack([c.mean(axis=1), 1 - c.mean(axis=1)], axis=1)

    base = jnp.zeros(8)
    wide = suite._replace(
        task_vectors=mj.TaskVectors.from_params(base, list(jnp.eye(8))),
        validation=Recorder(),
    )
    _paper.paper_protocol(wide, 90)
    (c,) = seen
    assert c.shape == (90, 8)
    assert set(np.unique(c)) == {0.0, 1.0}
    assert c.any(axis=1).all()  # the base is never evaluated
    assert len(np.unique(c, axis=0)) == 90
    features = _paper._features(c)
    assert (features.shape, np.linalg.matrix_rank(features)) == ((90, 45), 37)


def test_the_papers_fit_recovers_a_sigmoid_of_a_quadratic_or_stays_at_ones():
    rng = np.random.default_rng(0)
    c, unknowns = rng.random((40, 2)), rng.normal(size=6)
    e, b = unknowns[0], unknowns[1:3]
    hessian = np.array([[unknowns[3], unknowns[4]], [unknowns[4], unknowns[5]]])
    latent = e + c @ b + 0.5 * np.einsum("ki,ij,kj->k", c, hessian, c)
    scores = 1 / (1 + np.exp(-latent))
    np.testing.assert_allclose(_paper._fit_sigmoid(c, scores), unknowns, atol=1e-4)
    np.testing.assert_array_equal(_paper._fit_sigmoid(c[:4], scores[:4]), np.ones(6))


def to_the_corners(c):
    """Scores that are best at each task's own expert."""
    return 1 / (1 + ((c[:, None] - np.eye(N)) ** 2).sum(axis=2))


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.slow
def test_searches_are_those_that_pymoo_makes(name):
    first = np.random.default_rng(1).random((15, N))
    x, s = _direct.search_from(SEARCHES[name], to_the_corners, first, 60, 7)
    np.testing.assert_array_equal(x[:15], first)
    np.testing.assert_array_equal(s, to_the_corners(x))
    assert ((x >= 0) & (x <= 1)).all()
    seen = []

    class Recording(Problem):
        def __init__(self):
            super().__init__(n_var=N, n_obj=N, xl=0.0, xu=1.0)

        def _evaluate(self, x, out, *args, **kwargs):
            seen.append(np.atleast_2d(x))
            out["F"] = -to_the_corners(seen[-1])

    directions = np.asarray(mj.pareto.reference_directions(N, 15), float)
    algorithm = SEARCHES[name](directions, first)
    # A generation of MOEA/D comes child by child.
    minimize(Recording(), algorithm, ("n_eval", 60), seed=7)
    np.testing.assert_allclose(np.concatenate(seen)[:60], x)
    at_first, at_last = (
        moocore.hypervolume(rows, ref=np.zeros(N), maximise=True) for rows in (s[:15], s)
    )
    assert at_last > at_first + 0.01
    # A budget that ends in the middle of a generation.
    fewer = _direct.search_from(SEARCHES[name], to_the_corners, first, 37, 7)[0]
    np.testing.assert_array_equal(fewer, x[:37])


def test_scales_are_the_published_default_and_others_spread_over_the_grid(suite):
    grid = _single.first(1.0, 0.8, 3.0, 0.1)
    assert grid[0] == 1.0
    np.testing.assert_allclose(sorted(grid), np.arange(8, 31) / 10)
    for budget, scales in (
        (1, [0.4]),
        (4, [0.4, 0.0, 0.55, 1.0]),
        (99, [0.4, *np.delete(np.arange(21) / 20, 8)]),
    ):
        found = METHODS["task_arithmetic"].run(suite, budget)
        np.testing.assert_allclose(found.evaluated, np.outer(scales, np.ones(N)))
    sparse = _single.dare(suite.task_vectors, 3).vectors["hidden"]["kernel"]
    dense = suite.task_vectors.vectors["hidden"]["kernel"]
    kept = sparse != 0
    assert 0 < kept.mean() < 0.3
    np.testing.assert_allclose(sparse[kept], 10 * dense[kept], rtol=1e-5)


@pytest.mark.parametrize(("name", "most"), [("ties", 3.0), ("dare", 1.0), ("wudi", 1.0)])
def test_scales_of_rules_reach_down_as_far_as_those_of_task_arithmetic(name, most, suite):
    found = METHODS[name].run(suite, 20)
    scales = found.evaluated[:, 0]
    assert scales[0] == 1  # as published
    assert (scales.min(), scales.max()) == (0.05, most)
    # All that there are, at 2p for three experts: none is left for larger budgets.
    assert len(scales) == len(METHODS[name].run(suite, 99).evaluated) < 20


def test_preferences_are_of_each_task_of_all_and_random():
    points = _closed.preferences(9, N, 0)
    np.testing.assert_array_equal(points[:N], np.eye(N))
    np.testing.assert_allclose(points[N], np.full(N, 1 / N))
    np.testing.assert_allclose(points.sum(axis=1), 1)
    assert (points >= 0).all()
    assert len(np.unique(points, axis=0)) == 9


@pytest.mark.parametrize("name", sorted(BY_PREFERENCE - {"react"}))
def test_a_preference_for_one_task_gives_its_expert(name, suite):
    found = METHODS[name].run(suite, N)
    experts = suite.validation(np.eye(N))
    np.testing.assert_allclose(found.scores, experts, atol=1e-6)
    np.testing.assert_array_equal(np.diagonal(found.scores), np.ones(N))


@pytest.mark.parametrize("classes", [3, None])
def test_fisher_information_is_that_of_the_labels_likelihood(classes):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(30, 2)), rng.normal(size=(2, classes or 1))
    y = rng.integers(0, classes or 2, 30).astype(np.int32)

    def linear(params, x):
        return x @ params if classes else (x @ params)[:, 0]

    task = mj.Task("t", linear, x.astype("f"), y)
    got = _closed._fisher(task, jnp.asarray(w, jnp.float32), 20)
    z = x @ w
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True) if classes else 1 / (1 + np.exp(-z))
    error = p - (np.eye(3)[y] if classes else y[:, None])
    gradients = x[:, :, None] * error[:, None, :]
    np.testing.assert_allclose(got, np.mean(gradients[:20] ** 2, axis=0), rtol=1e-4)


@pytest.mark.parametrize("name", sorted(TUNED))
@pytest.mark.slow
def test_adamerging_reads_no_label_and_moves_as_far_as_the_paper_lets_it(name, suite):
    found = METHODS[name].run(suite, 1)
    groups = 1 if found.rule is None else 4
    assert found.evaluated.shape == (1, N * groups)
    moved = np.abs(found.evaluated - 0.3)
    assert 0.05 < moved.max() <= 0.3 + 0.5  # 500 steps of 0.001
    tasks = [
        mj.Task(t.name, t.predict, t.inputs, (t.targets + 1) % 4)
        for t in suite.validation.tasks
    ]
    wrong = suite._replace(validation=mj.Evaluator(suite.task_vectors, tasks))
    again = METHODS[name].run(wrong, 1)
    np.testing.assert_array_equal(again.evaluated, found.evaluated)
    assert (again.scores != found.scores).any()


SERVER = """
import json, random, sys
for line in sys.stdin:
    asked = json.loads(line)
    open(sys.argv[0] + ".log", "a").write(line)
    draw = random.Random(asked["seed"]).uniform
    if len(asked["x"]) == 12 and "fail" in sys.argv[0]:
        print(json.dumps({"error": "ValueError: no luck"}), flush=True)
    elif "end" in sys.argv[0]:
        sys.exit("out of memory")
    else:
        rows = [[draw(-0.1, 1.1) for _ in asked["x"][0]] for _ in range(asked["q"])]
        print(json.dumps({"candidates": rows}), flush=True)
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Botorch's place is taken by a script that draws at random."""

    def start(name):
        script = tmp_path / f"{name}.py"
        script.write_text(SERVER)
        monkeypatch.setenv(_botorch.VARIABLE, sys.executable)
        monkeypatch.setattr(_botorch, "SERVER", script)
        return script

    return start


def test_botorch_is_asked_for_four_at_a_time_after_the_first_points(suite, server):
    script = server("draw")
    found = METHODS["botorch_qnehvi"].run(suite, 18)
    assert found.evaluated.shape == (18, N)
    np.testing.assert_array_equal(found.evaluated[: N + 1], corners())
    assert ((found.evaluated >= 0) & (found.evaluated <= 1)).all()
    np.testing.assert_allclose(suite.validation(found.evaluated), found.scores, atol=1e-6)
    log = script.with_name(script.name + ".log")
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(len(one["x"]), one["q"]) for one in asked] == [(8, 4), (12, 4), (16, 2)]
    for one in asked:
        np.testing.assert_array_equal(one["x"], found.evaluated[: len(one["x"])])
        np.testing.assert_array_equal(one["y"], found.scores[: len(one["y"])])
    again = METHODS["botorch_qnehvi"].run(suite, 18)
    np.testing.assert_array_equal(found.evaluated, again.evaluated)


def test_botorch_says_what_is_missing_or_went_wrong(suite, server, monkeypatch):
    run = METHODS["botorch_qnehvi"].run
    server("fail")
    with pytest.raises(RuntimeError, match="botorch failed: ValueError: no luck"):
        run(suite, 18)
    server("end")
    with pytest.raises(RuntimeError, match="ended without an answer: out of memory"):
        run(suite, 18)
    monkeypatch.delenv(_botorch.VARIABLE)
    with pytest.raises(
        ImportError, match=r"MAPJAX_BOTORCH must name .*pip install botorch"
    ):
        run(suite, 18)
