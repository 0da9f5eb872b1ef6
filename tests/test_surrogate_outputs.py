"""The output-space surrogate against formulas written out in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax.surrogate import fit_outputs, fit_quadratic
from mapjax.surrogate._errors import POWERS, growth_of_errors

N, EXAMPLES, CLASSES = 3, 40, 4
CORNERS = np.eye(N + 1, N, k=-1)


def sampled(count, seed=0):
    """The base, the experts and other merges near them."""
    others = np.random.default_rng(seed).random((count - N - 1, N)) * 0.6
    return np.concatenate([CORNERS, others])


def logits(c, seed=1, curvature=0.5):
    """Outputs that are quadratic in the coefficients."""
    rng = np.random.default_rng(seed)
    slope = rng.normal(size=(N, EXAMPLES, CLASSES))
    bend = curvature * rng.normal(size=(N, N, EXAMPLES, CLASSES))
    start = rng.normal(size=(EXAMPLES, CLASSES))
    line = np.tensordot(c, slope, 1)
    return start + line + np.einsum("ki,kj,ijec->kec", c, c, bend)


LABELS = np.random.default_rng(2).integers(CLASSES, size=EXAMPLES)


def accuracies(outputs, labels=LABELS):
    return (outputs.argmax(-1) == labels).mean(-1)


def kernel(a, b, degree):
    powers = range(1, int(min(degree, 30)) + 1)
    return np.sum([(a @ b.T) ** n / math.factorial(n) for n in powers], axis=0)


def predicted_outputs(c, points, outputs, degree, ridge):
    """Kernel ridge regression with an intercept, written as a linear system."""
    count = len(c)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = kernel(c, c, degree) + ridge * np.eye(count)
    system[:count, count] = system[count, :count] = 1
    right = np.concatenate([outputs.reshape(count, -1), np.zeros((1, outputs[0].size))])
    solved = np.linalg.solve(system, right)
    features = np.concatenate([kernel(points, c, degree), np.ones((len(points), 1))], 1)
    return (features @ solved).reshape(len(points), *outputs.shape[1:])


def fit(c, outputs, *, metric=mj.metrics.accuracy, labels=LABELS, **options):
    return fit_outputs(c, [outputs], [labels], [metric], **options)


@pytest.mark.parametrize("degree", [1, 2, math.inf])
def test_predictions_are_those_of_ridge_regression_scored_by_the_metric(degree):
    c, points = sampled(14), sampled(30, seed=5)
    outputs = logits(c)
    surrogate = fit(c, outputs, degree=degree, ridge=1e-2)
    expected = predicted_outputs(c, points, outputs, degree, 1e-2)
    np.testing.assert_allclose(surrogate(points)[:, 0], accuracies(expected), atol=1e-6)


def test_quadratic_outputs_are_recovered_from_as_many_samples_as_they_need(x64):
    c, points = sampled(10), sampled(40, seed=5)  # p = 10 for N = 3
    surrogate = fit(c, logits(c), degree=2, ridge=1e-9)
    assert surrogate.rank[0] == 10
    truth = accuracies(logits(points))
    np.testing.assert_allclose(surrogate(points)[:, 0], truth, atol=1e-12)


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        (mj.metrics.cross_entropy, LABELS),
        (mj.metrics.f1, LABELS),
        (mj.metrics.auc, LABELS),
        (lambda outputs, labels: jnp.min(outputs.max(-1) - labels), LABELS),
    ],
)
def test_any_metric_sees_the_predicted_outputs(metric, labels):
    metric = metric if isinstance(metric, mj.metrics.Metric) else mj.metrics.Metric(metric)
    c, points = sampled(12), sampled(9, seed=5)
    outputs = logits(c)
    surrogate = fit(c, outputs, metric=metric, degree=2, ridge=1e-2)
    expected = predicted_outputs(c, points, outputs, 2, 1e-2).astype(np.float32)
    truth = [metric(jnp.asarray(y), jnp.asarray(labels)) for y in expected]
    np.testing.assert_allclose(surrogate(points)[:, 0], truth, rtol=2e-3, atol=1e-5)


def test_left_out_scores_are_those_of_fits_without_the_sample():
    c = sampled(14)
    outputs = logits(c)
    surrogate = fit(c, outputs, degree=2, ridge=1e-2)
    left_out = np.asarray(surrogate.left_out)[:, 0]
    assert np.isnan(left_out[: N + 1]).all()  # the base and the experts
    for k in range(N + 1, len(c)):
        rest = np.arange(len(c)) != k
        # The mean of the features is that of all samples in both, as in the closed form
        # of a regression with an intercept.
        alone = predicted_outputs(c[rest], c[k : k + 1], outputs[rest], 2, 1e-2)
        assert abs(left_out[k] - accuracies(alone)[0]) < 1e-6


def test_degree_and_penalty_have_the_least_leave_one_out_error_of_the_metric():
    c = sampled(24)
    outputs = logits(c) + 0.3 * np.random.default_rng(3).normal(
        size=(24, EXAMPLES, CLASSES)
    )
    scores = accuracies(outputs)[:, None]

    def error(surrogate):
        return np.nanmean((np.asarray(surrogate.left_out) - scores) ** 2)

    chosen = error(fit(c, outputs))
    every = [
        error(fit(c, outputs, degree=d, ridge=r))
        for d in (1, 2, math.inf)
        for r in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    ]
    assert np.isclose(chosen, min(every))
    assert max(every) > 1.2 * chosen


def test_importance_decides_which_errors_count():
    c = sampled(24)
    outputs = logits(c)
    outputs[-6:] += np.random.default_rng(3).normal(size=(6, EXAMPLES, CLASSES)) * 5
    near = np.r_[np.ones(18), np.zeros(6)]
    scores = accuracies(outputs)[:, None]

    def error(surrogate):
        return np.nanmean((np.asarray(surrogate.left_out) - scores)[:18] ** 2)

    assert error(fit(c, outputs, importance=near)) <= error(fit(c, outputs)) + 1e-9


def test_base_and_experts_alone_give_a_front():
    outputs = logits(CORNERS, curvature=0.0)
    surrogate = fit(CORNERS, outputs)
    middle = np.full((1, N), 1 / N)
    truth = accuracies(logits(middle, curvature=0.0))
    np.testing.assert_allclose(surrogate(middle)[:, 0], truth, atol=0.05)
    np.testing.assert_allclose(surrogate(CORNERS)[:, 0], accuracies(outputs), atol=0.03)
    assert np.isnan(surrogate.loo_r2).all()
    assert (np.asarray(surrogate.std(middle)) > 0).all()


def test_examples_are_streamed_without_a_difference(monkeypatch):
    from mapjax.surrogate import _fit_outputs

    c, points = sampled(14), sampled(9, seed=5)
    whole = fit(c, logits(c), ridge=1e-3, degree=2)
    monkeypatch.setattr(_fit_outputs, "BLOCK", 3 * CLASSES)  # does not divide 40 examples
    jax.clear_caches()
    parts = fit(c, logits(c), ridge=1e-3, degree=2)
    assert parts.tasks[0].mask.shape == (16, 3)
    np.testing.assert_allclose(parts(points), whole(points), atol=1e-6)
    np.testing.assert_allclose(parts.left_out, whole.left_out, atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-5, 1e-3])
def test_variance_is_that_of_a_gaussian_process_to_single_precision(ridge):
    c, points = sampled(40), sampled(60, seed=5)
    surrogate = fit(c, logits(c), ridge=ridge, degree=math.inf)
    # With an intercept of its own: a kernel of differences from the mean of the samples.
    gram = kernel(c, c, math.inf)
    cross, own = kernel(points, c, math.inf), np.diag(kernel(points, points, math.inf))
    mean = cross.mean(1, keepdims=True)
    inverse = np.linalg.inv(
        gram - gram.mean(0) - gram.mean(0)[:, None] + gram.mean() + ridge * np.eye(40)
    )
    cross = cross - mean - gram.mean(0) + gram.mean()
    prior = own - 2 * mean[:, 0] + gram.mean()
    expected = prior - np.sum(cross @ inverse * cross, axis=1) + ridge * (1 + 1 / 40)
    got = jax.vmap(surrogate.doubt.variance)(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=0.05, atol=0.05 * ridge)


def test_a_linear_fit_is_not_sure_of_what_it_leaves_out():
    c = sampled(12)
    noise = 0.3 * np.random.default_rng(3).normal(size=(12, EXAMPLES, CLASSES))
    surrogate = fit(c, logits(c, curvature=0.0) + noise)
    assert float(surrogate.mean.degree) == 1
    assert float(surrogate.doubt.degree) == math.inf
    near, far = jnp.full(N, 0.3), jnp.full(N, 1.5)
    assert surrogate.doubt.variance(far) > 100 * surrogate.doubt.variance(near)


def test_errors_far_from_the_base_are_finite():
    rng = np.random.default_rng(0)
    c = np.concatenate([CORNERS, rng.uniform(0, 6, size=(12, N))])
    noise = 0.3 * rng.normal(size=(len(c), EXAMPLES, CLASSES))
    surrogate = fit(c, logits(c, curvature=0.0) + noise)
    assert float(surrogate.doubt.degree) == 2
    corner = np.full((1, N), 6.0, np.float32)
    assert np.isfinite(surrogate.std(corner)).all()
    errors = surrogate.errors(np.asarray(c, np.float32), 4, key=jax.random.key(0))
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_errors_grow_with_the_variance_by_the_power_that_they_were_drawn_with(power):
    rng = np.random.default_rng(0)
    variance = 10 ** rng.uniform(-5, -1, 200)
    scale = np.array([0.3, 2.0])
    errors = rng.normal(size=(200, 2)) * scale * variance[:, None] ** (power / 2)
    noise, found = growth_of_errors(errors**2, variance, POWERS)
    assert found == power
    np.testing.assert_allclose(noise, scale, rtol=0.15)


def test_errors_have_no_mean_and_the_deviation_that_is_predicted():
    c, points = sampled(14), sampled(9, seed=5)
    surrogate = fit(c, logits(c), ridge=1e-2, degree=2)
    errors = surrogate.errors(points, 4000, key=jax.random.key(0))
    assert errors.shape == (4000, 9, 1)
    std = surrogate.std(points)
    np.testing.assert_allclose(errors.mean(0), 0, atol=float(4 * std.max() / 63))
    np.testing.assert_allclose(errors.std(0), std, rtol=0.06)


def test_a_quadratic_of_the_scores_is_mixed_in_where_it_is_better():
    c, count = sampled(24), 24
    # The score, the mean of the outputs, is smooth; what is kept of them jumps about.
    scores = 1 - np.sum((c - 0.3) ** 2, axis=1, keepdims=True)
    jumps = 3 * np.random.default_rng(4).normal(size=(count, 1))
    outputs = np.broadcast_to(scores + jumps, (count, EXAMPLES))
    options = {
        "metric": mj.metrics.Metric(lambda outputs, _: jnp.mean(outputs)),
        "labels": np.zeros(EXAMPLES),
        "scores": scores,
    }
    surrogate = fit(c, outputs, scalar=fit_quadratic(c, scores), **options)
    assert surrogate.blend[0] > 0.9
    assert surrogate.loo_r2[0] > 0.99
    early = fit(c, outputs, scalar=fit_quadratic(c, scores), num_unknowns=25, **options)
    assert early.blend[0] == 0
    alone = fit(c, outputs, **options)
    assert alone.scalar is None
    np.testing.assert_array_equal(early(c), alone(c))
    assert alone.loo_r2[0] < surrogate.loo_r2[0]


def test_a_metric_that_never_changes_is_explained_whole():
    surrogate = fit(
        sampled(7),
        np.full((7, EXAMPLES, 2), 0.7),
        labels=np.zeros(EXAMPLES, int),
        metric=mj.metrics.Metric(lambda outputs, _: jnp.mean(outputs)),
    )
    assert surrogate.r2[0] == surrogate.loo_r2[0] == 1


def test_pytrees_half_precision_and_failed_samples():
    c = sampled(14)
    outputs = logits(c)
    outputs[6] = np.nan
    tree = {"a": jnp.asarray(outputs[..., :2], jnp.bfloat16), "b": outputs[..., 2:]}
    metric = mj.metrics.Metric(
        lambda y, t: mj.metrics.accuracy(jnp.concatenate([y["a"], y["b"]], -1), t)
    )
    surrogate = fit(c, tree, metric=metric, ridge=1e-3, degree=2)
    rest = np.arange(14) != 6
    alone = fit(c[rest], outputs[rest], ridge=1e-3, degree=2)
    points = sampled(9, seed=5)
    np.testing.assert_allclose(surrogate(points), alone(points), atol=0.06)
    assert np.isfinite(surrogate(points)).all()


def test_one_compilation_serves_all_numbers_of_samples_below_the_capacity():
    traced = []

    def count(outputs, labels):
        traced.append(1)
        return jnp.mean(outputs[..., 0] - labels)

    metric = mj.metrics.Metric(count)
    c, points = sampled(16), sampled(9, seed=5)

    def predict(k, **options):
        outputs = logits(c)[:k]
        return fit(c[:k], outputs, metric=metric, capacity=16, **options)(points)

    predict(10)
    seen = len(traced)
    predict(11)
    predict(13, degree=1, ridge=0.1)
    assert len(traced) == seen


def test_it_is_differentiable_where_the_metric_is():
    c = sampled(14)
    surrogate = fit(c, logits(c), metric=mj.metrics.cross_entropy, degree=2, ridge=1e-3)
    assert surrogate.differentiable
    assert not fit(c, logits(c)).differentiable
    point, step = jnp.full(N, 0.3), 1e-2
    gradient = jax.jacobian(surrogate)(point)[0]
    for i in range(N):
        ahead, behind = (surrogate(point.at[i].add(s))[0] for s in (step, -step))
        np.testing.assert_allclose(gradient[i], (ahead - behind) / (2 * step), rtol=2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": np.zeros((14, N, 1))}, "`coefficients` has shape"),
        ({"c": np.full((14, N), np.nan)}, "finite numbers"),
        ({"outputs": np.zeros((14, EXAMPLES), int)}, "only floating-point outputs"),
        ({"outputs": np.zeros((13, EXAMPLES, 2))}, "expected \\[14 samples, 40 examples"),
        ({"outputs": np.full((14, EXAMPLES, 2), np.nan)}, "those of task 0 never are"),
        ({"degree": 3}, "`degree` is 3"),
        ({"ridge": -1.0}, "`ridge` is -1.0"),
        ({"ridge": "none"}, "`ridge` is 'none'"),
    ],
)
def test_bad_input_is_refused_with_a_reason(change, message):
    given = {"c": sampled(14), "outputs": np.zeros((14, EXAMPLES, 2))} | change
    with pytest.raises(ValueError, match=message):
        fit(given.pop("c"), given.pop("outputs"), **given)


def test_numbers_of_tasks_must_agree():
    with pytest.raises(ValueError, match="1 `outputs`, 2 `targets`"):
        fit_outputs(CORNERS, [logits(CORNERS)], [LABELS] * 2, [mj.metrics.accuracy])


def test_another_number_of_coefficients_is_refused():
    surrogate = fit(CORNERS, logits(CORNERS))
    with pytest.raises(ValueError, match="fitted to 3 coefficients"):
        surrogate(np.zeros(2))


def test_a_missing_score_says_nothing_of_other_merges_and_tasks():
    c = sampled(24)
    outputs = [logits(c, seed) for seed in (1, 5)]
    labels = [LABELS, np.random.default_rng(6).integers(CLASSES, size=EXAMPLES)]
    scores = np.stack([accuracies(o, y) for o, y in zip(outputs, labels, strict=True)], 1)
    metrics = [mj.metrics.accuracy] * 2
    whole = fit_outputs(c, outputs, labels, metrics, scores=scores)
    for missing in (np.nan, np.inf):
        some = scores.copy()
        some[9, 0] = missing
        found = fit_outputs(c, outputs, labels, metrics, scores=some)
        np.testing.assert_array_equal(found.ridge, whole.ridge)
        np.testing.assert_allclose(found.r2[1], whole.r2[1])
        np.testing.assert_allclose(found.loo_r2, whole.loo_r2, atol=0.05)
        np.testing.assert_allclose(found.noise, whole.noise, rtol=0.3)
        np.testing.assert_allclose(found(c), whole(c), atol=1e-6)
    some[:, 0] = np.nan
    never = fit_outputs(c, outputs, labels, metrics, scores=some)
    assert np.isnan([never.r2[0], never.loo_r2[0], never.noise[0]]).all()
    assert np.isfinite([never.r2[1], never.loo_r2[1], never.noise[1]]).all()


def test_logits_that_are_masked_in_every_merge_stay_masked():
    c = sampled(14)
    outputs = logits(c)
    masked = np.concatenate([outputs, np.full((14, EXAMPLES, 1), -np.inf)], axis=-1)
    points = np.random.default_rng(3).random((8, N)) * 0.6
    for metric in (mj.metrics.accuracy, mj.metrics.cross_entropy):
        found, plain = (fit(c, o, metric=metric) for o in (masked, outputs))
        np.testing.assert_allclose(found(points), plain(points), rtol=1e-5)


def test_far_from_the_base_single_precision_is_enough():
    """A series without end of products of 16 to 40 has lost all digits in float32."""
    c = 4 * sampled(9)
    outputs = logits(c)
    found = fit(c, outputs)
    np.testing.assert_allclose(np.ravel(found(c)), accuracies(outputs), atol=0.15)
    assert np.isfinite(found.std(c)).all()


def test_few_merges_mix_nothing_of_a_quadratic_in():
    """Four errors say little of which of two predictions is better."""
    for left_out, mixed in ((4, False), (5, True)):
        c = sampled(N + 1 + left_out)
        scores = 1 - np.sum((c - 0.3) ** 2, axis=1, keepdims=True)
        scalar = fit_quadratic(c, scores, ridge="auto")
        surrogate = fit(c, logits(c), scores=scores, scalar=scalar)
        assert (surrogate.blend[0] > 0) == mixed
