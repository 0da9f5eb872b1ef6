"""Merge rules, against the papers' formulas in NumPy, and in the drivers."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_rules as reference

import mapjax as mj
from mapjax import rules, transforms
from mapjax._low_rank import LowRank

# Two dense layers of one shape, one that is tall, a convolution, a bias.
SHAPES = {
    "layer_0": {"kernel": (6, 4), "bias": (4,)},
    "layer_1": {"kernel": (6, 4)},
    "layer_2": {"kernel": (13, 4)},
    "layer_3": {"kernel": (2, 2, 3, 5)},
}
TWO = ("slerp", "nuslerp", "nuslerp_by_output")
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}


def draw(num_tasks, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)

    def one(*more):
        return jax.tree.map(
            lambda s: jnp.asarray(rng.normal(size=(*more, *s)), dtype),
            SHAPES,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    names = tuple(f"task{i}" for i in range(num_tasks))
    return mj.TaskVectors(one(), one(num_tasks), names)


def leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): np.asarray(x, np.float64) for p, x in found}


def fishers_of(tv):
    rng = np.random.default_rng(1)
    drawn = [
        jax.tree.map(lambda x: np.float32(rng.exponential(size=x.shape)), tv.base)
        for _ in tv.names
    ]
    for f in drawn:
        f["layer_0"]["bias"][1] = 0  # nobody knows anything about this one
        f["layer_1"]["kernel"] *= 1e-30  # and next to nothing about these
    drawn[0]["layer_0"]["bias"][2] = 0
    return drawn


def inputs_of(tv, size=6):
    rng = np.random.default_rng(2)
    return [rng.normal(size=(20, size)).astype(np.float32) for _ in tv.names]


def grams_of(tv, dead=None):
    found = []
    for x in inputs_of(tv):
        x = x.copy()
        if dead is not None:
            x[:, dead] = 0
        gram = transforms.Gram(jnp.asarray(x.T @ x / len(x)), jnp.asarray(20.0), (0,))
        found.append({"['layer_0']['kernel']": gram, "['layer_1']['kernel']": gram})
    return found


RULES = {
    "weighted_average": rules.weighted_average,
    "layer_swap": rules.layer_swap,
    "slerp": rules.slerp,
    "nuslerp": rules.nuslerp,
    "nuslerp_by_output": lambda tv: rules.nuslerp(tv, input_axes="leading"),
    "multi_slerp": rules.multi_slerp,
    "fisher_mean": lambda tv: rules.fisher_mean(tv, fishers_of(tv)),
    "regmean_mean": lambda tv: rules.regmean_mean(tv, grams_of(tv)),
    "regmean_mean_dead": lambda tv: rules.regmean_mean(tv, grams_of(tv, dead=2)),
    "wudi_mean": lambda tv: rules.wudi_mean(tv, ridge=0.1),
}


def make(rule, dtype="float32", num_tasks=3):
    return RULES[rule](draw(2 if rule in TWO else num_tasks, dtype))


@eqx.filter_jit
def in_batch(made, rows):
    return jax.vmap(made)(rows)


def merges(made, rows):
    """Merge up to eight rows, always in one batch of eight: one compilation per rule."""
    rows = np.asarray(rows, np.float32)
    batch = in_batch(made, np.concatenate([rows, rows[:1].repeat(8 - len(rows), 0)]))
    return [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(len(rows))]


def expected(rule, made, c):
    """What NumPy makes of the same experts."""
    tv = made.task_vectors
    base, vectors = leaves(tv.base), leaves(tv.vectors)
    fishers = [leaves(f) for f in fishers_of(tv)]
    grams = grams_of(tv)
    merged = {}
    for path, v in vectors.items():
        experts = base[path] + v
        if rule == "layer_swap":
            merged[path] = reference.layer_swap(experts, c, int(path[8]), 4)
        elif rule == "slerp":
            merged[path] = reference.slerp(experts, c)
        elif rule.startswith("nuslerp"):
            by_output = rule.endswith("output") and v.ndim > 2
            merged[path] = base[path] + reference.nuslerp(v, c, by_output)
        elif rule == "multi_slerp":
            merged[path] = reference.karcher_mean(experts, c)
        elif rule == "fisher_mean":
            merged[path] = reference.fisher_mean(experts, c, [f[path] for f in fishers])
        elif rule == "regmean_mean" and path in grams[0]:
            matrices = [np.asarray(g[path].matrix, float) for g in grams]
            merged[path] = reference.regmean_mean(experts, c, matrices, 0.9)
        elif rule == "wudi_mean" and v.ndim > 2:
            merged[path] = base[path] + reference.wudi_mean(v, c, 0.1)
        else:
            merged[path] = reference.average(experts, c)
    return merged


def assert_close(got, want, tolerance):
    got = leaves(got)
    assert set(got) == set(want)
    for path in want:
        size = np.abs(want[path]).max()
        np.testing.assert_allclose(
            got[path] / size, want[path] / size, atol=tolerance, err_msg=path
        )


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [(rule, "float32") for rule in RULES if rule != "regmean_mean_dead"]
    + [(rule, "bfloat16") for rule in ("layer_swap", "slerp", "fisher_mean", "wudi_mean")],
)
def test_merges_are_those_of_the_papers(rule, dtype):
    made = make(rule, dtype)
    c = np.array([0.7, 0.4, 0.25])[: made.num_coefficients]
    (merged,) = merges(made, [c])
    assert all(x.dtype == dtype for x in jax.tree.leaves(merged))
    assert_close(merged, expected(rule, made, c), TOLERANCE[dtype])


@pytest.mark.parametrize("rule", list(RULES))
def test_what_coefficients_mean(rule):
    made = make(rule)
    tv, n = made.task_vectors, made.num_coefficients
    assert (n, made.coefficient_names) == (tv.num_tasks, tv.names)
    c = np.linspace(0.3, 0.9, n)
    several = merges(made, [*np.eye(n), np.zeros(n), c, 3 * c, -np.eye(n)[0]])
    for i in range(n):  # one expert alone is that expert
        assert_close(several[i], leaves(mj.merge(tv, np.eye(n)[i])), 1e-6)
    nothing, some, more, negative = several[n:]
    assert_close(nothing, leaves(tv.base), 0)  # zeros are the base
    assert_close(more, leaves(some), 1e-5)  # only proportions count
    assert_close(negative, leaves(tv.base), 0)  # a negative one counts as zero


@pytest.mark.parametrize("rule", ["slerp", "fisher_mean"])
def test_the_sum_can_scale_the_change(rule):
    made = make(rule)
    n, base = made.num_coefficients, leaves(made.task_vectors.base)
    c = np.linspace(0.3, 0.9, n)
    near, far, zero, one = merges(
        made.scaled(), [c / c.sum(), 3 * c / c.sum(), np.zeros(n), np.eye(n)[1]]
    )
    (own,) = merges(made, [c])
    assert_close(near, leaves(own), 1e-5)  # the same where they sum to one
    near = leaves(near)
    assert_close(far, {p: base[p] + 3 * (near[p] - base[p]) for p in base}, 1e-5)
    assert_close(zero, base, 0)
    assert_close(one, leaves(mj.merge(made.task_vectors, np.eye(n)[1])), 1e-6)


def test_factors_are_multiplied_out():
    rng = np.random.default_rng(0)
    factors = {
        "a": rng.normal(size=(2, 6, 2)).astype(np.float32),
        "b": rng.normal(size=(2, 2, 4)).astype(np.float32),
    }
    v = LowRank(*map(jnp.asarray, factors.values()), scale=jnp.ones(2), error=jnp.zeros(2))
    base = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    low = mj.TaskVectors(base, v, ("a", "b"))
    full = mj.TaskVectors(base, v.dense(), ("a", "b"))
    for rule in (rules.slerp, rules.wudi_mean):
        np.testing.assert_allclose(rule(low)([0.3, 0.6]), rule(full)([0.3, 0.6]), rtol=1e-5)


@pytest.mark.parametrize("rule", list(RULES))
def test_odd_experts_give_finite_merges(rule):
    made = make(rule)
    tv, n = made.task_vectors, made.num_coefficients

    def given(change):
        return RULES[rule](dataclasses.replace(tv, vectors=change(tv)))

    c = np.linspace(0.3, 0.9, n)
    equal = given(lambda tv: jax.tree.map(lambda v: v[:1].repeat(n, 0), tv.vectors))
    assert_close(merges(equal, [c])[0], leaves(mj.merge(tv, np.eye(n)[0])), 1e-5)
    untrained = given(lambda tv: jax.tree.map(lambda v: v.at[0].set(0), tv.vectors))
    everywhere = given(lambda tv: jax.tree.map(jnp.zeros_like, tv.vectors))
    gone = given(  # parameters of zero for the first expert, opposite ones for the others
        lambda tv: jax.tree.map(
            lambda b, v: v.at[0].set(-b).at[-1].set(-2 * b - v[1] * (n > 2)),
            tv.base,
            tv.vectors,
        )
    )
    opposite = given(lambda tv: jax.tree.map(lambda v: v.at[1].set(-v[0]), tv.vectors))
    for odd in (untrained, everywhere, gone, opposite):
        for merged in merges(odd, [c, np.ones(n), np.eye(n)[0]]):
            assert all(np.isfinite(x).all() for x in leaves(merged).values())
    assert_close(merges(everywhere, [c])[0], leaves(tv.base), 1e-5)


def test_spheres_fall_back_to_lines():
    """Opposite vectors have no single great circle, and zero has no direction."""
    v = {"w": jnp.array([[3.0, 4.0], [-3.0, -4.0]]), "b": jnp.array([[0.0, 0], [1, 1]])}
    tv = mj.TaskVectors({"w": jnp.zeros(2), "b": jnp.zeros(2)}, v, ("a", "b"))
    for rule in (rules.slerp(tv), rules.nuslerp(tv), rules.multi_slerp(tv)):
        # At equal weights the opposite directions cancel for each of them.
        merged = rule([1.0, 1.0])
        np.testing.assert_allclose(merged["w"], [0, 0], atol=1e-6)
    np.testing.assert_allclose(rules.slerp(tv)([3.0, 1.0])["w"], [1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(rules.slerp(tv)([3.0, 1.0])["b"], [0.25, 0.25], rtol=1e-6)
    # The Karcher mean keeps the other's direction, with the mean of the norms.
    np.testing.assert_allclose(
        rules.multi_slerp(tv)([3.0, 1.0])["b"], [0.25, 0.25], rtol=1e-6
    )


def test_opposite_experts_are_averaged_on_any_sphere():
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    tv = mj.TaskVectors({"w": jnp.zeros(64), "b": jnp.zeros(())}, {}, ("a", "b"))
    v = {"w": jnp.stack([x, -x]), "b": jnp.array([0.3, -0.2])}
    rule = rules.multi_slerp(dataclasses.replace(tv, vectors=v))
    np.testing.assert_allclose(rule([0.6, 0.4])["w"], 0.2 * x, rtol=1e-5)
    np.testing.assert_allclose(rule([0.6, 0.4])["b"], 0.1, rtol=1e-5)
    for c in ([0.6, 0.4], [1.0, 0.0], [0.0, 0.0]):
        for slope in jax.tree.leaves(jax.jacobian(rule)(jnp.array(c))):
            assert np.isfinite(slope).all()


def test_slerp_and_karcher_mean_agree_for_two_of_one_norm():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 40))
    x = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)
    tv = mj.TaskVectors(jnp.zeros(40), x, ("a", "b"))
    for c in ([0.2, 0.8], [0.9, 0.3]):
        one, other = rules.slerp(tv)(c), rules.multi_slerp(tv)(c)
        np.testing.assert_allclose(one, other, atol=1e-6)
        np.testing.assert_allclose(jnp.linalg.norm(one), 1, rtol=1e-6)


def test_nearby_experts_keep_their_precision():
    """Angles of 1e-4, as of one step of fine-tuning, drown in the rounding of cosines."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=1000).astype(np.float32)
    v = 1e-4 * rng.normal(size=(3, 1000)).astype(np.float32)
    tv = mj.TaskVectors(jnp.asarray(base), jnp.asarray(v), ("a", "b", "c"))
    c = np.array([0.5, 0.2, 0.3])
    want = reference.karcher_mean(base.astype(float) + v, c)
    np.testing.assert_allclose(rules.multi_slerp(tv)(c), want, atol=1e-6)


