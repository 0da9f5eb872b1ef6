"""ReACT, against the paper's formula in NumPy, and in a driver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from bench_tools import NAMES, N, as_equinox, draw, predict

import mapjax as mj
from mapjax import rules

RNG = np.random.default_rng(5)
INPUTS = [RNG.normal(size=(25, 5)).astype(np.float32) for _ in NAMES]
Z = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)


def vectors(change=lambda params: params, dtype=np.float32):
    rng = np.random.default_rng(0)
    base, *experts = (
        jax.tree.map(lambda x: jnp.asarray(x, dtype), change(draw(rng, 0.6)))
        for _ in range(N + 1)
    )
    return mj.TaskVectors.from_params(base, experts, names=NAMES)


def narrow(params):
    return {**params, "last": {name: x[..., :1] for name, x in params["last"].items()}}


def one_logit(params, x):
    return predict(params, x)[:, 0]


def numpy_features(params, x):
    hidden = {name: np.asarray(leaf, float) for name, leaf in params["hidden"].items()}
    return np.tanh(x @ hidden["kernel"] + hidden["bias"])


def reference(tv, merged, p, beta):
    """W Z = Y in columns, as the paper writes it; the kernel and the bias."""
    left, right, bias = 0.0, 0.0, 0.0
    for x, weight, one in zip(INPUTS, p, np.eye(N), strict=True):
        expert = mj.merge(tv, one)
        z, y = numpy_features(merged, x).T, numpy_features(expert, x).T
        rotation = scipy.linalg.orthogonal_procrustes(z.T, y.T)[0].T
        c = z @ z.T + beta * np.eye(len(z))
        w = (y @ z.T + beta * rotation) @ np.linalg.inv(c)
        kernel = np.asarray(expert["last"]["kernel"], float)
        left, right = left + weight * c, right + weight * kernel.T @ w @ c
        bias = bias + weight * np.asarray(expert["last"]["bias"])
    return (right @ np.linalg.inv(left)).T, bias


@pytest.mark.parametrize("at", [None, [0.2, 0.1, 0.6]])
@pytest.mark.parametrize("head", [predict, one_logit])
def test_react_is_the_closed_form_of_its_paper(head, at):
    tv = vectors(narrow) if head is one_logit else vectors()
    rule = rules.react(tv, head, INPUTS, beta=0.3, coefficients=at)
    merged = mj.merge(tv, np.full(N, 1 / N) if at is None else at)
    p = np.array([0.2, 0.5, 0.3])
    got = rule(jnp.asarray(4 * p, jnp.float32))  # only proportions count
    kernel, bias = reference(tv, merged, p, 0.3)
    np.testing.assert_allclose(got["last"]["kernel"], kernel, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got["last"]["bias"], bias, rtol=1e-5)
    for leaf, same in zip(
        jax.tree.leaves(got["hidden"]), jax.tree.leaves(merged["hidden"]), strict=True
    ):
        np.testing.assert_array_equal(leaf, same)
    np.testing.assert_allclose(
        rule(jnp.zeros(N))["last"]["kernel"], rule(jnp.ones(N))["last"]["kernel"], rtol=1e-6
    )


def test_kernels_of_equinox_are_turned():
    tv = vectors()
    base, *experts = (as_equinox(mj.merge(tv, c)) for c in np.eye(N + 1, N, k=-1))
    turned = mj.TaskVectors.from_params(base, experts, names=NAMES)
    rule = rules.react(turned, lambda model, x: jax.vmap(model)(x), INPUTS, beta=0.3)
    got, p = rule(jnp.array([0.2, 0.5, 0.3])), np.array([0.2, 0.5, 0.3])
    kernel, bias = reference(tv, mj.merge(tv, np.full(N, 1 / N)), p, 0.3)
    np.testing.assert_allclose(got.last.weight.T, kernel, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got.last.bias, bias, rtol=1e-5)


def test_a_bias_below_an_identity_is_not_the_one_beside_it():
    def with_identity(params, x):
        return jnp.tanh(x @ params["a"] + params["b"]) @ params["last"]

    def affine(params, x):
        return (x @ params["a"] + params["b"]) @ params["last"]

    rng = np.random.default_rng(0)
    models = [
        {
            "a": rng.normal(size=(5, 3)).astype(np.float32),
            "b": rng.normal(size=3).astype(np.float32),
            "last": np.eye(3, dtype=np.float32),
        }
        for _ in range(N + 1)
    ]
    tv = mj.TaskVectors.from_params(models[0], models[1:])
    for head in (with_identity, affine):
        assert rules.react(tv, head, INPUTS).places[1] is None


def test_inputs_by_name_and_parameters_of_less_precision():
    tv = vectors(dtype=jnp.bfloat16)
    named: dict[str, np.ndarray] = dict(zip(NAMES[::-1], INPUTS[::-1], strict=True))
    got, same = (rules.react(tv, predict, x)(jnp.ones(N)) for x in (named, INPUTS))
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.bfloat16.dtype}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)


def test_derivatives_at_an_expert_are_those_from_inside():
    rule = rules.react(vectors(), predict, INPUTS)
    one, step = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1e-2, 0.0])

    def kernel(p):
        return rule(p)["last"]["kernel"]

    slope = jax.jvp(kernel, (one,), (step,))[1]
    near = jax.jvp(kernel, (one + step,), (step,))[1]
    np.testing.assert_allclose(
        kernel(one + step) - kernel(one), (slope + near) / 2, atol=2e-4
    )


def test_factors_and_groups_are_merged_as_they_are_elsewhere():
    tv = vectors()
    wanted = rules.react(tv, predict, INPUTS)(jnp.ones(N))
    for same in (mj.low_rank(tv, rank=4), mj.group(tv, by=lambda path: path)):
        got = rules.react(same, predict, INPUTS)(jnp.ones(N))
        np.testing.assert_allclose(
            got["last"]["kernel"], wanted["last"]["kernel"], rtol=1e-2, atol=1e-3
        )


def test_without_a_bias_only_the_kernel_is_solved_for():
    def plain(params, x):
        return jnp.tanh(x @ params["hidden"]["kernel"]) @ params["last"]["kernel"]

    rule = rules.react(vectors(), plain, INPUTS)
    assert rule.biases is None
    merged, changed = rule.merged, rule(jnp.ones(N))
    np.testing.assert_array_equal(merged["last"]["bias"], changed["last"]["bias"])
    assert jnp.abs(merged["last"]["kernel"] - changed["last"]["kernel"]).max() > 0.01


@pytest.mark.parametrize(
    "head", [lambda p, x: jnp.tanh(predict(p, x)), lambda p, x: predict(p, x) @ Z]
)
def test_outputs_that_no_kernel_gives_are_refused(head):
    with pytest.raises(ValueError, match=r"outputs of `predict` are not .*last"):
        rules.react(vectors(), head, INPUTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": 0.0}, "`beta` is 0.0"),
        ({"inputs": INPUTS[:2]}, "`inputs` has 2 entries, but there are 3 experts"),
        ({"inputs": {"a": INPUTS[0]}}, "`inputs` has entries for"),
        ({"coefficients": [1.0, 0.0]}, r"pass one number per expert, shape \(3,\)"),
        ({"inputs": [INPUTS[0], INPUTS[0][:0], INPUTS[0]]}, r"`inputs\[1\]`"),
    ],
)
def test_bad_input_is_named(change, words):
    options = {"inputs": INPUTS} | change
    with pytest.raises(ValueError, match=words):
        rules.react(vectors(), predict, **options)


def test_a_preference_has_one_number_per_expert():
    rule = rules.react(vectors(), predict, INPUTS)
    with pytest.raises(ValueError, match=r"shape \(2,\) was given for the experts \('a'"):
        rule(jnp.ones(2))


@pytest.mark.slow
def test_a_driver_searches_preferences():
    tv = vectors()
    rule = rules.react(tv, predict, INPUTS)
    tasks = [
        mj.Task(name, predict, x, np.argmax(predict(mj.merge(tv, one), x), axis=1))
        for name, x, one in zip(NAMES, INPUTS, np.eye(N), strict=True)
    ]
    evaluator = mj.Evaluator(rule, tasks)
    assert evaluator.coefficient_names == NAMES
    solution = mj.map_front(evaluator, budget=N + 3, key=jax.random.key(0))
    c = np.asarray(solution.samples.coefficients)
    start = mj.design.make_design(
        "axial", N + 1, N, bounds="simplex", key=jax.random.key(1)
    )
    np.testing.assert_allclose(c[: N + 1], start, atol=1e-6)
    np.testing.assert_allclose(c.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(solution.front.coefficients.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("num_examples", [16, 200])
def test_fewer_examples_than_features_give_the_expert_still(num_examples):
    """Of one expert, and of two that are the same, every merge is that expert."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 3)).astype(np.float32)
    x = rng.normal(size=(2, num_examples, 64)).astype(np.float32)
    for n in (1, 2):
        tv = mj.TaskVectors.from_params(np.zeros_like(kernel), [kernel] * n)
        rule = rules.react(tv, lambda p, x: x @ p, list(x[:n]))
        np.testing.assert_allclose(rule(jnp.full(n, 1 / n)), kernel, atol=0.02)


def test_the_bias_keeps_its_dtype():
    def half(params):
        last = {**params["last"], "kernel": params["last"]["kernel"].astype(jnp.bfloat16)}
        return {**params, "last": last}

    tv = vectors()
    tv = mj.TaskVectors.from_params(
        half(tv.base), [half(mj.merge(tv, one)) for one in np.eye(N)], names=NAMES
    )
    merged = rules.react(tv, predict, INPUTS)(jnp.full(N, 1 / N))["last"]
    assert (merged["kernel"].dtype, merged["bias"].dtype) == (jnp.bfloat16, jnp.float32)
