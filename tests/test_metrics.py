"""Metrics against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as truth

from mapjax import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(60, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 60)
SCORES = np.round(RNG.normal(size=60), 1).astype(np.float32)  # rounded, so that some tie
BINARY = RNG.integers(0, 2, 60)
SOFT = np.exp(LOGITS.astype(float))
SOFT /= SOFT.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "want"),
    [
        ("accuracy", LOGITS, LABELS, truth.accuracy_score(LABELS, LOGITS.argmax(1))),
        ("accuracy", SCORES, BINARY, truth.accuracy_score(BINARY, SCORES > 0)),
        ("cross_entropy", LOGITS, LABELS, truth.log_loss(LABELS, SOFT)),
        (
            "cross_entropy",
            LOGITS,
            np.eye(5, dtype=np.float32)[LABELS],
            truth.log_loss(LABELS, SOFT),
        ),
        (
            "mean_squared_error",
            LOGITS,
            SOFT.astype("f"),
            truth.mean_squared_error(SOFT, LOGITS),
        ),
        (
            "mean_squared_error",
            SCORES[:, None],
            SOFT[:, 0],
            truth.mean_squared_error(SOFT[:, 0], SCORES),
        ),
        ("f1", LOGITS, LABELS, truth.f1_score(LABELS, LOGITS.argmax(1), average="macro")),
        ("f1", SCORES, BINARY, truth.f1_score(BINARY, SCORES > 0)),
        ("f1", LOGITS[:, :2], BINARY, truth.f1_score(BINARY, LOGITS[:, :2].argmax(1))),
        ("auc", SCORES, BINARY, truth.roc_auc_score(BINARY, SCORES)),
        (
            "auc",
            LOGITS[:, :2],
            BINARY,
            truth.roc_auc_score(BINARY, LOGITS[:, 1] - LOGITS[:, 0]),
        ),
        ("auc", LOGITS, LABELS, truth.roc_auc_score(LABELS, SOFT, multi_class="ovr")),
    ],
)
def test_metric_is_scikit_learns(metric, outputs, targets, want):
    function = getattr(metrics, metric)
    got = jax.jit(function)(jnp.asarray(outputs), jnp.asarray(targets))
    np.testing.assert_allclose(got, want, rtol=2e-6)


def test_classes_that_never_occur_have_no_share_in_f1():
    labels = np.where(LABELS == 4, 3, LABELS)
    logits = LOGITS.copy()
    logits[:, 4] = -100
    want = truth.f1_score(labels, logits.argmax(1), average="macro")
    np.testing.assert_allclose(
        metrics.f1(jnp.asarray(logits), jnp.asarray(labels)), want, rtol=1e-6
    )


def test_auc_of_one_class_is_undefined():
    assert np.isnan(metrics.auc(jnp.asarray(SCORES), jnp.ones(60, int)))


def test_directions_and_bounds_are_those_of_the_field():
    assert metrics.accuracy.direction == metrics.auc.direction == "maximize"
    assert (
        metrics.cross_entropy.direction
        == metrics.mean_squared_error.direction
        == "minimize"
    )
    assert metrics.f1.bounds == (0.0, 1.0)
    assert metrics.cross_entropy.bounds == (0.0, None)


def test_plain_functions_serve_as_metrics():
    def worst(outputs, targets):
        return jnp.max(jnp.abs(outputs - targets))

    metric = metrics.as_metric(worst)
    assert metric.direction == "maximize"
    np.testing.assert_allclose(metric(jnp.array([1.0, 4.0]), jnp.array([0.0, 0.0])), 4.0)
