"""Layer matching, against the regressions written out in NumPy, and in a driver."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench_tools import NAMES, SIZES, N, as_equinox, draw, predict, toy_suite

import mapjax as mj
from mapjax import rules

RNG = np.random.default_rng(5)
INPUTS = [RNG.normal(size=(25, SIZES[0])).astype(np.float32) for _ in NAMES]
P = np.array([0.2, 0.5, 0.3])


def vectors(dtype=np.float32):
    rng = np.random.default_rng(0)
    base, *experts = (
        jax.tree.map(lambda x: jnp.asarray(x, dtype), draw(rng, 0.6)) for _ in range(N + 1)
    )
    return mj.TaskVectors.from_params(base, experts, names=NAMES)


def numpy_kernel(z, x, kernels, p, ridge):
    """Minimise the sum over tasks by its normal equations."""
    moments = np.sum([w * a.T @ a / len(a) for w, a in zip(p, z, strict=True)], axis=0)
    r = ridge * np.trace(moments) / len(moments)
    parts = zip(p, z, x, kernels, strict=True)
    right = np.sum([w * (a.T @ (b @ k) / len(a) + r * k) for w, a, b, k in parts], axis=0)
    return np.linalg.solve(moments + r * np.eye(len(moments)), right)


def reference(tv, p, ridge):
    experts = [
        jax.tree.map(lambda x: np.asarray(x, float), mj.merge(tv, one)) for one in np.eye(N)
    ]
    z = x = [np.asarray(each, float) for each in INPUTS]
    merged = {}
    for name in ("hidden", "last"):
        layers = [expert[name] for expert in experts]
        kernel = numpy_kernel(z, x, [layer["kernel"] for layer in layers], p, ridge)
        bias = sum(w * layer["bias"] for w, layer in zip(p, layers, strict=True))
        merged[name] = {"kernel": kernel, "bias": bias}
        z = [np.tanh(a @ kernel + bias) for a in z]
        x = [
            np.tanh(a @ layer["kernel"] + layer["bias"])
            for a, layer in zip(x, layers, strict=True)
        ]
    return merged


def assert_close(got, wanted, atol=2e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, wanted)


def test_every_layer_is_the_regression_on_what_the_merge_passes_on():
    tv = vectors()
    rule = rules.match_layers(tv, predict, INPUTS, ridge=0.02)
    assert rule.matched == ("['hidden']['kernel']", "['last']['kernel']")
    wanted = reference(tv, P, 0.02)
    assert_close(rule(4 * P), wanted)  # only proportions count
    assert_close(rule(np.zeros(N)), reference(tv, np.full(N, 1 / N), 0.02))
    batch = jax.vmap(rule)(jnp.asarray([P, P[::-1]], jnp.float32))
    assert_close(jax.tree.map(lambda x: x[0], batch), wanted)


def test_a_single_task_gives_its_expert():
    tv = vectors()
    rule = rules.match_layers(tv, predict, INPUTS, ridge=0.02)
    for one in np.eye(N):
        assert_close(rule(one), mj.merge(tv, one), atol=1e-5)


def test_equal_experts_are_their_own_merge():
    rng = np.random.default_rng(1)
    base, expert = (jax.tree.map(jnp.asarray, draw(rng, 0.6)) for _ in range(2))
    tv = mj.TaskVectors.from_params(base, [expert] * N, names=NAMES)
    assert_close(rules.match_layers(tv, predict, INPUTS)(P), expert, atol=1e-5)


def test_the_ridge_is_chosen_on_examples_that_nothing_is_solved_on():
    tv = vectors()
    rule = rules.match_layers(tv, predict, INPUTS)
    last = np.arange(25) % 5 == 4
    own = [x[~last] for x in INPUTS]

    def error(ridge):
        merged = rules.match_layers(tv, predict, own, ridge=ridge)(np.ones(N))
        total = 0.0
        for one, x in zip(np.eye(N), INPUTS, strict=True):
            got, wanted = (predict(m, x[last]) for m in (merged, mj.merge(tv, one)))
            total += float(np.mean((got - wanted) ** 2) / np.var(wanted))
        return total

    choices = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    assert float(rule.ridge) == pytest.approx(min(choices, key=error))
    few = [x[:4] for x in INPUTS]
    assert float(rules.match_layers(tv, predict, few).ridge) == pytest.approx(1.0)


def test_kernels_of_equinox_are_transposed():
    tv = vectors()
    models = [as_equinox(mj.merge(tv, c)) for c in np.eye(N + 1, N, k=-1)]
    turned = mj.TaskVectors.from_params(models[0], models[1:], names=NAMES)

    def run(model, x):
        return jax.jit(jax.vmap(model))(x)

    got = rules.match_layers(turned, run, INPUTS, ridge=0.02)(P)
    assert_close(got.hidden.weight.T, reference(tv, P, 0.02)["hidden"]["kernel"])
    assert_close(got.last.weight.T, reference(tv, P, 0.02)["last"]["kernel"])


class Convolutions(nn.Module):
    """Two convolutions with strides, and a product over what is left."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 2), strides=2)(x))
        x = nn.gelu(nn.Conv(3, (2, 2), padding="VALID")(x))
        return nn.DenseGeneral(5, axis=(1, 2, 3))(x)