def test_closed_forms_with_ones_are_the_transforms():
    tv = draw(3)
    pairs = [
        (RULES["fisher_mean"], lambda tv: transforms.fisher_weighted(tv, fishers_of(tv))),
        (RULES["regmean_mean"], lambda tv: transforms.regmean(tv, grams_of(tv))),
    ]
    for rule, transform in pairs:
        assert_close(
            rule(tv)(np.ones(3)), leaves(mj.merge(transform(tv), np.ones(3))), 2e-5
        )


def test_regmean_answers_as_the_experts_do():
    """Without damping it is least squares on the inputs themselves."""
    tv, c = draw(3), [0.2, 1.0, 0.5]
    merged = rules.regmean_mean(tv, grams_of(tv), off_diagonal=1.0)(c)
    base, vectors = leaves(tv.base), leaves(tv.vectors)
    for path in grams_of(tv)[0]:
        experts = base[path] + vectors[path]
        want = reference.least_squares_mean(experts, c, inputs_of(tv))
        np.testing.assert_allclose(leaves(merged)[path], want, atol=2e-4)


def test_dead_inputs_are_averaged():
    tv, c = draw(3), [0.2, 1.0, 0.5]
    path = "['layer_0']['kernel']"
    merged = leaves(rules.regmean_mean(tv, grams_of(tv, dead=2))(c))[path]
    experts = leaves(tv.base)[path] + leaves(tv.vectors)[path]
    np.testing.assert_allclose(merged[2], reference.average(experts, c)[2], rtol=1e-5)


