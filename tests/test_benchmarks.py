"""Benchmarks: figures are right, runs are kept, and the report says what they say."""

import importlib.resources
import json
import pathlib
import re
from functools import partial
from typing import Any

import jax
import moocore
import numpy as np
import pytest
from bench_tools import N, toy_suite

import mapjax as mj
from benchmarks import (
    __main__,
    _compare,
    _front_tables,
    _measures,
    _truth,
    _write_up,
    bench_search,
    bench_transforms,
)
from benchmarks._reasons import REASONS
from benchmarks.methods import METHODS, Method
from benchmarks.methods._found import best_of


@pytest.fixture(scope="module")
def suite():
    return toy_suite()


@pytest.fixture
def truth(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(_truth, "CACHE", tmp_path)
    return _truth.Truth(suite, size=60)


def test_regret_is_what_a_loop_computes(truth):
    _, pool = truth.pool()
    points = pool[::7][:30]
    wrong = points[::-1]
    picked = np.array([np.argmax([w @ s for s in wrong]) for w in truth.preferences])
    pairs = zip(truth.preferences, picked, strict=True)
    losses = [max(w @ s for s in pool) - w @ points[i] for w, i in pairs]
    np.testing.assert_allclose(truth.regret(points, picked), 100 * np.mean(losses))
    some = 100 * np.mean(losses[:9])
    np.testing.assert_allclose(truth.regret(points, picked[:9]), some)
    assert truth.regret(pool) == pytest.approx(0, abs=1e-9)
    assert truth.regret(points) > 0
    # Another rule's merges are better by 0.1 at every task.
    best, own = truth.regret(points), truth.regret(points, linear=True)
    assert own == best
    truth.add(np.zeros((len(pool), N)), pool + 0.1, "another rule")
    assert truth.regret(points) == pytest.approx(best + 10)
    assert truth.regret(points, linear=True) == own


def test_hypervolume_is_a_percentage_of_the_box(truth):
    _, pool = truth.pool()
    points, ideal = pool[:20], pool.max(axis=0)
    exact = moocore.hypervolume(points / ideal, ref=np.zeros(N), maximise=True)
    assert truth.hypervolume(points) == pytest.approx(100 * exact, rel=1e-4)
    wide = np.concatenate([points, points], axis=1)[:, :5]
    truth._reachable, truth.preferences = None, np.eye(5)
    truth.pool = lambda: (wide, wide)
    exact = moocore.hypervolume(wide / wide.max(axis=0), ref=np.zeros(5), maximise=True)
    assert truth.hypervolume(wide) == pytest.approx(100 * exact, abs=0.3)


def test_truth_is_read_from_disk_and_evaluates_nothing_twice(suite, truth):
    calls = []

    class Spy:
        tasks = suite.validation.tasks
        task_names = suite.names

        def __call__(self, c, **options):
            calls.append(len(c))
            return suite.validation(c, **options)

    spied = _truth.Truth(suite._replace(validation=Spy()), size=60)
    assert calls == []
    for known, again in zip(truth.pool(), spied.pool(), strict=True):
        np.testing.assert_array_equal(known, again)
    new = np.array([[0.123, 0.2, 0.3], [0.5, 0.1234, 0.1], [0.123, 0.2, 0.3]], "f")
    for _ in range(2):
        np.testing.assert_allclose(spied(new), suite.validation(new), rtol=1e-6)
    assert calls == [2]


def test_igd_plus_is_the_distance_to_the_best_front_known(truth):
    _, pool = truth.pool()
    ideal = pool.max(axis=0)
    best = (pool / ideal)[np.asarray(moocore.is_nondominated(pool, maximise=True))]
    points = pool[::9]
    kept = (points / ideal)[np.asarray(moocore.is_nondominated(points, maximise=True))]
    exact = moocore.igd_plus(kept, ref=best, maximise=True)
    assert truth.igd_plus(points) == pytest.approx(100 * exact, rel=1e-4)
    assert truth.igd_plus(pool) == pytest.approx(0, abs=1e-6)


def test_merges_of_another_rule_count_for_the_best_but_not_as_coefficients(truth):
    before, top = truth.pool()[0], truth.scores().max(axis=0)
    truth.add(np.zeros((1, 9)), (top + 0.5)[None], rule="another")
    np.testing.assert_array_equal(truth.pool()[0], before)
    np.testing.assert_allclose(truth.reachable().preferred, truth.preferences @ (top + 0.5))


def propose(suite, budget):
    """Evaluate points of the diagonal and be a tenth too sure of each."""
    points = np.outer(np.linspace(0, 0.8, budget), np.ones(N)).astype("f")
    scores = np.asarray(suite.validation(points))
    found = best_of(points, scores)
    return found._replace(
        predicted=found.predicted + 0.1, std=np.full_like(found.predicted, 0.2)
    )


@pytest.fixture
def proposing(monkeypatch):
    monkeypatch.setitem(METHODS, "propose", Method(propose, "none"))


def test_a_record_has_the_true_scores_and_comes_back_from_disk(truth, proposing, tmp_path):
    run = _measures.record(truth, "propose", 7)
    suite = truth.suite
    for evaluator, scores in (
        (suite.validation, run.validation),
        (suite.test, run.test),
        (suite.held_out, run.held_out),
    ):
        np.testing.assert_allclose(evaluator(run.coefficients), scores, rtol=1e-6)
    run.save(tmp_path / "run.npz")
    for kept, value in zip(_measures.Record.load(tmp_path / "run.npz"), run, strict=True):
        np.testing.assert_array_equal(kept, value)


def test_figures_of_a_run_are_those_of_numpy(truth, proposing):
    run = _measures.record(truth, "propose", 7)
    paper = run._replace(validation=run.validation - 1)
    at_home = np.diagonal(np.asarray(truth.suite.test(np.eye(N))))
    figures = _measures.judge(run, truth, at_home, paper)
    equal = run.predicted.mean(axis=1).argmax()
    expected = {
        "evaluations": 7,
        "examples": 7 * N * 40,
        "coverage": 100.0,  # off by 0.1 everywhere, and 0.2 * 1.645 is more
        "win_rate": 100.0,
        "held_out": 100 * run.held_out[equal].mean(),
        "normalized_average": 100 * np.mean(run.test[equal] / at_home),
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-4), name
    gaps = []
    for w in truth.preferences:
        i = max(range(len(run.predicted)), key=lambda i: w @ run.predicted[i])
        gaps.append(w @ (run.validation[i] - run.test[i]))
    assert figures["generalization_gap"] == pytest.approx(100 * np.mean(gaps), abs=1e-6)
    assert "least_r2" not in figures  # it has no surrogate


def test_a_rule_that_answers_every_preference_is_judged_by_its_answers(truth):
    run = _measures.record(truth, "wudi_mean", N + 1, verify=5)
    preferences = truth.preferences[:10]
    asked = np.concatenate([np.full((1, N), 1 / N), preferences])
    np.testing.assert_allclose(run.coefficients[run.picked], asked, rtol=1e-6)
    answers = mj.Evaluator(
        mj.rules.wudi_mean(truth.suite.task_vectors), truth.suite.validation.tasks
    )
    np.testing.assert_allclose(run.validation[run.picked], answers(asked), atol=1e-6)
    assert len(run.evaluated) == N + 1
    ((key, _),) = truth.answers.items()
    truth.answers[key] = [np.zeros((11, N))] * 3
    again = _measures.record(truth, "wudi_mean", N + 3, verify=5)
    assert not again.test.any()  # answers do not depend on the budget, and come but once
    truth.preferences = preferences  # each has its own merge, be it the best for it or not
    truth.add(run.coefficients, run.validation, "another")
    figures = _measures.judge(run, truth, np.ones(N), None)
    gained = np.sum(preferences * run.validation[run.picked[1:]], axis=1)
    lost = np.mean(truth.reachable().preferred - gained)
    assert figures["regret"] == pytest.approx(100 * lost)
    equal = run.test[run.picked[0]]
    assert figures["normalized_average"] == pytest.approx(100 * equal.mean())
    together = np.concatenate([run.scores, run.validation])
    assert figures["hypervolume"] == truth.hypervolume(together)
    assert (figures["evaluations"], figures["points"]) == (N + 1, 11)
    assert {"coverage", "least_r2"}.isdisjoint(figures)  # nothing was predicted


def test_a_method_may_not_spend_more_than_its_budget(truth, proposing, monkeypatch):
    spends = Method(lambda suite, budget: propose(suite, budget + 1), "none")
    monkeypatch.setitem(METHODS, "spends", spends)
    with pytest.raises(RuntimeError, match="spends made 8 of 7 evaluations"):
        _measures.record(truth, "spends", 7)


def test_runs_are_kept_and_trouble_in_one_is_recorded(
    suite, proposing, tmp_path, monkeypatch
):
    monkeypatch.setattr(_truth, "CACHE", tmp_path)
    calls = []

    def trouble(suite, budget):
        calls.append(budget)
        raise RuntimeError("no luck")

    monkeypatch.setitem(METHODS, "trouble", Method(trouble, "none"))
    elsewhere = Method(trouble, "none", only=("digits8",))
    monkeypatch.setitem(METHODS, "elsewhere", elsewhere)
    monkeypatch.setattr(_compare, "load", lambda name, seed, folder: suite)
    toy = _compare.Plan("toy", None, 60, 20, tmp_path / "runs")
    methods = ["trouble", "propose", "elsewhere"]
    figures, troubles = _compare.compare(toy, methods, ["N+1", 7], [0])
    assert calls == [4, 7]
    assert len(troubles) == 2
    assert troubles[0] == "toy 0 trouble 4: RuntimeError: no luck"
    assert {*figures["methods"]} == {"propose"}
    assert {*figures["methods"]["propose"]} == {"4", "7"}
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.npz")}
    again, _ = _compare.compare(toy, ["propose"], [4, "7"], [0])
    assert again == figures
    assert kept == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.npz")}
    _compare.compare(toy, ["propose"], [4], [0], fresh=True)
    assert sum(t != p.stat().st_mtime_ns for p, t in kept.items()) == 1


@pytest.mark.slow  # two processes import JAX and compile
def test_runs_of_two_processes_are_those_of_one(tmp_path):
    found = []
    for processes in (1, 2):
        plan = _compare.Plan("tiny", None, 50, 10, tmp_path / str(processes))
        methods, seeds = ["task_arithmetic", "direct_sobol"], [0, 1]
        found.append(_compare.compare(plan, methods, [6], seeds, processes=processes))
    (one, none), (two, no_more) = found
    assert none == no_more == []
    for method in ("task_arithmetic", "direct_sobol"):
        alone, together = (figures["methods"][method]["6"] for figures in (one, two))
        assert "seconds" not in together  # which others have slowed down
        for measure in {*alone} - {"seconds", "peak_megabytes"}:
            assert together[measure] == alone[measure], measure


@pytest.mark.parametrize("budget", ["0", "00", "-3", "1.5"])
def test_a_budget_that_is_none_is_refused_before_any_work(budget, monkeypatch):
    monkeypatch.setattr(_compare, "compare", None)
    with pytest.raises(SystemExit, match=f"--budget '{budget}' is "):
        __main__.run(suite=["tiny"], budget=["48", budget])


def test_quick_says_what_it_takes_the_place_of(tmp_path, monkeypatch, capsys):
    plans = []

    def compare(plan, *arguments, **options):
        plans.append((plan.suite, plan.pool, *arguments[1:]))
        raise RuntimeError("enough")

    monkeypatch.setattr(_compare, "compare", compare)
    for given, words in (
        ({}, ""),
        (
            {"suite": ["vision8"], "seeds": [3], "budget": ["48"], "pool": 7},
            "--quick takes the place of --suite, --budget, --seeds, --pool.\n",
        ),
    ):
        with pytest.raises(SystemExit, match="enough"):
            __main__.run(quick=True, output=tmp_path, **given)
        assert capsys.readouterr().err == words
    assert plans == 2 * [(s, 500, ("N+1", "2p"), (0, 1)) for s in ("digits3", "digits8")]


def test_rules_read_training_examples_alone(suite):
    nothing = suite._replace(validation=None, test=None)
    experts = [mj.merge(suite.task_vectors, one) for one in np.eye(N)]
    for task, params, gram in zip(
        suite.train.tasks, experts, bench_transforms.grams(nothing, None), strict=True
    ):
        expected = mj.transforms.gram_matrices(task.predict, params, task.inputs)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), gram, expected)
    assert len(bench_transforms.fishers(nothing, None)) == N