@pytest.mark.slow
def test_convolutions_and_products_over_several_axes():
    model = Convolutions()
    images = [RNG.normal(size=(30, 8, 7, 2)).astype(np.float32) for _ in range(2)]
    base, *experts = (model.init(jax.random.key(i), images[0]) for i in range(3))
    tv = mj.TaskVectors.from_params(base, experts)
    rule = rules.match_layers(tv, model.apply, images)
    assert len(rule.matched) == 3
    assert_close(rule([0.0, 1.0]), experts[1], atol=1e-5)
    merged = rule([1.0, 1.0])
    first = "params", "Conv_0", "kernel"

    def kernel(params):
        return np.asarray(params[first[0]][first[1]][first[2]], float)

    rows = [
        np.stack(
            [
                x[:, i : i + 3, j : j + 2].reshape(len(x), -1)
                for i in range(0, 8, 2)
                for j in range(0, 7, 2)
            ]
        ).reshape(-1, 12)
        for x in (np.pad(x.astype(float), ((0, 0), (0, 1), (0, 1), (0, 0))) for x in images)
    ]
    kernels = [kernel(e).reshape(12, 4) for e in experts]
    wanted = numpy_kernel(rows, rows, kernels, [0.5, 0.5], float(rule.ridge))
    np.testing.assert_allclose(kernel(merged).reshape(12, 4), wanted, atol=2e-4)
    assert nearer(rule, model.apply, tv, images) < 0.8


def nearer(rule, run, tv, inputs):
    """Divide what the outputs of the matched merge lose by what those of the mean lose."""
    n = tv.num_tasks
    lost = []
    for merged in (rule(np.ones(n)), mj.merge(tv, np.full(n, 1 / n))):
        pairs = zip(np.eye(n), inputs, strict=True)
        lost.append(
            sum(
                float(jnp.sum((run(merged, x) - run(mj.merge(tv, c), x)) ** 2))
                for c, x in pairs
            )
        )
    return lost[0] / lost[1]


