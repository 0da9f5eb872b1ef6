"""Metrics against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
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
        # One logit an example, and targets in a column: never broadcast.
        (
            "accuracy",
            SCORES[:, None],
            BINARY[:, None],
            truth.accuracy_score(BINARY, SCORES > 0),
        ),
        (
            "accuracy",
            LOGITS,
            LABELS[:, None],
            truth.accuracy_score(LABELS, LOGITS.argmax(1)),
        ),
        (
            "cross_entropy",
            SCORES,
            BINARY,
            truth.log_loss(BINARY, 1 / (1 + np.exp(-SCORES))),
        ),
        (
            "cross_entropy",
            SCORES[:, None],
            BINARY[:, None],
            truth.log_loss(BINARY, 1 / (1 + np.exp(-SCORES))),
        ),
        ("cross_entropy", LOGITS, LABELS[:, None], truth.log_loss(LABELS, SOFT)),
        (
            "cross_entropy",
            LOGITS,
            np.eye(5, dtype=int)[LABELS],
            truth.log_loss(LABELS, SOFT),
        ),
        # Twelve sequences of five tokens.
        (
            "f1",
            LOGITS.reshape(12, 5, 5),
            LABELS.reshape(12, 5),
            truth.f1_score(LABELS, LOGITS.argmax(1), average="macro"),
        ),
        (
            "auc",
            LOGITS.reshape(12, 5, 5),
            LABELS.reshape(12, 5),
            truth.roc_auc_score(LABELS, SOFT, multi_class="ovr"),
        ),
        (
            "accuracy",
            SCORES.reshape(12, 5, 1),
            BINARY.reshape(12, 5),
            truth.accuracy_score(BINARY, SCORES > 0),
        ),
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


def one_versus_rest(logits, labels):
    """Compute the truth: log-odds in double precision, which tie only where they must."""
    z, areas = logits.astype(float), []
    for k in range(z.shape[1]):
        odds = z[:, k] - logsumexp(np.delete(z, k, axis=1), axis=1)
        areas.append(truth.roc_auc_score(labels == k, np.clip(odds, -1e9, 1e9)))
    return np.mean(areas)


@pytest.mark.parametrize("num_classes", [3, 5, 40])
@pytest.mark.parametrize("scale", [0.1, 1, 10, 50, 1000])
def test_auc_of_confident_logits_has_no_ties(num_classes, scale):
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(0, num_classes, 800)
    logits = rng.normal(size=(800, num_classes)) + np.eye(num_classes)[labels]
    logits = (scale * logits).astype(np.float32)
    got = jax.vmap(jax.jit(metrics.auc), (0, None))(jnp.array([logits]), jnp.array(labels))
    np.testing.assert_allclose(got[0], one_versus_rest(logits, labels), atol=2e-6)
    if scale <= 1:  # softmax in double precision does not saturate yet
        soft = np.exp(logits.astype(float))
        soft /= soft.sum(1, keepdims=True)
        want = truth.roc_auc_score(labels, soft, multi_class="ovr")
        np.testing.assert_allclose(got[0], want, atol=2e-6)


def test_auc_takes_classes_that_are_ruled_out():
    logits = 50 * LOGITS
    logits[::3, 2] = logits[::7, :4] = -np.inf  # some rows have one class left
    got = metrics.auc(jnp.asarray(logits), jnp.asarray(LABELS))
    np.testing.assert_allclose(got, one_versus_rest(logits, LABELS), rtol=2e-6)
    logits[5] = -np.inf  # nothing is left, so there is no probability
    assert np.isnan(metrics.auc(jnp.asarray(logits), jnp.asarray(LABELS)))


def test_auc_of_one_class_is_undefined():
    assert np.isnan(metrics.auc(jnp.asarray(SCORES), jnp.ones(60, int)))


@pytest.mark.parametrize("name", ["accuracy", "cross_entropy", "f1", "auc"])
@pytest.mark.parametrize("num_outputs", [1, 2, 5])
def test_outputs_that_hold_a_nan_score_nan(name, num_outputs):
    targets = jnp.asarray(LABELS if num_outputs == 5 else BINARY)
    outputs = jnp.asarray(LOGITS[:, :num_outputs])
    metric = getattr(metrics, name)
    assert np.isfinite(metric(outputs, targets))
    assert np.isnan(metric(outputs.at[7, 0].set(jnp.nan), targets))


def test_a_class_that_is_ruled_out_costs_nothing():
    logits = jnp.array([[0.0, -jnp.inf, 0.0]])
    soft = jnp.array([[0.5, 0.0, 0.5]])
    np.testing.assert_allclose(metrics.cross_entropy(logits, soft), np.log(2), rtol=1e-6)
    slope = jax.grad(lambda x: metrics.cross_entropy(x, soft))(logits)
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    np.testing.assert_allclose(metrics.accuracy(logits, jnp.array([0])), 1.0)


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "message"),
    [
        (
            "accuracy",
            LOGITS,
            np.eye(5)[LABELS],
            r"shape \(60, 5\).*one label each.*\(60,\)",
        ),
        ("accuracy", LOGITS, LABELS[:1], r"`targets` has shape \(1,\)"),
        ("f1", LOGITS, LABELS[:30], r"`targets` has shape \(30,\)"),
        ("auc", LOGITS, LABELS[:30], r"`targets` has shape \(30,\)"),
        ("cross_entropy", LOGITS, LABELS[:30], r"`targets` has shape \(30,\)"),
        ("cross_entropy", LOGITS[:5], np.ones(5, np.float32), "must be integer labels, or"),
        ("mean_squared_error", LOGITS, LOGITS.reshape(5, 60), "one target for each output"),
        ("mean_squared_error", LOGITS, SCORES, "one target for each output"),
    ],
)
def test_targets_of_another_shape_are_refused(metric, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        getattr(metrics, metric)(jnp.asarray(outputs), jnp.asarray(targets))


def test_help_says_what_each_metric_is():
    made = [name for name, x in vars(metrics).items() if isinstance(x, metrics.Metric)]
    assert len(made) == 5
    assert all(f"- `{name}`: " in (metrics.__doc__ or "") for name in made)


def test_what_is_no_metric_is_refused():
    with pytest.raises(
        ValueError, match="`metric` is 'accuracy', but must be a metric such"
    ):
        metrics.as_metric("accuracy")


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


def test_labels_that_are_no_class_give_nan_and_count_for_nothing_else():
    labels = jnp.array(LABELS).at[0].set(-100)
    for metric in (metrics.accuracy, metrics.cross_entropy):
        each = np.asarray(metric.each(jnp.array(LOGITS), labels))
        assert np.isnan(each).tolist() == [True] + [False] * 59
        true = metric.each(jnp.array(LOGITS), jnp.array(LABELS))
        np.testing.assert_allclose(each[1:], true[1:])
        scores, binary = jnp.array(SCORES), jnp.array(BINARY)
        assert np.isnan(metric(scores, 2 * binary - 1))  # -1 and 1 are not 0 and 1
        assert np.isfinite(metric(scores, binary))


@pytest.mark.parametrize("shape", [(60, 1), (60, 2), ()])
def test_a_metric_per_example_gives_one_number_for_each(shape):
    metric = metrics.Metric(lambda y, t: jnp.zeros(shape), per_example=True)
    with pytest.raises(ValueError, match=r"for 60 examples, .* shape \(60,\)"):
        metric(LOGITS, LABELS)


@pytest.mark.parametrize("name", ["accuracy", "cross_entropy", "mean_squared_error", "f1"])
def test_outputs_that_are_no_array_are_named(name):
    with pytest.raises(ValueError, match=r"returned a dict. .*metric.after"):
        getattr(metrics, name)({"logits": jnp.array(LOGITS)}, jnp.array(LABELS))


@pytest.mark.parametrize("metric", [metrics.f1, metrics.auc, metrics.accuracy])
@pytest.mark.parametrize("labels", [[1, 2, 1, 2], [-1, 1, -1, 1], [0, 0.5, 0, 1]])
def test_labels_that_are_no_class_give_nan(metric, labels):
    for outputs in (jnp.array([-1.0, 1, -2, 3]), jnp.array([[1.0, -1], [-1, 1]] * 2)):
        assert not jnp.isnan(metric(outputs, jnp.array([0, 1, 0, 1])))
        assert jnp.isnan(metric(outputs, jnp.array(labels)))


@pytest.mark.parametrize(
    "name", ["accuracy", "cross_entropy", "mean_squared_error", "f1", "auc"]
)
def test_no_examples_have_no_score(name):
    outputs = jnp.zeros((0, 3))
    targets = outputs if name == "mean_squared_error" else jnp.zeros(0, int)
    with pytest.raises(ValueError, match=r"shape \(0, 3\), so there are no examples"):
        getattr(metrics, name)(outputs, targets)


@pytest.mark.parametrize("metric", [metrics.f1, metrics.auc])
def test_what_is_no_mean_has_no_score_of_each(metric):
    with pytest.raises(
        ValueError, match="`per_example=False`: it is no mean over examples"
    ):
        metric.each(jnp.array(LOGITS), jnp.array(LABELS))


@pytest.mark.parametrize("kind", [int, bool, jnp.uint8])
@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3)])
def test_metrics_promote_nothing_by_themselves(kind, shape):
    """Labels and targets are cast where they are compared, and axes added where needed."""
    outputs, labels = jax.random.normal(jax.random.key(0), shape), jnp.array([0, 1, 0, 1])
    targets, squared = labels.astype(kind), (outputs > 0).astype(kind)
    every = [(m, targets) for m in (metrics.accuracy, metrics.f1, metrics.auc)]
    every += [(metrics.cross_entropy, targets), (metrics.mean_squared_error, squared)]
    want = [metric(outputs, target) for metric, target in every]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        np.testing.assert_array_equal([m(outputs, t) for m, t in every], want)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, 0.0), (0.0, np.nan)])
def test_bounds_are_two_numbers_in_order(bounds):
    with pytest.raises(ValueError, match="two numbers in this order"):
        metrics.Metric(jnp.mean, bounds=bounds)
