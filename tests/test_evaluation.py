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


@pytest.mark.parametrize(("n", "num_tasks"), [(1, 3), (5, 1), (5, 4)])
def test_jacobians_are_finite_differences(n, num_tasks, x64):
    def draw64():
        return {"w": RNG.normal(size=(8, 4))}

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


def test_a_mesh_with_explicit_axes_serves_as_well():
    mesh = jax.make_mesh((4,), ("candidates",))
    one = mj.Evaluator(TV, make_tasks(), batch_size=16)
    four = mj.Evaluator(TV, make_tasks(), batch_size=16, mesh=mesh)
    np.testing.assert_array_equal(four(C), one(C))  # 7 candidates on 4 devices
    assert four(C[:0]).shape == (0, 3)
    np.testing.assert_array_equal(four.outputs(C)["few"], one.outputs(C)["few"])
    np.testing.assert_allclose(jax.jit(four)(C), one(C), rtol=1e-6)
    assert four.fingerprint() == one.fingerprint()


@pytest.mark.parametrize("explicit", [False, True])
def test_parameters_can_be_sharded_beside_candidates(explicit):
    names = ("candidates", "model")
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), names)
    if explicit:
        mesh = jax.make_mesh((2, 2), names)
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    base = jax.device_put(TV.base, sharding)
    experts = [jax.device_put(mj.merge(TV, np.eye(3)[i]), sharding) for i in range(3)]
    tv = mj.TaskVectors.from_params(base, experts)
    evaluator = mj.Evaluator(tv, make_tasks(), mesh=mesh)
    assert evaluator.rule.args[0].base["w"].sharding.spec == sharding.spec
    np.testing.assert_allclose(evaluator(C), looped(C), rtol=1e-5)
    whole = mj.TaskVectors.from_params(TV.base, [mj.merge(TV, c) for c in np.eye(3)])
    assert evaluator.fingerprint() == mj.Evaluator(whole, make_tasks()).fingerprint()


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


def test_each_kind_of_result_has_its_own_chunk(monkeypatch):
    # The outputs of a candidate take much more memory than its scores.
    inputs, targets = np.tile(X, (400, 1)), np.tile(Y, 400)
    task = mj.Task("t", lambda p, x: x @ p["w"], inputs, targets)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # chunks of up to 16
    limit = mj.Evaluator(TV, [task], chunk_size=16).predicted_memory + 100_000
    evaluator = mj.Evaluator(TV, [task], memory_limit=limit)
    few = evaluator.program("outputs")
    assert few.chunk_size < 16
    assert few.peak_bytes <= limit
    assert evaluator.chunk_size == 16
    asked = mj.Evaluator(TV, [task], chunk_size=3, batch_size=40)
    for kind in ("scores", "outputs", "both"):
        assert asked.program(kind)[1:] == (3, 40, 3)


def test_what_lies_in_memory_already_counts_once(monkeypatch):
    base = {"w": TV.base["w"], "rest": np.ones(1_000_000, np.float32)}
    tv = mj.TaskVectors.from_params(base, [base] * 4)

    def uses_all(params, x):
        return x @ params["w"] + jnp.sort(params["rest"])[:4]

    task = mj.Task("t", uses_all, X, Y)
    program = mj.Evaluator(tv, [task], chunk_size=2).program("scores")
    needed = program.peak_bytes - program.argument_bytes
    assert program.argument_bytes > needed
    # The base and the vectors fill the device but for a little more than a chunk takes.
    monkeypatch.setattr("mapjax.evaluation._program.free_memory", lambda: int(1.3 * needed))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert mj.Evaluator(tv, [task]).chunk_size >= 2


def test_scores_and_outputs_come_from_one_evaluation():
    # In this order of tasks, which is not that of the alphabet.
    tasks = make_tasks()[::-1]
    evaluator = mj.Evaluator(TV, tasks, batch_size=16)
    scores, outputs = evaluator.scores_and_outputs(C)
    np.testing.assert_allclose(scores, looped(C)[:, ::-1], rtol=2e-6)
    assert list(outputs) == list(evaluator.outputs(C)) == ["head", "few", "all"]
    np.testing.assert_array_equal(outputs["few"], evaluator.outputs(C)["few"])
    shapes = {name: (x.shape, x.dtype) for name, x in evaluator.output_shapes().items()}
    assert shapes == {name: (x.shape[1:], x.dtype) for name, x in outputs.items()}


def test_an_evaluator_outlives_the_switch_to_double_precision():
    evaluator = mj.Evaluator(TV, make_tasks())
    single = evaluator(C)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        np.testing.assert_allclose(evaluator(C), looped(C), rtol=2e-6)
        assert evaluator.scores_and_outputs(C)[0].dtype == jnp.float64
    np.testing.assert_array_equal(evaluator(C), single)


