"""Benchmarks: suites hold what they promise, opponents keep to budgets, figures are right."""

import itertools
import sys
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import moocore
import numpy as np
import pytest

import mapjax as mj
from benchmarks import _truth, bench_surrogates, opponents
from benchmarks.suites import Suite, digits8, mhc8
from mapjax import metrics

N = 3


def own_corner(params, inputs):
    """One example per task, with a score that is best near the task's own expert."""
    return -jnp.sum((params - inputs) ** 2, axis=1)


def toy(seed: int = 0) -> Suite:
    base = jnp.full(N, 0.1 * seed)
    vectors = mj.TaskVectors.from_params(base, [base + row for row in np.eye(N)])
    score = metrics.Metric(lambda y, _: 1 / (1 - y[0]), bounds=(0.0, 1.0))
    tasks = [
        mj.Task(f"t{i}", own_corner, row[None], np.zeros(1), score)
        for i, row in enumerate(np.eye(N))
    ]
    evaluator = mj.Evaluator(vectors, tasks)
    return Suite("toy", seed, vectors, evaluator, evaluator)


@pytest.fixture(scope="module")
def suite():
    return toy()


@pytest.fixture
def truth(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(_truth, "CACHE", tmp_path)
    return _truth.Truth(suite, quick=True)


@pytest.fixture(scope="module")
def digits():
    return digits8.load(0, base_steps=20, expert_steps=60)


def test_digits8_are_eight_views_of_scikit_learns_digits(digits):
    from sklearn.datasets import load_digits

    views = {
        "identity": lambda x: x,
        "mirror_rows": np.flipud,
        "mirror_columns": np.fliplr,
        "half_turn": lambda x: np.rot90(x, 2),
        "transpose": np.transpose,
        "quarter_turn": np.rot90,
        "quarter_back": lambda x: np.rot90(x, -1),
        "invert": lambda x: 1 - x,
    }
    assert digits.names == tuple(views)
    images: Any = load_digits()
    labels = {
        (x / 16).astype("f").tobytes(): y
        for x, y in zip(images.images, images.target, strict=True)
    }
    identity = digits.validation.tasks[0]
    for task in digits.validation.tasks:
        np.testing.assert_array_equal(task.targets, identity.targets)
        for image, original, target in zip(
            task.inputs[:20], identity.inputs, task.targets, strict=False
        ):
            original = np.asarray(original).reshape(8, 8)
            assert labels[original.tobytes()] == target
            np.testing.assert_array_equal(
                image.reshape(8, 8), views[task.name](original), err_msg=task.name
            )


def test_digits8_experts_are_best_at_home_and_splits_do_not_meet(digits):
    table = np.asarray(digits.validation(np.eye(9, 8, k=-1)))
    others = table[1:] - 2 * np.eye(8)
    assert np.all(np.diagonal(table[1:]) > np.maximum(others.max(axis=0), table[0]) + 0.05)
    rows = [
        {np.asarray(x).tobytes() for x in evaluator.tasks[0].inputs}
        for evaluator in (digits.validation, digits.test)
    ]
    assert [len(x) for x in rows] == [500, 500]
    assert not rows[0] & rows[1]


def test_a_fingerprint_tells_models_apart(suite):
    assert suite.fingerprint() == toy().fingerprint()
    assert suite.fingerprint() != toy(seed=1).fingerprint()


def test_mhc8_computes_the_lstm_of_keras():
    rng = np.random.default_rng(0)

    def weights(rows, columns):
        return {
            "kernel": rng.normal(size=(rows, columns)),
            "bias": rng.normal(size=columns),
        }

    lstm = weights(21, 256) | {"recurrent_kernel": 0.3 * rng.normal(size=(64, 256))}
    params = {"lstm": lstm, "hidden": weights(64, 64), "last": weights(64, 1)}
    peptides = ["SIINFEKL", "ACDEFGHIKLMNPQR", "BX"]

    def one(peptide):
        h, c = np.zeros(64), np.zeros(64)
        for letter in peptide:  # padding carries the state on: it is simply not there
            x = np.full(21, 0.005)
            x["ACDEFGHIKLMNPQRSTVWYX".find(letter if letter != "B" else "X")] = 0.9
            z = x @ lstm["kernel"] + h @ lstm["recurrent_kernel"] + lstm["bias"]
            hard = np.clip(0.2 * z + 0.5, 0, 1)
            c = hard[64:128] * c + hard[:64] * np.tanh(z[128:192])
            h = hard[192:] * np.tanh(c)
        h = np.tanh(h @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return (h @ params["last"]["kernel"] + params["last"]["bias"])[0]

    got = mhc8.predict(
        jax.tree.map(jnp.float32, params), jnp.asarray(mhc8.encode(peptides))
    )
    np.testing.assert_allclose(got, [one(p) for p in peptides], rtol=1e-4, atol=1e-4)


def test_mhc8_reads_binders_of_the_wanted_alleles(tmp_path):
    path = tmp_path / "wheel.zip"
    lines = [
        "mhc,peptide,IC50(nM),measurement_type",
        "HLA-A*03:01,AAA,500.0,x",
        "HLA-A*03:01,aaa,9000.0,x",  # the same again: the first counts
        "HLA-A*03:01,CCC,500.1,x",
        "HLA-A*03:01,CCD,,x",
        f"HLA-A*03:01,{16 * 'A'},1.0,x",
        "HLA-C*01:02,AAD,1.0,x",
    ]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(mhc8._TABLE, "\n".join(lines))
    with zipfile.ZipFile(path) as wheel:
        inputs, targets = mhc8.read_peptides(wheel)["A03:01"]
    np.testing.assert_array_equal(inputs, mhc8.encode(["AAA", "CCC"]))
    np.testing.assert_array_equal(targets, [1, 0])


def test_mhc8_says_what_is_missing_or_wrong(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="'h5py', which is not installed: pip install"):
        mhc8.load(0)
    monkeypatch.setattr(mhc8, "CACHE", tmp_path)
    (tmp_path / mhc8.WHEEL).write_bytes(b"another")
    with pytest.raises(RuntimeError, match=r"SHA-256 .* not ea1c54d0.*Delete it"):
        mhc8.fetch()


METHODS = [*bench_surrogates.OPPONENTS, "map_front"]
METHODS.remove("quadratic_one_shot")


@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_to_the_budget_and_report_what_they_evaluated(method, suite):
    run = bench_surrogates.METHODS[method]
    found = run(suite.validation, N, 20, 0)
    assert found.evaluated.shape == found.scores.shape == (20, N)
    assert len(np.unique(found.evaluated.round(6), axis=0)) > 15
    np.testing.assert_allclose(
        suite.validation(found.evaluated), found.scores, rtol=1e-5, atol=1e-6
    )
    first = np.eye(N) if method == "paper_protocol" else np.eye(N + 1, N, k=-1)
    np.testing.assert_array_equal(found.evaluated[: len(first)], first)
    if method.startswith("direct"):
        best = np.asarray(moocore.is_nondominated(found.scores, maximise=True))
        assert len(found.predicted) >= best.sum()
        assert {*map(tuple, found.scores[best])} == {*map(tuple, found.predicted)}
    else:
        assert found.surrogate is not None
        predicted = np.asarray(found.surrogate(found.coefficients))
        np.testing.assert_allclose(predicted, found.predicted, rtol=1e-3, atol=1e-4)
    again = run(suite.validation, N, 20, 0)
    np.testing.assert_array_equal(found.coefficients, again.coefficients)


def test_the_papers_grid_has_two_levels_and_lacks_rank_at_eight():
    seen = []

    def evaluate(c):
        seen.append(c)
        return np.stack([c.mean(axis=1), 1 - c.mean(axis=1)], axis=1)

    opponents.paper_protocol(evaluate, 8, 90, 0)
    (c,) = seen
    assert c.shape == (90, 8)
    assert set(np.unique(c)) == {0.0, 1.0}
    assert c.any(axis=1).all()  # the base is never evaluated
    assert len(np.unique(c, axis=0)) == 90
    features = opponents._features(c)
    assert (features.shape, np.linalg.matrix_rank(features)) == ((90, 45), 37)


def test_the_papers_fit_recovers_a_sigmoid_of_a_quadratic_or_stays_at_ones():
    rng = np.random.default_rng(0)
    c, unknowns = rng.random((40, 2)), rng.normal(size=6)
    e, b = unknowns[0], unknowns[1:3]
    hessian = np.array([[unknowns[3], unknowns[4]], [unknowns[4], unknowns[5]]])
    latent = e + c @ b + 0.5 * np.einsum("ki,ij,kj->k", c, hessian, c)
    scores = 1 / (1 + np.exp(-latent))
    np.testing.assert_allclose(opponents._fit_sigmoid(c, scores), unknowns, atol=1e-4)
    np.testing.assert_array_equal(opponents._fit_sigmoid(c[:4], scores[:4]), np.ones(6))


def test_regret_is_what_a_loop_computes(truth):
    _, pool = truth.pool()
    points = pool[::7][:30]
    wrong = points[::-1]
    losses = []
    for w in truth.preferences:
        picked = max(range(len(points)), key=lambda i: w @ wrong[i])
        losses.append(max(w @ s for s in pool) - w @ points[picked])
    np.testing.assert_allclose(truth.regret(points, wrong), 100 * np.mean(losses))
    assert truth.regret(pool) == pytest.approx(0, abs=1e-9)
    assert truth.regret(points) > 0


def test_hypervolume_is_a_percentage_of_the_box(truth):
    _, pool = truth.pool()
    points, ideal = pool[:20], pool.max(axis=0)
    exact = moocore.hypervolume(points / ideal, ref=np.zeros(N), maximise=True)
    assert truth.hypervolume(points) == pytest.approx(100 * exact, rel=1e-4)
    wide = np.concatenate([points, points], axis=1)[:, :5]
    truth._known = {bytes([i]): row for i, row in enumerate(wide)}
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

    spied = _truth.Truth(suite._replace(validation=Spy()), quick=True)
    assert calls == []
    for known, again in zip(truth.pool(), spied.pool(), strict=True):
        np.testing.assert_array_equal(known, again)
    new = np.array([[0.123, 0.2, 0.3], [0.5, 0.1234, 0.1], [0.123, 0.2, 0.3]], "f")
    for _ in range(2):
        np.testing.assert_allclose(spied(new), suite.validation(new), rtol=1e-6)
    assert calls == [2]


def test_trouble_in_one_method_is_recorded(suite, truth, monkeypatch):
    def trouble(*_):
        raise RuntimeError("no luck")

    monkeypatch.setitem(bench_surrogates.METHODS, "trouble", trouble)
    found = bench_surrogates.measure(suite, ["trouble", "map_front"], [20], quick=True)
    summary = bench_surrogates.summarise([found, found])
    assert summary["methods"]["trouble"]["20"]["error"]["errors"][0].endswith("no luck")
    figures = summary["methods"]["map_front"]["20"]
    assert figures["regret"]["least"] == figures["regret"]["most"]
    assert 0 <= figures["coverage_90"]["median"] <= 1
    assert len(figures["r2_held_out"]["median"]) == N
    text = bench_surrogates.table("toy", summary)
    assert "no luck" in text
    assert f"{figures['regret']['median']:.2f}" in text


def test_budgets_are_those_promised():
    assert bench_surrogates.budgets_for("map_front", 8) == [9, 18, 36, 45, 48, 90]
    assert bench_surrogates.budgets_for("paper_protocol", 8) == [90]
    assert bench_surrogates.budgets_for("direct_mixed", 8)[-2:] == [256, 512]
    for name, (module, _) in itertools.islice(bench_surrogates.SUITES.items(), 9):
        assert name.startswith(module)
