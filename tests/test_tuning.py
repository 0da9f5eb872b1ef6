"""Tuners, against NumPy written from the papers and against direct search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax._tuning import adamerging, frank_wolfe

NAMES = ("a", "b", "c")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 24, 4)).astype(np.float32)
VECTORS = RNG.normal(size=(3, 4, 5)).astype(np.float32)
BASE = 0.1 * RNG.normal(size=(4, 5)).astype(np.float32)
# Each expert is right on its own task.
TARGETS = np.argmax(np.einsum("tni,tio->tno", X, BASE + VECTORS), axis=-1)


def predict(params, x):
    return x @ params


def evaluator(num_tasks=2, **options):
    tv = mj.TaskVectors(jnp.asarray(BASE), jnp.asarray(VECTORS), NAMES)
    tasks = [mj.Task(NAMES[i], predict, X[i], TARGETS[i]) for i in range(num_tasks)]
    return mj.Evaluator(tv, tasks, **options)


def entropy(c, num_tasks=2):
    """The mean entropy of all predictions, and its gradient, by hand in float64."""
    params = BASE + np.tensordot(c, VECTORS, 1)
    value, gradient = 0.0, np.zeros(3)
    for x in X[:num_tasks].astype(float):
        z = x @ params
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        log_p = np.log(p)
        value -= np.sum(p * log_p) / len(x)
        # dH/dz_k = -p_k (log p_k + H)
        h = -np.sum(p * log_p, axis=1, keepdims=True)
        dz = -p * (log_p + h) / len(x)
        gradient += np.einsum("no,ni,kio->k", dz, x, VECTORS)
    return value, gradient


def likelihood(c, num_tasks=2):
    """The mean cross-entropy with the labels, and its gradient, by hand in float64."""
    params = BASE + np.tensordot(c, VECTORS, 1)
    value, gradient = 0.0, np.zeros(3)
    for x, y in zip(X[:num_tasks].astype(float), TARGETS, strict=False):
        z = x @ params
        z -= z.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        value -= log_p[np.arange(len(y)), y].mean()
        dz = (np.exp(log_p) - np.eye(5)[y]) / len(x)
        gradient += np.einsum("no,ni,kio->k", dz, x, VECTORS)
    return value, gradient


def test_adamerging_makes_the_papers_steps(key):
    """All examples in a batch, so that nothing is random: Adam in NumPy."""
    solution = adamerging(
        evaluator(), key=key, num_steps=30, learning_rate=0.02, batch_size=24, start=0.3
    )
    c, m, v, losses = np.full(3, 0.3), np.zeros(3), np.zeros(3), []
    for t in range(1, 31):
        value, g = entropy(c)
        losses.append(value)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        c = np.clip(c - step, 0, 1)
    np.testing.assert_allclose(solution.stats["losses"], losses, rtol=1e-4)
    np.testing.assert_allclose(solution.pick(), c, atol=2e-4)
    assert losses[-1] < 0.9 * losses[0]


def test_the_solution_says_what_was_measured(key):
    scorer = evaluator()
    solution = adamerging(scorer, key=key, num_steps=5, start=[0.3, 0.2, 0.1])
    front = solution.verified
    assert front is not None
    assert solution.surrogate is None
    assert (len(front), len(solution.front)) == (1, 1)
    np.testing.assert_allclose(front.scores, scorer(front.coefficients))
    # The base, three experts, the start and the end.
    want = np.concatenate([np.zeros((1, 3)), np.eye(3), [[0.3, 0.2, 0.1]]])
    np.testing.assert_allclose(solution.samples.coefficients[:5], want, rtol=1e-6)
    np.testing.assert_array_equal(solution.samples.coefficients[5:], front.coefficients)
    assert solution.num_evaluations == 6
    assert solution.result == mj.RESULTS.successful
    np.testing.assert_allclose(solution.normalized(solution.samples.scores)[1, 0], 1)
    assert solution.stats["losses"].shape == (5,)
    assert solution.stats["num_skipped"] == 0
    assert "1 verified" in str(solution)
    assert float(solution.hypervolume()) >= 0
    again = adamerging(scorer, key=key, num_steps=5, start=[0.3, 0.2, 0.1])
    np.testing.assert_array_equal(again.pick(), solution.pick())
    other = adamerging(scorer, key=jax.random.key(1), num_steps=5, start=[0.3, 0.2, 0.1])
    assert not np.array_equal(other.stats["losses"], solution.stats["losses"])


def test_coefficients_stay_in_their_box(key):
    far = {"num_steps": 20, "learning_rate": 0.5, "batch_size": 24}
    inside = adamerging(evaluator(), key=key, bounds=(0.1, 0.4), **far).pick()
    assert np.all((inside >= 0.1) & (inside <= 0.4))
    assert np.any((inside == 0.1) | (inside == np.float32(0.4)))
    wide = adamerging(evaluator(), key=key, bounds=(-9, 9), **far).pick()
    assert np.max(np.abs(wide)) > 1


def test_labels_find_what_direct_search_finds(key):
    """Supervised, over the whole box, against SciPy on the same loss."""
    from scipy.optimize import minimize

    start, bounds = np.full(3, 0.3), [(0, 1)] * 3
    best = minimize(likelihood, start, jac=True, method="L-BFGS-B", bounds=bounds)
    solution = adamerging(
        evaluator(),
        key=key,
        loss=mj.metrics.cross_entropy,
        num_steps=300,
        learning_rate=0.05,
        batch_size=24,
    )
    np.testing.assert_allclose(solution.pick(), best.x, atol=5e-3)
    np.testing.assert_allclose(solution.stats["losses"][-1], best.fun, rtol=1e-3)


def test_losses_of_ones_own(key):
    """A function of outputs and targets is minimised, a metric to maximise is raised."""
    score = mj.metrics.Metric(lambda z, y: -jnp.mean((z - 1) ** 2))
    same = {"key": key, "num_steps": 3, "batch_size": 24}
    down = adamerging(evaluator(), loss=lambda z, y: (z - 1) ** 2, **same)
    up = adamerging(evaluator(), loss=score, **same)
    np.testing.assert_allclose(up.pick(), down.pick(), rtol=1e-5)
    np.testing.assert_allclose(up.stats["losses"], down.stats["losses"], rtol=1e-5)


def test_single_logits_and_classes_that_are_ruled_out(key):
    def one(params, x):
        return (x @ params)[:, :1]

    def ruled_out(params, x):
        return jnp.where(jnp.arange(5) < 4, x @ params, -jnp.inf)

    tv = mj.TaskVectors(jnp.asarray(BASE), jnp.asarray(VECTORS), NAMES)
    tasks = [mj.Task("one", one, X[0], TARGETS[0] > 2)]
    tasks += [mj.Task("ruled out", ruled_out, X[1], TARGETS[1] % 4)]
    solution = adamerging(
        mj.Evaluator(tv, tasks), key=key, num_steps=2, batch_size=24, start=0.3
    )
    params = BASE + 0.3 * VECTORS.sum(0)
    p = 1 / (1 + np.exp(-(X[0] @ params)[:, 0]))
    want = -np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))
    q = np.exp((X[1] @ params)[:, :4])
    q /= q.sum(1, keepdims=True)
    want -= np.mean(np.sum(q * np.log(q), axis=1))
    np.testing.assert_allclose(solution.stats["losses"][0], want, rtol=1e-5)
    assert solution.stats["num_skipped"] == 0


def test_steps_without_a_finite_gradient_are_not_made(key):
    def loss(z, y):
        # NaN once the merge has moved far enough.
        return jnp.where(jnp.mean(z**2) > 1.5, jnp.nan, -jnp.mean(z**2))

    solution = adamerging(
        evaluator(), key=key, loss=loss, num_steps=40, learning_rate=0.02, batch_size=24
    )
    skipped = solution.stats["num_skipped"]
    assert 0 < skipped < 40
    assert np.isfinite(solution.pick()).all()
    assert np.isnan(solution.stats["losses"]).sum() == skipped
    with pytest.raises(ValueError, match="not finite in any of 2 steps, from coeff"):
        adamerging(evaluator(), key=key, loss=lambda z, y: z * jnp.nan, num_steps=2)


def test_frank_wolfe_makes_the_papers_steps(key):
    """By entropy one expert may win every step, so by labels too."""
    for loss, by_hand in (("entropy", entropy), (mj.metrics.cross_entropy, likelihood)):
        solution = frank_wolfe(evaluator(), key=key, num_steps=12, batch_size=24, loss=loss)
        c, losses = np.zeros(3), []
        for k in range(12):
            value, g = by_hand(c)
            losses.append(value)
            c = c + 2 / (k + 2) * (np.eye(3)[np.argmin(g)] - c)
        np.testing.assert_allclose(solution.stats["losses"], losses, rtol=1e-4)
        np.testing.assert_allclose(solution.pick(), c, atol=1e-6)
        np.testing.assert_allclose(np.sum(solution.pick()), 1, rtol=1e-6)
    assert np.sum(c > 0) > 1
    np.testing.assert_array_equal(solution.samples.coefficients[0], np.zeros(3))


def test_frank_wolfe_finds_the_best_mean_of_experts(key):
    """A convex loss over the simplex, against its exact minimum by projection."""
    target = BASE + np.tensordot([0.55, 0.45, 0.0], VECTORS, 1)
    tv = mj.TaskVectors(jnp.asarray(BASE), jnp.asarray(VECTORS), NAMES)
    metric = mj.metrics.mean_squared_error
    tasks = [
        mj.Task(n, predict, x, x @ target, metric) for n, x in zip("ab", X, strict=False)
    ]
    solution = frank_wolfe(
        mj.Evaluator(tv, tasks), key=key, loss=metric, num_steps=400, batch_size=24
    )
    np.testing.assert_allclose(solution.pick(), [0.55, 0.45, 0.0], atol=1e-2)


def test_rules_that_are_not_linear_can_be_tuned(key):
    """Any rule of `coefficients -> parameters`, here one with two blocks an expert."""
    tv = mj.TaskVectors(jnp.asarray(BASE), jnp.asarray(VECTORS), NAMES)

    def rule(c):
        merged = [mj.merge(tv, part) for part in c.reshape(2, 3)]
        return jnp.concatenate([merged[0][:2], merged[1][2:]])

    tasks = [mj.Task(NAMES[i], predict, X[i], TARGETS[i]) for i in range(2)]
    blocks = adamerging(
        mj.Evaluator(rule, tasks, num_coefficients=6),
        key=key,
        num_steps=30,
        learning_rate=0.02,
        batch_size=24,
    )
    whole = adamerging(
        evaluator(), key=key, num_steps=30, learning_rate=0.02, batch_size=24
    )
    assert blocks.pick().shape == (6,)
    np.testing.assert_allclose(
        blocks.stats["losses"][0], whole.stats["losses"][0], rtol=1e-6
    )
    assert blocks.stats["losses"][-1] < whole.stats["losses"][-1]


def test_what_tuners_refuse(key):
    scorer = evaluator()
    for tuner in (adamerging, frank_wolfe):
        with pytest.raises(ValueError, match=r"is a function; pass a `mapjax.Evaluator`"):
            tuner(lambda c: c, key=key)
        with pytest.raises(ValueError, match=r"`loss` is 'hinge'; use 'entropy'"):
            tuner(scorer, key=key, loss="hinge")
        with pytest.raises(ValueError, match="a metric without a derivative"):
            tuner(scorer, key=key, loss=mj.metrics.accuracy)
        with pytest.raises(ValueError, match="`key` is 0, but must be one typed key"):
            tuner(scorer, key=0)
        with pytest.raises(ValueError, match="`num_steps` is 0"):
            tuner(scorer, key=key, num_steps=0)
        with pytest.raises(ValueError, match="`batch_size` is 0"):
            tuner(scorer, key=key, batch_size=0)
    with pytest.raises(ValueError, match=r"`learning_rate` is -1\.0, but must be positive"):
        adamerging(scorer, key=key, learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"`start` has shape \(2,\)"):
        adamerging(scorer, key=key, start=[0.3, 0.3])
    with pytest.raises(ValueError, match="every lower bound must be below"):
        adamerging(scorer, key=key, bounds=(1, 0))
    with pytest.raises(ValueError, match="There is 1 task"):
        adamerging(evaluator(1), key=key, num_steps=1)


def test_one_compilation_serves_any_learning_rate(key):
    seen = []

    def counted(params, x):
        seen.append(1)
        return x @ params

    tv = mj.TaskVectors(jnp.asarray(BASE), jnp.asarray(VECTORS), NAMES)
    scorer = mj.Evaluator(
        tv, [mj.Task(NAMES[i], counted, X[i], TARGETS[i]) for i in range(2)]
    )
    adamerging(scorer, key=key, num_steps=2)
    first = len(seen)
    adamerging(scorer, key=key, num_steps=2, learning_rate=1e-2, start=0.1)
    assert len(seen) == first


def opposite_experts():
    """Two experts of ten layers each, of which the first is right."""
    base = {f"layer_{i}": jnp.zeros((4, 4)) for i in range(10)}
    experts = [jax.tree.map(lambda x, s=s: x + s * jnp.eye(4), base) for s in (1.0, -1.0)]
    return mj.TaskVectors.from_params(base, experts)


def score_opposites(vectors, **options):
    tasks = [
        mj.Task(name, lambda p, x: x @ sum(p.values()), jnp.eye(4), jnp.arange(4))
        for name in ("a", "b")
    ]
    return mj.Evaluator(vectors, tasks, **options)


def test_frank_wolfe_chooses_an_expert_for_each_group(key):
    found = frank_wolfe(
        score_opposites(mj.group(opposite_experts(), "tensor")),
        key=key,
        loss=mj.metrics.cross_entropy,
    )
    c = np.asarray(found.front.coefficients).reshape(2, 10)
    np.testing.assert_allclose(c, np.repeat([[1.0], [0.0]], 10, axis=1), atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_frank_wolfe_of_a_rule_of_proportions_begins_where_they_matter(scaled, key):
    tv = opposite_experts()
    swapped = mj.TaskVectors.from_params(
        tv.base, [jax.tree.map(lambda v, i=i: v[i], tv.vectors) for i in (1, 0)]
    )
    rule = mj.rules.weighted_average(swapped)
    found = frank_wolfe(
        score_opposites(rule.scaled() if scaled else rule),
        key=key,
        num_steps=1,
        loss=mj.metrics.cross_entropy,
    )
    np.testing.assert_allclose(found.front.coefficients, [[0.0, 1.0]], atol=1e-6)


def test_adamerging_of_a_scaled_rule_leaves_the_base(key):
    tv = mj.TaskVectors(jnp.asarray(BASE), jnp.asarray(VECTORS), NAMES)
    scorer = mj.Evaluator(mj.rules.weighted_average(tv).scaled(), evaluator().tasks)
    found = adamerging(
        scorer,
        key=key,
        num_steps=30,
        learning_rate=0.02,
        start=0.0,
        loss=mj.metrics.cross_entropy,
        batch_size=24,
    )
    assert found.stats["losses"][-1] < 0.9 * found.stats["losses"][0]
    right, also_right, neither = found.pick()  # there are two tasks
    assert min(right, also_right) > max(neither, 0.2)


def test_one_task_is_refused_before_any_step(key):
    for tuner in (adamerging, frank_wolfe):
        with pytest.raises(ValueError, match="There is 1 task"):
            tuner(evaluator(1), key=key, loss=lambda y, t: 1 / 0)


def test_entropy_is_of_what_the_head_makes_of_the_outputs():
    head, embeddings = 5 * jnp.eye(2)[::-1], 3 * jnp.eye(2)
    tv = mj.TaskVectors.from_params(jnp.zeros(2), list(jnp.eye(2)))
    found = []
    for after in (False, True):

        def predict(params, x, after=after):
            y = x @ jnp.diag(params)
            return y if after else y @ head

        accuracy = mj.metrics.accuracy
        metric = accuracy.after(lambda y: y @ head) if after else accuracy
        tasks = [mj.Task(n, predict, embeddings, jnp.arange(2), metric) for n in "ab"]
        key = jax.random.key(0)
        found.append(mj.adamerging(mj.Evaluator(tv, tasks), key=key, num_steps=5))
    np.testing.assert_allclose(*(s.stats["losses"] for s in found), rtol=1e-6)


@pytest.mark.parametrize(
    ("predict", "metric", "what"),
    [
        (lambda p, x: {"y": x * p}, lambda y, t: jnp.mean(y["y"]), "a dict"),
        (lambda p, x: x * p, mj.metrics.mean_squared_error, "numbers"),
    ],
)
def test_entropy_is_of_classes(predict, metric, what):
    tv = mj.TaskVectors.from_params(jnp.zeros(2), list(jnp.eye(2)))
    tasks = [mj.Task(n, predict, jnp.eye(2), jnp.eye(2), metric) for n in "ab"]
    with pytest.raises(ValueError, match=f"task 'a' predicts {what}.*pass `loss=`"):
        mj.adamerging(mj.Evaluator(tv, tasks), key=jax.random.key(0), num_steps=1)