def test_fingerprints_tell_parameters_and_data_apart():
    def of(base=TV.base, x=X, y=Y, **kwargs):
        tv = mj.TaskVectors.from_params(base, [TV.base] * 2)
        task = mj.Task("t", kwargs.get("predict", predict), x, y)
        return mj.Evaluator(tv, [task]).fingerprint()

    first = of()
    assert first == of()
    changed = {"w": TV.base["w"].at[3, 1].add(1e-6)}
    swapped = {"w": TV.base["w"].at[:2].set(TV.base["w"][:2][::-1])}
    for base in (changed, swapped):
        assert of(base)["parameters"] != first["parameters"]
        assert of(base)["data"] == first["data"]
    for x, y in [(X[::-1], Y[::-1]), (X, (Y + 1) % 4), (X[:40], Y[:40])]:
        assert of(x=x, y=y)["data"] != first["data"]
        assert of(x=x, y=y)["parameters"] == first["parameters"]
    heads = [
        jax.tree_util.Partial(lambda h, p, x: x @ p["w"] @ h, h) for h in (HEAD, -HEAD)
    ]
    assert of(predict=heads[0], y=Y % 3)["data"] != of(predict=heads[1], y=Y % 3)["data"]
    rule = mj.Evaluator(lambda c: TV.base, make_tasks(), num_coefficients=2)
    assert rule.fingerprint()["parameters"] is None


@pytest.mark.parametrize(
    "value",
    [
        np.array([1 + 2j, 3]),
        np.array([True, False]),
        np.arange(3, dtype=np.int8),
        jnp.zeros((), jnp.bfloat16),
        jnp.ones(3, jnp.float8_e4m3fn),
        jax.random.key(0),
    ],
)
def test_any_array_has_a_fingerprint(value):
    rule = jax.tree_util.Partial(lambda _, c: {"w": jnp.ones((8, 4)) * c[0]}, value)
    evaluator = mj.Evaluator(rule, make_tasks()[:1], num_coefficients=1)
    other = jax.tree_util.Partial(rule.func, jax.random.key(1))
    changed = mj.Evaluator(other, make_tasks()[:1], num_coefficients=1)
    assert len(evaluator.fingerprint()["parameters"]) == 16
    assert evaluator.fingerprint() != changed.fingerprint()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mj.Evaluator(TV, []), "`tasks` is empty"),
        (lambda: mj.Evaluator(TV, make_tasks()[0]), r"one task: pass a list, `\[task\]`"),
        (
            lambda: mj.Evaluator(TV, dict(a=make_tasks()[0])),
            r"pass `list\(tasks.values\(\)\)`",
        ),
        (lambda: mj.Evaluator(TV, 3), "`tasks` is a int; pass a list"),
        (lambda: mj.Evaluator(TV, [predict]), r"`tasks\[0\]` is a function"),
        (lambda: mj.Evaluator(TV, make_tasks(), memory_limit=0), "`memory_limit` is 0"),
        (lambda: mj.Task("t", predict, X, Y, "accuracy"), "`metric` is 'accuracy', but"),
        (
            lambda: mj.Evaluator(
                TV, [mj.Task("t", predict, X, Y, lambda o, t: 1j * o[0, 0])]
            ),
            "complex numbers have no order",
        ),
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


def test_values_of_examples_in_another_shape_are_refused_with_the_task():
    column = mj.metrics.Metric(
        lambda y, t: (y.argmax(-1) == t)[:, None] * 1.0, per_example=True
    )
    with pytest.raises(ValueError, match=r"shape \(50, 1\) for 50 examples") as caught:
        mj.Evaluator(TV, [mj.Task("mine", predict, X, Y, column)])
    assert "task 'mine'" in " ".join(caught.value.__notes__)


def test_gradients_of_bfloat16_parameters_do_not_depend_on_the_batches():
    x = np.ones((2000, 8), np.float32)
    tv = jax.tree.map(lambda v: v.astype(jnp.bfloat16), TV)
    task = mj.Task(
        "sum", lambda p, x: (x @ p["w"])[:, 0], x, x[:, 0], mj.metrics.mean_squared_error
    )
    whole, parts = (
        mj.Evaluator(tv, [task], batch_size=size).value_and_jacobian(C[:1])[1]
        for size in (2000, 1)
    )
    np.testing.assert_allclose(parts, whole, rtol=0.02)


def test_what_jax_cannot_compile_comes_with_a_hint():
    for function, words in (
        (lambda p, x: np.asarray(x) @ np.asarray(p["w"]), "write them in JAX"),
        (lambda p, x: x if (p["w"] > 0).all() else -x, "write them in JAX"),
    ):
        with pytest.raises(jax.errors.JAXTypeError) as caught:
            mj.Evaluator(TV, [mj.Task("a", function, X, Y)])
        assert words in " ".join(caught.value.__notes__)


def test_inputs_that_are_no_arrays_are_named():
    with pytest.raises(ValueError, match="The inputs of task 'a' are no arrays"):
        mj.Task("a", predict, iter(X), Y)
    with pytest.raises(ValueError, match="The targets of task 'a' are no arrays"):
        mj.Task("a", predict, X, ["cat"] * 50)