def test_pymoos_front_is_what_none_dominates_in_its_last_population():
    directions = np.asarray(mj.pareto.reference_directions(3, 20), float)
    function = bench_search.in_numpy(bench_search.quadratics(3))
    found = bench_search.with_pymoo(function, 3, directions, 5, 0)
    assert moocore.is_nondominated(found, keep_weakly=True).all()
    problem = bench_search.InPymoo(function, 3, 3)
    algorithm = bench_search.PymooNSGA3(ref_dirs=directions, pop_size=len(directions))
    done: Any = bench_search.minimize(problem, algorithm, ("n_gen", 5), seed=0)
    last = done.pop.get("F")
    np.testing.assert_array_equal(found, last[moocore.is_nondominated(last)])
    assert len(bench_search.thinned(last, 4)) == 4


def test_budgets_go_by_the_number_of_experts():
    assert _compare.budgets_for("map_front", ["2p", "48", "N+1"], 8) == [9, 48, 90]
    assert _compare.budgets_for("paper_protocol", ["N+1", "48"], 8) == [90]


def test_a_summary_has_median_and_range():
    seeds = [{"a": {"b": x}, "c": [x, 1]} for x in (3.0, 1.0, 2.0)] + [{"a": {"d": 5.0}}]
    summary = _compare.summarise(seeds)
    assert summary["a"]["b"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert summary["a"]["d"]["most"] == 5.0
    assert summary["c"]["median"] == [2.0, 1.0]


def spread(median, least, most):
    return {"median": median, "least": least, "most": most}


def made_up(ours, theirs):
    """Figures in which a driver and an opponent have these hypervolumes."""
    runs = {
        "map_front": {"9": {"hypervolume": ours, "regret": spread(1, 1, 1)}},
        "direct_sobol": {"9": {"hypervolume": theirs, "regret": spread(2, 2, 2)}},
    }
    rest = {name: spread(50, 50, 50) for name in ("pool", "regret_of_base")}
    rest["regret_of_base_and_experts"] = spread(9, 9, 9)
    return {"methods": runs, "experts": 8, "seeds": [0, 1], **rest}


def test_the_report_says_where_another_method_is_ahead():
    figures = made_up(spread(5, 4, 6), spread(7.04, 6.5, 8))
    ((method, line),) = _front_tables.lost("toy", figures)
    assert method == "direct_sobol"
    assert line == (
        "toy, 9 evaluations, hypervolume: 7.0 (6.5 to 8.0) against 5.0 (4.0 to 6.0) of "
        "`map_front`."
    )
    figures = made_up(spread(5, 4, 7), spread(6, 5, 8))
    ((_, line),) = _front_tables.lost("toy", figures)
    assert "within the range of seeds" in line
    assert not [*_front_tables.lost("toy", made_up(spread(8, 4, 9), spread(7, 6, 8)))]


def test_every_method_that_is_ahead_somewhere_has_a_reason():
    folder = pathlib.Path(_write_up.__file__).with_name("results")
    for path in folder.glob("fronts_*.json"):
        figures = json.loads(path.read_text())["figures"]
        ahead = {method for method, _ in _front_tables.lost(path.stem, figures)}
        assert ahead <= {*REASONS}, path.name


def test_the_report_has_tables_with_the_best_in_bold_and_pictures(tmp_path):
    figures = made_up(spread(5, 4, 6), spread(7, 7, 7))
    for runs in figures["methods"].values():
        runs["9"]["hypervolume_evaluated"] = runs["9"]["hypervolume"]
    machine = {"device": "cpu", "processor": "x", "python": "3.11"}
    whole = {"date": "2026-01-01", "machine": machine, "versions": {}, "figures": figures}
    (tmp_path / "fronts_toy.json").write_text(json.dumps(whole))
    written = [*_write_up.write(tmp_path)]
    assert [p.name for p in written] == ["fronts_toy.svg", "README.md"]
    page = written[-1].read_text()
    assert "| `map_front` | 5.0 (4.0 to 6.0) |" in page
    assert "| direct sobol | **7.0** |" in page
    assert "![toy](fronts_toy.svg)" in page
    before = [p.read_bytes() for p in written]
    assert before == [p.read_bytes() for p in _write_up.write(tmp_path)]


def test_the_committed_report_is_that_of_the_committed_figures(tmp_path):
    folder = importlib.resources.files("benchmarks") / "results"
    for path in folder.iterdir():
        if path.name.endswith(".json"):
            (tmp_path / path.name).write_text(path.read_text())
    [*_write_up.write(tmp_path)]
    assert (tmp_path / "README.md").read_text() == (folder / "README.md").read_text(), (
        "Run `python -m benchmarks report`."
    )


def test_numbers_of_the_readme_stand_in_the_report():
    root = pathlib.Path(__file__).parents[1]
    number = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
    page = re.sub(r"\]\([^)]*\)|`[^`]*`", "", (root / "README.md").read_text())
    report = {*number.findall((root / "benchmarks/results/README.md").read_text())}
    measured = ["Which driver", "Which merge rule", "How fast, how good"]
    for title in measured:
        (section,) = re.findall(rf"^## {title}.*?(?=^## )", page, re.M | re.S)
        # What a rule needs and costs in words, with its paper, is no measurement.
        section = re.sub(r"^\| rule \| needs.*?\n\n", "", section, flags=re.M | re.S)
        said = {*number.findall(section)}
        assert said <= report, f"{title}: {sorted(said - report)} are not in the report."
