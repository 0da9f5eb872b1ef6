"""Coefficients per task and block, against brute force."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj
from mapjax import design
from mapjax._domain import Domain
from mapjax._group import group
from mapjax.surrogate import fit_outputs, fit_quadratic, hessian_rank, num_unknowns

KEY = jax.random.key(0)
SIZE, CLASSES, EXAMPLES = 5, 4, 120


def tree(rng):
    return {
        f"block_{i}": {"w": rng.normal(size=(SIZE, CLASSES)).astype("f")} for i in range(2)
    } | {"head": rng.normal(size=CLASSES).astype("f")}


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    base, *experts = (tree(rng) for _ in range(4))
    return mj.TaskVectors.from_params(base, dict(zip("abc", experts, strict=True)))


def by_hand(tv, column):
    """Merge with coefficients `[experts]` that depend on the key path."""
    leaves = jax.tree_util.tree_leaves_with_path(tv.base)
    vectors = jax.tree.leaves(tv.vectors)
    return [
        np.asarray(leaf, np.float64)
        + np.tensordot(column(jax.tree_util.keystr(path)), np.asarray(v, np.float64), 1)
        for (path, leaf), v in zip(leaves, vectors, strict=True)
    ]


@pytest.mark.parametrize(
    ("by", "names", "place"),
    [
        ("depth", ("layer0", "layer1", "rest"), lambda p: 2 if "head" in p else int(p[8])),
        ("tensor", ("['block_0']['w']", "['block_1']['w']", "['head']"), None),
        ("head", ("head", "rest"), lambda p: 0 if "head" in p else 1),
        ([r"block_1\b", "block"], (r"block_1\b", "block", "rest"), None),
        ({"top": ["head", "_1"], "low": "_0"}, ("top", "low"), lambda p: int("_0" in p)),
        (lambda p: "w" if "w" in p else None, ("w", "rest"), lambda p: int("head" in p)),
    ],
)
def test_each_group_has_its_own_coefficients(vectors, by, names, place):
    tv = group(vectors, by)
    assert tuple(g.name for g in tv.groups) == names
    assert tv.num_tasks == 3
    assert tv.num_coefficients == 3 * len(names) == len(tv.coefficient_names)
    assert tv.coefficient_names[len(names)] == f"b/{names[0]}"
    held = {path: i for i, g in enumerate(tv.groups) for path in g.paths}
    assert len(held) == 3
    if place is not None:
        assert held == {path: place(path) for path in held}
    c = np.random.default_rng(1).random((3, len(names))).astype("f")
    want = by_hand(tv, lambda path: c[:, held[path]])
    for given in (c, c.reshape(-1)):
        found = jax.tree.leaves(mj.merge(tv, given))
        for x, y in zip(found, want, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    # One number per expert counts for all of its groups.
    for x, y in zip(
        jax.tree.leaves(mj.merge(tv, c[:, 0])),
        jax.tree.leaves(mj.merge(vectors, c[:, 0])),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


def test_groups_are_replaced_and_leaves_left_alone_have_none(vectors):
    again = group(group(vectors, "tensor"), "head")
    assert len(again.groups) == 2
    base = {"w": jnp.zeros(2), "step": jnp.array(3)}
    tv = mj.TaskVectors.from_params(base, [{"w": jnp.ones(2), "step": jnp.array(4)}])
    assert group(tv, "tensor").groups == (("['w']", ("['w']",)),)
    assert mj.merge(group(tv, "tensor"), [[0.5]])["step"] == 3


@pytest.mark.parametrize(
    ("by", "options", "message"),
    [
        ("attention", {}, r"`by` has no tensor in \['attention'\].*\['block_0'\]"),
        (["block", "block_1"], {}, r"no tensor in \['block_1'\].* taken before"),
        ("block", {"rest": None}, r"`by` leaves \['head'\] in no group"),
        ({"rest": "block"}, {}, r"`by` has a group 'rest' already, but \['head'\]"),
        ("(", {}, "is no regular expression"),
        ({"a": 3}, {}, "has 3 for group 'a', which is no regular expression"),
        (["block", "block"], {}, "holds a pattern twice"),
        ([], {}, r"`by` is .*; pass 'depth', 'tensor'"),
        (7, {}, "`by` is 7; pass 'depth'"),
        (len, {}, r"`by` returned 16 for \['block_0'\]"),
    ],
)
def test_groups_that_make_no_sense_are_refused(vectors, by, options, message):
    with pytest.raises(ValueError, match=message):
        group(vectors, by, **options)


def test_depth_needs_layers():
    tv = mj.TaskVectors.from_params({"w": jnp.zeros(2)}, [{"w": jnp.ones(2)}])
    with pytest.raises(ValueError, match=r"'depth', but no key path .*\['w'\]"):
        group(tv, "depth")


def test_coefficients_of_a_wrong_shape_are_refused(vectors):
    tv = group(vectors, "depth")
    with pytest.raises(ValueError, match=r"shape \(2,\).*shape \(3,\), or \(3, 3\) for"):
        mj.merge(tv, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"shape \(3, 3\), .*shape \(3,\)\. For"):
        mj.merge(vectors, np.ones((3, 3)))


def toy():
    """Two experts, each right in one block and wrong in the other, and their tasks."""
    rng = np.random.default_rng(3)
    truth, noise = tree(rng), tree(rng)
    for each in (truth, noise):
        each["head"] = np.zeros(CLASSES, "f")
    experts = {
        name: {key: (truth if key == right else noise)[key] for key in truth}
        for name, right in (("a", "block_0"), ("b", "block_1"))
    }
    tv = mj.TaskVectors.from_params(jax.tree.map(np.zeros_like, truth), experts)

    def predict(params, x):
        blocks = (jnp.tanh(x[:, i] @ params[f"block_{i}"]["w"]) for i in range(2))
        return sum(blocks) + params["head"]

    tasks = []
    for name, weight in (("a", (1.0, 0.5)), ("b", (0.5, 1.0))):
        x = rng.normal(size=(EXAMPLES, 2, SIZE)).astype("f")
        x *= np.array(weight, "f")[:, None]
        y = np.argmax(np.asarray(predict(truth, x)), axis=1)
        tasks.append(mj.Task(name, predict, x, y, mj.metrics.accuracy))
    return tv, tasks


@pytest.fixture(scope="module")
def problem():
    return toy()


def test_an_evaluator_of_groups_is_brute_force(problem):
    tv, tasks = problem
    grouped = group(tv, "depth")
    evaluator = mj.Evaluator(grouped, tasks)
    names = ("a/layer0", "a/layer1", "a/rest", "b/layer0", "b/layer1", "b/rest")
    assert evaluator.coefficient_names == names
    assert evaluator.expert_names == ("a", "b")
    c = np.random.default_rng(0).random((3, 6)).astype("f")
    scores = np.asarray(evaluator(c))
    for row, found in zip(c, scores, strict=True):
        column = {"0": row[[0, 3]], "1": row[[1, 4]], "d": row[[2, 5]]}
        merged = by_hand(tv, lambda p, column=column: column[p[8] if "_" in p else "d"])
        params = jax.tree.unflatten(jax.tree.structure(tv.base), merged)
        for task, score in zip(tasks, found, strict=True):
            x = np.asarray(task.inputs, np.float64)
            y = sum(np.tanh(x[:, i] @ params[f"block_{i}"]["w"]) for i in range(2))
            right = np.argmax(y + params["head"], axis=1) == np.asarray(task.targets)
            np.testing.assert_allclose(score, right.mean(), atol=1e-6)
    with pytest.raises(ValueError, match=r"\[candidates, 6\].*column per expert and group"):
        evaluator(np.ones((2, 2)))
    with pytest.raises(ValueError, match="2 experts and 3 groups"):
        mj.Evaluator(grouped, tasks, num_coefficients=2)
    # The same arrays and names, but other tensors in the groups.
    swapped = group(tv, {"layer0": "_1", "layer1": "_0", "rest": "head"})
    other = mj.Evaluator(swapped, tasks)
    assert other.coefficient_names == names
    assert other.fingerprint()["parameters"] != evaluator.fingerprint()["parameters"]
    assert other.fingerprint()["data"] == evaluator.fingerprint()["data"]


@pytest.mark.parametrize("name", ["sobol", "d_optimal", "multiscale", "mixture"])
def test_designs_begin_with_the_base_and_whole_experts(name):
    points = np.asarray(design.make_design(name, 16, 6, num_experts=2, key=KEY))
    start = [[0] * 6, [1] * 3 + [0] * 3, [0] * 3 + [1] * 3, [0.5] * 6]
    np.testing.assert_array_equal(points[:4], start)
    np.testing.assert_array_equal(design.corners(6, 2), start[:3])
    assert points.shape == (16, 6)
    assert len(np.unique(points, axis=0)) == 16


def test_experts_share_coefficients_evenly():
    with pytest.raises(ValueError, match=r"`num_experts` is 4.*divide.*6"):
        design.corners(6, 4)
    with pytest.raises(ValueError, match=r"`num_experts` is 0"):
        design.make_design("sobol", 9, 6, num_experts=0, key=KEY)
    with pytest.raises(ValueError, match=r"`num_experts` is -2"):
        design.multiscale(9, 6, num_experts=-2, key=KEY)
    outputs, labels = [np.ones((6, 3, 2), np.float32)], [np.arange(3) % 2]
    with pytest.raises(ValueError, match=r"`num_experts` is 3.*divides.*4"):
        fit_outputs(np.ones((6, 4)), outputs, labels, [mj.metrics.accuracy], num_experts=3)


def test_outputs_of_whole_experts_are_predicted_as_without_groups():
    rng = np.random.default_rng(0)
    c = np.concatenate([np.eye(4, 3, k=-1), rng.random((8, 3))]).astype("f")
    outputs = np.tanh(c @ rng.normal(size=(3, 60))).reshape(12, 20, 3)
    given = [outputs], [rng.integers(0, 3, 20)], [mj.metrics.cross_entropy]
    plain = fit_outputs(c, *given)
    grouped = fit_outputs(np.repeat(c, 4, axis=1), *given, num_experts=3)
    at = rng.random((5, 3)).astype("f")
    wide = np.repeat(at, 4, axis=1)
    np.testing.assert_allclose(grouped(wide), plain(at), rtol=1e-4)
    np.testing.assert_allclose(grouped.std(wide), plain.std(at), rtol=1e-3)
    np.testing.assert_allclose(grouped.left_out, plain.left_out, rtol=1e-4)
    assert np.isnan(np.asarray(grouped.left_out)[:4]).all()


def reached(scores):
    """Measure what was evaluated, from the worthless to the perfect score."""
    return float(mj.pareto.hypervolume(-scores, np.zeros(2)))


ASKED: dict[str, Any] = dict(num_generations=20, num_points=20, progress=False, key=KEY)


@pytest.mark.slow
def test_blocks_beat_tasks(problem):
    tv, tasks = problem
    blocks = group(tv, "block_0")
    solution = mj.map_front(mj.Evaluator(blocks, tasks), budget=16, **ASKED)
    # More merges of whole experts than anyone would evaluate.
    axis = np.linspace(0, 1, 21)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    best = reached(mj.Evaluator(tv, tasks)(grid))
    # The right blocks together are right on both tasks.
    assert reached(solution.samples.scores) > 1.3 * best
    assert len(solution.samples) <= 16
    assert solution.coefficient_names == ("a/block_0", "a/rest", "b/block_0", "b/rest")
    assert solution.expert_names == ("a", "b")
    rows = solution.references()
    assert (rows["base"], rows["a"], rows["b"]) == (0, 1, 2)
    np.testing.assert_array_equal(solution.samples.coefficients[1], [1, 1, 0, 0])
    assert "expert b" in str(solution)
    own = np.diag(np.asarray(solution.samples.scores)[1:3])
    np.testing.assert_allclose(solution.normalized(own), 1)
    assert mj.merge(blocks, solution.pick([1, 1]))["head"].shape == (CLASSES,)


@pytest.mark.slow
def test_groups_go_together_until_samples_can_tell_them_apart(problem):
    tv, tasks = problem
    evaluator = mj.Evaluator(group(tv, "block_0"), tasks)
    solution = mj.map_front(evaluator, budget=4, verify=3, **ASKED)
    for found in (solution.samples, solution.front):
        c = np.asarray(found.coefficients).reshape(-1, 2, 2)
        np.testing.assert_array_equal(c[..., 0], c[..., 1])
    assert len(solution.samples) == 7
    # Tolerance stops no search that has not looked at the groups.
    assert len(mj.map_front(evaluator, budget=5, tolerance=10.0, **ASKED).samples) == 5
    # Such merges are those without groups, and their scores too.
    whole = mj.Evaluator(tv, tasks)(c[..., 0])
    np.testing.assert_allclose(evaluator(solution.front.coefficients), whole, atol=1e-6)


def test_a_search_of_what_groups_share():
    lower, upper = jnp.array([0.2, 0.2, 0, 0]), jnp.array([1.0, 1.0, 0.5, 0.5])
    whole = Domain(lower, upper, 2).whole_experts()
    np.testing.assert_allclose(whole.box, [[0.2, 0], [1, 0.5]])
    np.testing.assert_allclose(whole.place(jnp.array([0.3, 0.4])), [0.3, 0.3, 0.4, 0.4])
    own_bounds = Domain(lower, upper.at[0].set(0.9), 2)
    assert own_bounds.whole_experts() is own_bounds
    assert Domain(lower[1:3], upper[1:3], 2).whole_experts().repeats == 1
    mixtures = Domain(jnp.zeros(4), jnp.ones(4), 2, mixtures=True).whole_experts()
    np.testing.assert_allclose(
        mixtures.place(jnp.array([0.2, 0.6])), [0.25, 0.25, 0.75, 0.75]
    )
    starts = mixtures.start(5, KEY)
    np.testing.assert_allclose(starts.sum(axis=1), 1, rtol=1e-6)
    assert starts.shape == (5, 2)


@pytest.mark.slow
def test_groups_with_bounds_of_their_own_are_searched_apart(problem):
    tv, tasks = problem
    evaluator = mj.Evaluator(group(tv, "block_0"), tasks)
    bounds = np.zeros(4), np.array([0.1, 1, 0.1, 1])
    front = mj.map_front(evaluator, budget=4, bounds=bounds, **ASKED).front
    c = np.asarray(front.coefficients)
    assert (c <= bounds[1] + 1e-6).all()
    assert (c[:, ::2] != c[:, 1::2]).any()
    stopped = mj.map_front(evaluator, budget=8, bounds=bounds, tolerance=10.0, **ASKED)
    assert len(stopped.samples) == 3


@pytest.mark.slow
def test_the_posterior_chooses_blocks_too(problem):
    tv, tasks = problem
    evaluator = mj.Evaluator(group(tv, "block_0"), tasks)
    # The budget of the test above, for which all but the choice is compiled.
    solution = mj.bayesian_front(evaluator, budget=12, batch_size=5, **ASKED)
    assert solution.references() == {"base": 0, "a": 1, "b": 2}
    np.testing.assert_array_equal(solution.samples.coefficients[2], [0, 0, 1, 1])
    # After the experts come blocks of them.
    later = np.asarray(solution.samples.coefficients)[3:].reshape(-1, 2, 2)
    assert (later[..., 0] != later[..., 1]).any()


@pytest.mark.slow
def test_quadratics_have_as_many_unknowns_as_samples_may_tell(problem):
    assert hessian_rank(4, 2, 8) is None
    assert hessian_rank(4, 2, 7) == 2
    assert hessian_rank(4, 4, 7) is None  # without groups
    tv, tasks = problem
    evaluator = mj.Evaluator(group(tv, "block_0"), tasks)
    options: dict[str, Any] = ASKED | dict(
        surrogate="quadratic", design="sobol", rounds=1, budget=7
    )
    # 9 unknowns for what each does alone, and 3 for what whole experts do.
    with pytest.warns(UserWarning, match="5 more evaluations"):
        solution = mj.map_front(evaluator, **options)
    assert solution.references() == {"base": 0, "a": 1, "b": 2, "uniform": 3}
    np.testing.assert_array_equal(solution.samples.coefficients[3], [0.5] * 4)
    assert len(solution.front) > 0
    assert solution.surrogate is not None
    assert solution.surrogate.num_experts == 2
    assert (solution.stats["rank"] == 7).all()


def test_a_budget_is_of_experts_and_not_of_coefficients(problem):
    tv, tasks = problem
    evaluator = mj.Evaluator(group(tv, "depth"), tasks)
    with pytest.raises(ValueError, match="the base and 2 experts alone take 3"):
        mj.map_front(evaluator, budget=2, key=KEY)


def test_a_hessian_of_low_rank_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    c, m, each = rng.random((40, 6)), 3, 2
    sums = c.reshape(40, m, each).sum(axis=2)
    i, j = np.triu_indices(m)
    features = np.concatenate([np.ones((40, 1)), c, c**2, sums[:, i] * sums[:, j]], axis=1)
    scores = features @ rng.normal(size=(features.shape[1], 2))
    noisy = scores + rng.normal(size=scores.shape)
    fitted = fit_quadratic(c, noisy, num_experts=m)
    beta = np.linalg.lstsq(features, noisy, rcond=None)[0]
    assert features.shape[1] == fitted.rank[0] == num_unknowns(6, m)
    np.testing.assert_allclose(fitted(c), features @ beta, atol=2e-3)
    # The Hessian: twice the squares on the diagonal, and the same for all of two experts.
    products = np.zeros((2, m, m))
    products[:, i, j] = beta[13:].T
    shared = products + products.transpose(0, 2, 1)
    want = np.kron(shared, np.ones((each, each)))
    want += np.stack([np.diag(2 * b) for b in beta[7:13].T])
    np.testing.assert_allclose(fitted.hessian, want, rtol=2e-2, atol=2e-2)


def test_experts_must_share_the_columns_of_a_quadratic():
    c = np.random.default_rng(0).random((9, 4))
    with pytest.raises(ValueError, match=r"`num_experts` is 3.*coefficients, 4"):
        fit_quadratic(c, c[:, :2], num_experts=3)


def test_a_tree_merges_whole_experts(problem):
    tv, tasks = problem
    evaluator = mj.Evaluator(group(tv, "depth"), tasks)
    with pytest.raises(ValueError, match="2 experts have 6 coefficients in groups"):
        mj.nested_front(evaluator, key=KEY)
