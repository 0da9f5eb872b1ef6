"""Evaluation against plain loops, on one device and on four."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.metrics import f1_score

import mapjax as mj

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 8)).astype(np.float32)
Y = RNG.integers(0, 4, 50)
C = RNG.random((7, 3)).astype(np.float32)


def draw():
    return {"w": RNG.normal(size=(8, 4)).astype(np.float32)}


TV = mj.TaskVectors.from_params(draw(), [draw() for _ in range(3)])
HEAD = RNG.normal(size=(4, 3)).astype(np.float32)


def predict(params, x):
    return x @ params["w"]


def with_head(params, x):
    return x @ params["w"] @ HEAD


def make_tasks():
    return [
        mj.Task("all", predict, X, Y),
        mj.Task("few", predict, X[:33], Y[:33], mj.metrics.cross_entropy),
        mj.Task("head", with_head, X[:5], Y[:5] % 3, mj.metrics.f1),
    ]


def looped(coefficients):
    """Score with NumPy and scikit-learn, one candidate and one task at a time."""
    rows = []
    base, v = np.asarray(TV.base["w"]), np.asarray(TV.vectors["w"])
    for c in coefficients:
        w = base + np.tensordot(c, v, 1)
        logits = X[:33] @ w
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        rows.append(
            [
                np.mean((X @ w).argmax(1) == Y),
                -log_p[np.arange(33), Y[:33]].mean(),
                f1_score(Y[:5] % 3, (X[:5] @ w @ HEAD).argmax(1), average="macro"),
            ]
        )
    return np.array(rows)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 4, "batch_size": 16}])
def test_scores_are_those_of_a_loop(options):
    evaluator = mj.Evaluator(TV, make_tasks(), **options)
    np.testing.assert_allclose(evaluator(C), looped(C), rtol=2e-6)
    assert evaluator.directions == ("maximize", "minimize", "maximize")


def test_one_trace_serves_any_number_of_candidates():
    traces = []

    def counting(params, x):
        traces.append(x.shape)
        return x @ params["w"]

    evaluator = mj.Evaluator(TV, [mj.Task("t", counting, X, Y)], chunk_size=2)
    evaluator(C[:1])
    before = len(traces)
    for count in (2, 3, 7):
        assert evaluator(C[:count]).shape == (count, 1)
    assert len(traces) == before


def test_no_candidates_give_no_scores():
    assert mj.Evaluator(TV, make_tasks())(C[:0]).shape == (0, 3)


def test_outputs_are_what_the_metrics_see():
    evaluator = mj.Evaluator(TV, make_tasks(), batch_size=16)
    outputs = evaluator.outputs(C)
    assert {k: v.shape for k, v in outputs.items()} == {
        "all": (7, 50, 4),
        "few": (7, 33, 4),
        "head": (7, 5, 3),
    }
    scores = evaluator(C)
    for t, task in enumerate(evaluator.tasks):
        again = jax.vmap(task.metric, (0, None))(outputs[task.name], task.targets)
        np.testing.assert_allclose(again, scores[:, t], rtol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 4])
def test_jacobians_are_finite_differences(num_tasks, x64):
    def draw64():
        return {"w": RNG.normal(size=(8, 4))}

    n = 5  # forward mode for four tasks, reverse for one
    tv = mj.TaskVectors.from_params(draw64(), [draw64() for _ in range(n)])
    names = [f"t{i}" for i in range(num_tasks)]
    evaluator = mj.Evaluator(
        tv, [mj.Task(name, predict, X, Y, mj.metrics.cross_entropy) for name in names]
    )
    c = RNG.random((2, n))
    values, jacobian = evaluator.value_and_jacobian(c)
    np.testing.assert_allclose(values, evaluator(c), rtol=1e-12)
    for i in range(n):
        step = 1e-5 * np.eye(n)[i]
        slope = (evaluator(c + step) - evaluator(c - step)) / 2e-5
        np.testing.assert_allclose(jacobian[:, :, i], slope, atol=1e-8)


def test_any_merge_rule_is_evaluated():
    def spherical(c):
        return {"w": c[0] * TV.base["w"] / jnp.linalg.norm(TV.base["w"])}

    evaluator = mj.Evaluator(spherical, make_tasks()[:1], num_coefficients=1)
    want = np.mean((X @ np.asarray(TV.base["w"])).argmax(1) == Y)
    np.testing.assert_allclose(evaluator([[2.0]]), [[want]], rtol=1e-6)
    assert evaluator.coefficient_names == ("c0",)


def test_works_inside_jit():
    evaluator = mj.Evaluator(TV, make_tasks())
    np.testing.assert_allclose(jax.jit(evaluator)(C), evaluator(C), rtol=1e-6)


def test_four_devices_give_the_answer_of_one():
    mesh = Mesh(np.array(jax.devices()), ("candidates",))
    one = mj.Evaluator(TV, make_tasks(), batch_size=16)
    four = mj.Evaluator(TV, make_tasks(), batch_size=16, mesh=mesh)
    np.testing.assert_array_equal(four(C), one(C))
    np.testing.assert_array_equal(four.outputs(C)["few"], one.outputs(C)["few"])


def test_parameters_can_be_sharded_beside_candidates():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("candidates", "model"))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    base = jax.device_put(TV.base, sharding)
    experts = [jax.device_put(mj.merge(TV, np.eye(3)[i]), sharding) for i in range(3)]
    tv = mj.TaskVectors.from_params(base, experts)
    evaluator = mj.Evaluator(tv, make_tasks(), mesh=mesh)
    assert evaluator.rule.args[0].base["w"].sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(evaluator(C), looped(C), rtol=1e-5)


def test_memory_is_predicted_and_the_chunk_chosen_from_it():
    big = {
        "w": RNG.normal(size=(8, 4)).astype(np.float32),
        "rest": np.ones(250_000, np.float32),
    }

    def uses_all(params, x):
        return x @ params["w"] + jnp.sort(params["rest"])[:4]

    tv = mj.TaskVectors.from_params(big, [big])
    task = mj.Task("t", uses_all, X, Y)
    one = mj.Evaluator(tv, [task], chunk_size=1).predicted_memory
    four = mj.Evaluator(tv, [task], chunk_size=4).predicted_memory
    merged = 250_000 * 4
    assert four - one >= 3 * merged
    limited = mj.Evaluator(tv, [task], chunk_size=None, memory_limit=one)
    assert limited.chunk_size == 1
    assert limited.predicted_memory <= one
    wide = mj.Task(
        "t",
        lambda p, x: uses_all(p, jnp.repeat(x, 8, 0))[::8],
        np.tile(X, (40, 1)),
        np.tile(Y, 40),
    )
    whole = mj.Evaluator(tv, [wide], batch_size=2000).predicted_memory
    halved = mj.Evaluator(tv, [wide], memory_limit=whole - 100_000)
    assert halved.predicted_memory < whole
    assert halved.batch_size < 2000
    with pytest.warns(UserWarning, match=r"needs 0\.0 GiB.*Lower `batch_size`"):
        assert mj.Evaluator(tv, [task], memory_limit=1000).chunk_size == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mj.Evaluator(TV, []), "`tasks` is empty"),
        (lambda: mj.Evaluator(TV, make_tasks() * 2), "unique, but .*'all'"),
        (lambda: mj.Evaluator(TV, make_tasks(), chunk_size=0), "`chunk_size` is 0"),
        (lambda: mj.Evaluator(TV, make_tasks(), batch_size=0), "`batch_size` is 0"),
        (lambda: mj.Evaluator(TV, make_tasks(), num_coefficients=2), "have 3 experts"),
        (lambda: mj.Evaluator(lambda c: c, make_tasks()), "needs `num_coefficients`"),
        (lambda: mj.Evaluator(3, make_tasks()), "`rule` is a int"),
        (lambda: mj.Evaluator(TV, make_tasks())(C[0]), r"shape \(3,\).*pass `c\[None\]`"),
        (
            lambda: mj.Evaluator(TV, make_tasks())(C[:, :2]),
            r"shape \(7, 2\).*\[candidates, 3\]",
        ),
        (lambda: mj.Task("t", predict, X, Y[:3]), "'t' needs as many inputs as targets"),
        (
            lambda: mj.Task("t", predict, X[:0], Y[:0]),
            "'t' needs as many inputs as targets",
        ),
        (lambda: mj.Task("t", predict, X, Y, direction="up"), "direction 'up'; use 'max"),
        (
            lambda: mj.Evaluator(TV, [mj.Task("t", predict, X, Y, lambda o, t: o)]),
            "metric of task 't' must return one number",
        ),
        (
            lambda: mj.Evaluator(TV, make_tasks()).value_and_jacobian(C),
            r"\['all', 'head'\] are not differentiable",
        ),
    ],
)
def test_bad_input_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_predict_that_fails_names_its_task():
    with pytest.raises(KeyError) as caught:
        mj.Evaluator(TV, [mj.Task("broken", lambda p, x: p["missing"], X, Y)])
    assert "task 'broken'" in " ".join(caught.value.__notes__)
