"""Surrogates of many examples: a part of them is enough to find the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax.surrogate import _fit_outputs, fit_outputs

N, EXAMPLES, CLASSES = 3, 402, 4
CORNERS = np.eye(N + 1, N, k=-1)
RNG = np.random.default_rng(0)
START = RNG.normal(size=(EXAMPLES, CLASSES))
SLOPE = RNG.normal(size=(N, EXAMPLES, CLASSES))
POINTS = RNG.random((20, N))
LABELS = np.sort(RNG.integers(CLASSES, size=EXAMPLES))  # as many files of images have them
CHANCE = mj.metrics.Metric(
    lambda logits, labels: jnp.take_along_axis(
        jax.nn.softmax(logits), labels[:, None], axis=1
    )[:, 0],
    per_example=True,
)


def logits(c):
    return START + np.tensordot(c, SLOPE, 1)


def fit(metric=mj.metrics.accuracy, c=CORNERS):
    return fit_outputs(c, [logits(c)], [LABELS], [metric], degree=1, ridge=1e-6)


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of 50 examples at most, and so as many as they fill: twelve."""
    monkeypatch.setattr(_fit_outputs, "BLOCK", 50 * CLASSES)
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_a_part_scores_every_fourth_example_of_each_kind(blocks):
    surrogate = fit()
    count = len(surrogate.tasks[0].mask)
    assert count == 12
    right = logits(POINTS).argmax(-1) == LABELS
    np.testing.assert_allclose(surrogate(POINTS)[:, 0], right.mean(1), atol=3e-3)
    part = surrogate.part
    assert part is not None
    seen = np.isin(np.arange(EXAMPLES) % count, range(count // 4))
    np.testing.assert_allclose(part(POINTS)[:, 0], right[:, seen].mean(1), atol=1e-2)


def test_few_examples_and_metrics_with_a_derivative_are_not_parted(blocks, monkeypatch):
    assert fit(CHANCE).part is None
    monkeypatch.setattr(_fit_outputs, "BLOCK", EXAMPLES * CLASSES)
    jax.clear_caches()
    assert fit().part is None


def test_scores_in_blocks_have_a_derivative_in_reverse(blocks):
    surrogate = fit(CHANCE)
    assert len(surrogate.tasks[0].mask) == 12
    point = jnp.asarray(POINTS[0], jnp.float32)

    def truth(c):
        z = jnp.asarray(START) + jnp.tensordot(c, jnp.asarray(SLOPE), 1)
        return jnp.mean(jax.nn.softmax(z)[jnp.arange(EXAMPLES), LABELS])

    slope = jax.grad(lambda c: surrogate(c)[0])(point)
    np.testing.assert_allclose(slope, jax.grad(truth)(point), atol=1e-3)


def front_volume(key):
    base = {"w": np.zeros((8, CLASSES), np.float32)}
    rng = np.random.default_rng(1)
    experts = [{"w": rng.normal(size=(8, CLASSES)).astype("f")} for _ in range(N)]
    tv = mj.TaskVectors.from_params(base, experts)
    x = rng.normal(size=(N, EXAMPLES, 8)).astype("f")
    tasks = [
        mj.Task(
            f"task {i}", lambda p, x: x @ p["w"], x[i], (x[i] @ experts[i]["w"]).argmax(1)
        )
        for i in range(N)
    ]
    solution = mj.map_front(
        mj.Evaluator(tv, tasks), budget=8, key=jax.random.key(key), progress=False
    )
    return float(mj.pareto.hypervolume(-solution.front.scores, jnp.zeros(N)))


@pytest.mark.slow
def test_the_front_is_as_good_as_one_of_all_examples_all_the_time(blocks, monkeypatch):
    parted = [front_volume(key) for key in range(3)]
    monkeypatch.setattr(mj.surrogate.OutputSurrogate, "part", None)
    whole = [front_volume(key) for key in range(3)]
    assert np.mean(parted) > 0.995 * np.mean(whole)