def test_layers_can_be_put_in_a_row_by_hand():
    tv = draw(2)
    row = ["layer_0", "layer_3", "layer_1", "layer_2"]  # the paper's: outermost first
    half = leaves(rules.layer_swap(tv, row)([1.0, 1.0]))
    first, second = (leaves(mj.merge(tv, e)) for e in np.eye(2))
    for path, x in half.items():
        outer = path[2:9] in ("layer_0", "layer_3")
        np.testing.assert_array_equal(x, (first if outer else second)[path])
    by_function = rules.layer_swap(
        tv, lambda path: None if "bias" in path else float(row.index(path[2:9]))
    )
    got = leaves(by_function([1.0, 1.0]))
    bias = "['layer_0']['bias']"
    np.testing.assert_allclose(got[bias], (first[bias] + second[bias]) / 2, rtol=1e-5)
    del got[bias], half[bias]
    assert all(np.array_equal(got[p], half[p]) for p in half)


def test_leaves_that_are_not_merged_come_from_the_base():
    base = {"w": jnp.ones((2, 2)), "step": jnp.array(7), "empty": jnp.zeros((0, 3))}
    expert = {"w": 2 * jnp.ones((2, 2)), "step": jnp.array(9), "empty": jnp.zeros((0, 3))}
    tv = mj.TaskVectors.from_params(base, [expert, base])
    for rule in (rules.slerp, rules.multi_slerp, rules.wudi_mean, rules.weighted_average):
        merged = rule(tv)([1.0, 0.0])
        assert int(merged["step"]) == 7
        assert merged["empty"].shape == (0, 3)
        np.testing.assert_allclose(merged["w"], 2, rtol=1e-5)


