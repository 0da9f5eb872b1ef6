"""Parameters on a mesh with explicit axes, where JAX asks how every result is sharded."""

import contextlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import mapjax as mj
from mapjax import rules, transforms

KEY = jax.random.key(0)
SHAPES = {"layer_0": (8, 8), "layer_1": (8, 8)}
SPECS = {"layer_0": ("data", "model"), "layer_1": (None, "data")}
INPUTS = np.random.default_rng(1).normal(size=(2, 12, 8)).astype(np.float32)


def predict(params, x):
    return jnp.tanh(x @ params["layer_0"]) @ params["layer_1"]


def loss(params, x):
    return jnp.sum(predict(params, x[None]) ** 2)


def models(count, place):
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    drawn = [base]
    for _ in range(count):
        drawn.append({k: x + 0.1 * rng.normal(size=x.shape) for k, x in base.items()})
    return [{k: place(k, np.float32(x)) for k, x in each.items()} for each in drawn]


@pytest.fixture(scope="module")
def mesh():
    explicit = (AxisType.Explicit,) * 2
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=explicit)


@pytest.fixture(scope="module")
def both(mesh):
    """Give models in one place, and the same on the mesh."""

    def place(name, x):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*SPECS[name])))

    return models(2, lambda name, x: jnp.asarray(x)), models(2, place)


def per_task(function):
    """Call a transform with what is measured of each expert."""

    def call(transform):
        return lambda tv, experts: transform(tv, [function(*e) for e in experts])

    return call


with_fishers = per_task(lambda p, x: transforms.fisher(loss, p, x, batch_size=4))
with_grams = per_task(lambda p, x: transforms.gram_matrices(predict, p, x))
with_squares = per_task(lambda p, x: jax.tree.map(lambda leaf: leaf**2, p))


def alone(transform, **options):
    return lambda tv, experts: transform(tv, **options)


def factored(edit):
    return lambda tv, experts: edit(mj.low_rank(tv, rank=2), transforms.magmax)


TRANSFORMS = {
    "breadcrumbs": alone(transforms.breadcrumbs),
    "consensus": alone(transforms.consensus),
    "core_space": factored(transforms.core_space),
    "dare": alone(transforms.dare, key=KEY),
    "della": alone(transforms.della, key=KEY),
    "doge": alone(transforms.doge, num_steps=2),
    "fisher_weighted": with_fishers(transforms.fisher_weighted),
    "iso_c": alone(transforms.iso_c),
    "iso_cts": alone(transforms.iso_cts),
    "knots": factored(transforms.knots),
    "lines": alone(transforms.lines),
    "magmax": alone(transforms.magmax),
    "metagpt": alone(transforms.metagpt),
    "model_stock": alone(transforms.model_stock),
    "opcm": alone(transforms.opcm),
    "ota": with_squares(transforms.ota),
    "pcb": alone(transforms.pcb),
    "regmean": with_grams(transforms.regmean),
    "regmean_pp": lambda tv, experts: transforms.regmean_pp(tv, predict, list(INPUTS)),
    "tall_mask": alone(transforms.tall_mask),
    "ties": alone(transforms.ties, scope="global"),
    "tsv": alone(transforms.tsv),
    "widen": alone(transforms.widen),
    "wudi": alone(transforms.wudi),
    "wudi_descent": alone(transforms.wudi_descent, num_steps=2),
}
RULES = {
    "fisher_mean": with_fishers(rules.fisher_mean),
    "layer_swap": alone(rules.layer_swap),
    "match_layers": lambda tv, experts: rules.match_layers(tv, predict, list(INPUTS)),
    "multi_slerp": alone(rules.multi_slerp),
    "nuslerp": alone(rules.nuslerp, input_axes="leading"),
    "react": lambda tv, experts: rules.react(tv, predict, list(INPUTS)),
    "regmean_mean": with_grams(rules.regmean_mean),
    "slerp": alone(rules.slerp),
    "weighted_average": alone(rules.weighted_average),
    "wudi_mean": alone(rules.wudi_mean),
}


def test_none_is_left_out():
    measured = {"fisher", "gram_matrices", "second_moments"}
    for module, tested in ((transforms, TRANSFORMS), (rules, RULES)):
        public = {name for name, x in vars(module).items() if inspect.isfunction(x)}
        assert public - measured == set(tested)


USUAL = {"match_layers", "ties", "tsv", "slerp"}
CASES = [
    name if name in USUAL else pytest.param(name, marks=pytest.mark.slow)
    for name in (*TRANSFORMS, *RULES)
]


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_one_device_and_stay_in_place(name, both):
    found = []
    for base, *experts in both:
        tv = mj.TaskVectors.from_params(base, experts)
        measured = list(zip(experts, INPUTS, strict=True))
        if name in RULES:
            merged = RULES[name](tv, measured)(jnp.array([0.3, 0.5]))
        else:
            merged = mj.merge(TRANSFORMS[name](tv, measured), [0.3, 0.5])
        found.append(merged)
    for name, x in both[1][0].items():
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-3, atol=1e-4)
        assert found[1][name].sharding == x.sharding


