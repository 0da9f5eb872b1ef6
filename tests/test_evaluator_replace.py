"""Evaluators of other merges and other data, by the programs that there are."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import mapjax as mj
from mapjax import transforms

RNG = np.random.default_rng(0)
EXPERTS = {n: {"w": RNG.normal(size=(8, 4)).astype("f")} for n in ("a", "b")}
TV = mj.TaskVectors.from_params({"w": np.zeros((8, 4), np.float32)}, EXPERTS)
C = RNG.random((5, 2)).astype(np.float32)


def predict(params, x):
    return x @ params["w"]


def make_task(count=50, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(count, 8)).astype("f"), rng.integers(0, 4, count)
    return mj.Task("task", predict, x, y)


def scores(tv, task, c=C):
    """The accuracies, in NumPy."""
    base, vectors = np.asarray(tv.base["w"]), np.asarray(tv.vectors["w"])
    merged = base + np.tensordot(c, vectors, 1)
    answers = np.asarray(task.inputs) @ merged
    return (answers.argmax(-1) == np.asarray(task.targets)).mean(1, keepdims=True)


def test_other_vectors_and_other_examples_take_the_same_program():
    first = mj.Evaluator(TV, [make_task()])
    np.testing.assert_allclose(first(C), scores(TV, make_task()), atol=1e-6)
    for tv in (transforms.ties(TV, density=0.5), transforms.magmax(TV)):
        other = first.replace(tv, [make_task(seed=1)])
        np.testing.assert_allclose(other(C), scores(tv, make_task(seed=1)), atol=1e-6)
        assert other.program("scores") is first.program("scores")
        assert other.fingerprint() != first.fingerprint()
    np.testing.assert_allclose(first(C), scores(TV, make_task()), atol=1e-6)


def test_what_the_first_did_not_compile_serves_it_too():
    first = mj.Evaluator(TV, [make_task()])
    other = first.replace(tasks=[make_task(seed=1)])
    other.scores_and_outputs(C)
    assert first.program("both") is other.program("both")


def test_what_differs_is_compiled_for_itself():
    first = mj.Evaluator(TV, [make_task()])
    wider = mj.TaskVectors.from_params(TV.base, {**EXPERTS, "c": EXPERTS["a"]})
    others = [
        first.replace(tasks=[make_task(30)]),
        first.replace(wider),
        first.replace(mj.rules.multi_slerp(TV)),
    ]
    programs = {id(e.program("scores")) for e in (first, *others)}
    assert len(programs) == 4
    np.testing.assert_allclose(others[0](C), scores(TV, make_task(30)), atol=1e-6)
    c = RNG.random((4, 3)).astype("f")
    np.testing.assert_allclose(others[1](c), scores(wider, make_task(), c), atol=1e-6)


def test_options_stay():
    mesh = Mesh(jax.devices()[:2], ("candidates",))
    first = mj.Evaluator(
        TV, [make_task()], chunk_size=2, batch_size=16, memory_limit=10**9, mesh=mesh
    )
    other = first.replace(tasks=[make_task(seed=1)])
    assert (other.chunk_size, other.batch_size, other.memory_limit) == (2, 16, 10**9)
    np.testing.assert_allclose(other(C), scores(TV, make_task(seed=1)), atol=1e-6)
    assert other.program("scores") is first.program("scores")


def test_functions_keep_their_number_of_coefficients():
    def halved(c):
        return mj.merge(TV, c / 2)

    first = mj.Evaluator(halved, [make_task()], num_coefficients=2)
    other = first.replace(tasks=[make_task(seed=1)])
    np.testing.assert_allclose(
        other(C), scores(TV, make_task(seed=1), (C / 2).astype("f")), atol=1e-6
    )
    back = other.replace(TV)
    np.testing.assert_allclose(back(C), scores(TV, make_task(seed=1)), atol=1e-6)
    with pytest.raises(ValueError, match="`num_coefficients`, at least 1"):
        first.replace(lambda c: halved(c))


def test_a_rule_that_nothing_can_be_compared_with_works():
    class Listed(list):
        __hash__ = None

        def __call__(self, c):
            return mj.merge(TV, c)

    first = mj.Evaluator(Listed(), [make_task()], num_coefficients=2)
    other = first.replace(tasks=[make_task(seed=1)])
    np.testing.assert_allclose(other(C), scores(TV, make_task(seed=1)), atol=1e-6)