def test_one_trace_serves_all_coefficients(monkeypatch):
    made, traced = make("multi_slerp"), []
    change = made.change

    def counted(*args):
        traced.append(1)
        return change(*args)

    made = dataclasses.replace(made, change=counted)
    for c in np.random.default_rng(0).uniform(size=(4, 3)):
        made(c)
    assert len(traced) == 1


def test_coefficients_that_are_no_numbers_are_not_taken_for_zeros():
    for rule in RULES:
        made = make(rule)
        c = np.r_[np.nan, np.ones(made.num_coefficients - 1)]
        merged = leaves(merges(made, [c])[0])
        assert all(np.isnan(x).all() for x in merged.values()), rule


def test_the_largest_coefficients_give_proportions():
    made = make("weighted_average")
    for c in ([3e38, 3e38, 3e38], [3e38, 1e38, 0]):
        want = leaves(made(np.divide(c, 3e38)))
        assert_close(made(np.array(c, "f")), want, 1e-6)


def test_what_rules_refuse():
    tv = draw(3)
    with pytest.raises(ValueError, match=r"shape \(2,\), but there are 3 experts"):
        rules.weighted_average(tv)([0.5, 0.5])
    for rule in (rules.slerp, rules.nuslerp):
        with pytest.raises(ValueError, match=r"two experts, but there are 3.*multi_slerp"):
            rule(tv)
    with pytest.raises(ValueError, match=r"patterns \['block'\] that are in no key path"):
        rules.layer_swap(tv, ["layer_0", "block"])
    with pytest.raises(ValueError, match="`layers` finds no layer"):
        rules.layer_swap(tv, lambda path: None)
    with pytest.raises(ValueError, match="`fishers` has 2 entries, but there are 3"):
        rules.fisher_mean(tv, fishers_of(tv)[:2])
    with pytest.raises(ValueError, match="`grams` has entries for"):
        rules.regmean_mean(tv, dict(zip("abc", grams_of(tv), strict=True)))
    with pytest.raises(ValueError, match=r"`off_diagonal` is 2\.0"):
        rules.regmean_mean(tv, grams_of(tv), off_diagonal=2.0)
    with pytest.raises(ValueError, match=r"`ridge` is 0\.0"):
        rules.wudi_mean(tv, ridge=0.0)
    flat = mj.TaskVectors(jnp.zeros(2), jnp.ones((2, 2)), ("a", "b"))
    with pytest.raises(
        ValueError, match="`wudi_mean` edits matrices, but no tensor is one"
    ):
        rules.wudi_mean(flat)