@pytest.mark.parametrize("around", ["jit", "set_mesh"])
def test_wherever_they_are_called(around, both, mesh):
    def compute(base, expert) -> dict[str, Any]:
        tv = mj.TaskVectors.from_params(base, [expert])
        sparse = transforms.magmax(tv)
        return {
            "cosines": tv.cosine_similarity(),
            "vectors": sparse.vectors,
            "merged": mj.merge(sparse, [0.5]),
            "rule": rules.wudi_mean(tv)(jnp.array([0.5])),
            "batch": jax.vmap(mj.merge, (None, 0))(sparse, jnp.eye(1)),
        }

    set_mesh: Any = getattr(jax, "set_mesh", None) or getattr(
        jax.sharding, "use_mesh", None
    )
    want = compute(*both[0][:2])
    with set_mesh(mesh) if around == "set_mesh" else contextlib.nullcontext():
        got = (jax.jit(compute) if around == "jit" else compute)(*both[1][:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), got, want)
    for name, x in both[1][0].items():
        assert got["merged"][name].sharding == got["rule"][name].sharding == x.sharding
        assert got["vectors"][name].sharding.spec == PartitionSpec(None, *x.sharding.spec)


def test_low_rank_vectors_and_an_evaluator(both, mesh):
    found = []
    for (base, *experts), devices in zip(both, (None, mesh), strict=True):
        tv = mj.low_rank(mj.TaskVectors.from_params(base, experts), rank=2)
        tasks = [
            mj.Task("one", predict, INPUTS[0], INPUTS[1], mj.metrics.mean_squared_error)
        ]
        scores = mj.Evaluator(rules.weighted_average(tv), tasks, mesh=devices)
        found.append((tv.norms(), mj.merge(tv, [0.3, 0.5]), scores(jnp.eye(2))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), *found)


def evaluators(both, mesh):
    for (base, *experts), devices in zip(both, (None, mesh), strict=True):
        tv = mj.TaskVectors.from_params(base, experts)
        labels = [np.argmax(predict(e, x), 1) for e, x in zip(experts, INPUTS, strict=True)]
        tasks = [mj.Task(f"task_{i}", predict, INPUTS[i], labels[i]) for i in range(2)]
        yield mj.Evaluator(tv, tasks, mesh=devices)


@pytest.mark.parametrize("made", ["before", "after"])
def test_an_evaluator_serves_where_its_mesh_is_set(made, both, mesh):
    c = np.random.default_rng(2).random((3, 2)).astype(np.float32)
    before = list(evaluators(both, mesh))
    with jax.set_mesh(mesh):
        one, four = list(evaluators(both, mesh)) if made == "after" else before
        scores, seen = four.scores_and_outputs(c)
        inside = [scores, scores[0], seen["task_1"][1:], four.outputs(c)["task_0"]]
        shapes, fingerprint = four.output_shapes(), four.fingerprint()
        merged = four.rule([0.3, 0.5])["layer_0"] + 1.0
    want, expected = one.scores_and_outputs(c)
    outside = [want, want[0], expected["task_1"][1:], one.outputs(c)["task_0"]]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), inside, outside)
    assert all(x.shape == shapes[name].shape for name, x in one.output_shapes().items())
    np.testing.assert_allclose(merged, one.rule([0.3, 0.5])["layer_0"] + 1.0, 1e-3, 1e-4)
    np.testing.assert_array_equal(four(c)[0], want[0])
    assert fingerprint == one.fingerprint()


@pytest.mark.slow
def test_other_meshes_that_are_set(both, mesh):
    c = np.eye(2, dtype=np.float32)
    one, four = evaluators(both, mesh)
    want = one(c)
    automatic = Mesh(mesh.devices, mesh.axis_names)
    *_, plain = evaluators(both, automatic)
    for evaluator, there in ((plain, mesh), (four, automatic)):
        with jax.set_mesh(there):  # the same axes of another type
            np.testing.assert_allclose(evaluator(c)[0] + 1.0, want[0] + 1.0, 1e-3)
            assert evaluator.rule([0.3, 0.5])["layer_0"].shape == (8, 8)
    with jax.set_mesh(jax.make_mesh((4,), ("candidates",))):
        with pytest.raises(ValueError, match=r"axes .*data.* has set .*candidates"):
            four(c)
        with pytest.raises(ValueError, match="pass that one"):
            list(evaluators(both[:1] * 2, mesh))


@pytest.mark.slow
def test_an_evaluator_inside_of_a_program(both, mesh):
    c = jnp.array([[0.3, 0.5], [1.0, 0.0]])
    one, four = evaluators(both, mesh)
    want = np.asarray(one(c))
    # Known while it is traced, so that a program of its own runs.
    got = jax.jit(lambda x: four(np.asarray(c)) + x)(0.0)
    np.testing.assert_allclose(got, want, 1e-3)
    np.testing.assert_allclose(jax.jit(four)(c), want, 1e-3)
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(four)(c), want, 1e-3)


@pytest.mark.slow
def test_drivers_serve_where_the_mesh_is_set(both, mesh):
    key = jax.random.key(0)
    one, four = evaluators(both, mesh)

    def found(evaluator):
        front = mj.map_front(evaluator, budget=6, key=key).front
        tuned = mj.adamerging(evaluator, num_steps=3, key=key).samples.coefficients
        race = mj.evaluation.race(evaluator, np.eye(2), np.eye(2), key=key, first=8)
        return front.coefficients, front.scores, tuned, race.scores

    with jax.set_mesh(mesh):
        got = found(four)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), got, found(one))