class Attention(nn.Module):
    """Embedded tokens, attention, and a head that is tied to the embedding."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        x = embed(tokens)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return embed.attend(x + nn.Dense(8)(nn.relu(nn.Dense(16)(x))))


@pytest.mark.slow
def test_what_was_read_before_any_product_is_averaged():
    model = Attention()
    tokens = [RNG.integers(11, size=(20, 6)) for _ in range(2)]
    base, *others = (model.init(jax.random.key(i), tokens[0]) for i in range(3))
    experts = [jax.tree.map(lambda a, b: a + 0.3 * b, base, other) for other in others]
    tv = mj.TaskVectors.from_params(base, experts)
    rule = rules.match_layers(tv, model.apply, tokens)
    assert len(rule.matched) == 6
    assert not [path for path in rule.matched if "Embed" in path]
    merged = rule([1.0, 3.0])["params"]["Embed_0"]["embedding"]
    mean = mj.merge(tv, [0.25, 0.75])["params"]["Embed_0"]["embedding"]
    np.testing.assert_allclose(merged, mean, atol=1e-6)
    assert nearer(rule, model.apply, tv, tokens) < 0.9


def test_a_kernel_that_is_used_twice_is_solved_once():
    def twice(params, x):
        return jnp.tanh(x @ params["a"]) @ params["a"].T @ params["b"]

    rng = np.random.default_rng(2)
    base, *experts = (
        {"a": rng.normal(size=(5, 5)) / 2, "b": rng.normal(size=(5, 2))} for _ in range(3)
    )
    tv = mj.TaskVectors.from_params(
        *jax.tree.map(lambda x: x.astype(np.float32), (base, experts))
    )
    rule = rules.match_layers(tv, twice, INPUTS[:2], ridge=0.02)
    got, p = rule([0.4, 0.6]), (0.4, 0.6)
    x = [np.asarray(each, float) for each in INPUTS[:2]]
    a = numpy_kernel(x, x, [e["a"] for e in experts], p, 0.02)
    z = [np.tanh(each @ a) @ a.T for each in x]
    y = [np.tanh(each @ e["a"]) @ e["a"].T for each, e in zip(x, experts, strict=True)]
    np.testing.assert_allclose(got["a"], a, atol=2e-4)
    wanted = numpy_kernel(z, y, [e["b"] for e in experts], p, 0.02)
    np.testing.assert_allclose(got["b"], wanted, atol=5e-4)


def test_loops_run_with_the_average():
    def looped(params, x):
        def step(h, _):
            return jnp.tanh(h @ params["again"]), None

        h, _ = jax.lax.scan(step, x @ params["first"], length=3)
        return h @ params["last"]

    rng = np.random.default_rng(3)
    base, *experts = (
        {
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in (("first", (5, 4)), ("again", (4, 4)), ("last", (4, 2)))
        }
        for _ in range(3)
    )
    tv = mj.TaskVectors.from_params(base, experts)
    rule = rules.match_layers(tv, looped, INPUTS[:2])
    assert rule.matched == ("['first']", "['last']")
    mean = mj.merge(tv, [0.5, 0.5])["again"]
    np.testing.assert_allclose(rule([1.0, 1.0])["again"], mean, atol=1e-6)
    assert_close(rule([1.0, 0.0]), experts[0], atol=1e-5)


def test_parameters_of_less_precision_keep_it():
    got = rules.match_layers(vectors(jnp.bfloat16), predict, INPUTS)(P)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.bfloat16.dtype}


@pytest.mark.slow
def test_drivers_search_preferences():
    suite = toy_suite()
    inputs = [task.inputs for task in suite.train.tasks]
    rule = rules.match_layers(suite.task_vectors, predict, inputs)
    evaluator = mj.Evaluator(rule, suite.validation.tasks)
    solution = mj.map_front(
        evaluator, budget=8, num_generations=20, key=jax.random.key(0), progress=False
    )
    np.testing.assert_allclose(
        np.sum(solution.samples.coefficients, axis=1)[1:], 1, atol=1e-6
    )
    alone = suite.validation(np.eye(N, dtype=np.float32), progress=False)
    got = evaluator(np.eye(N, dtype=np.float32), progress=False)
    np.testing.assert_allclose(got, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ridge": -1.0}, "`ridge`"),
        ({"inputs": INPUTS[:2]}, "`inputs` has 2 entries"),
        ({"inputs": [*INPUTS[:2], INPUTS[2][:, :4]]}, "`inputs` of 'c' have the shape"),
        ({"predict": lambda params, x: jnp.sum(params["last"]["bias"]) + x}, "nothing"),
    ],
)
def test_bad_input_is_refused(change, words):
    given = {"task_vectors": vectors(), "predict": predict, "inputs": INPUTS} | change
    with pytest.raises(ValueError, match=words):
        rules.match_layers(**given)


def test_a_preference_has_one_number_per_expert():
    rule = rules.match_layers(vectors(), predict, INPUTS)
    with pytest.raises(ValueError, match="one number for each"):
        rule(np.ones(2))
