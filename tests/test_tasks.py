"""What an evaluator's tasks may be, and what is said of others."""

import jax.numpy as jnp
import numpy as np
import pytest

import mapjax as mj

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 8)).astype(np.float32)
Y = RNG.integers(0, 4, 50)
C = RNG.random((7, 3)).astype(np.float32)
KERNELS = RNG.normal(size=(4, 8, 4)).astype(np.float32)
TV = mj.TaskVectors.from_params({"w": KERNELS[0]}, [{"w": w} for w in KERNELS[1:]])


def predict(params, x):
    return x @ params["w"]


@pytest.mark.parametrize("metric", [mj.metrics.cross_entropy, mj.metrics.f1])
def test_a_predict_without_one_row_per_example_names_its_task(metric):
    message = r"`predict` returned \[.*\] for 50 examples of task 'mine': return one row"
    with pytest.raises(ValueError, match=message):
        mj.Evaluator(
            TV, [mj.Task("mine", lambda p, x: predict(p, x).mean(0), X, Y, metric)]
        )


def test_what_the_metric_leaves_out_needs_no_rows():
    def with_loss(params, x):
        return predict(params, x), jnp.sum(x)

    metric = mj.metrics.accuracy.after(lambda outputs: outputs[0])
    tasks = [mj.Task("t", with_loss, X, Y, metric), mj.Task("u", predict, X, Y)]
    scores = mj.Evaluator(TV, tasks)(C)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])


def test_lists_of_numbers_are_told_in_few_words():
    for inputs, targets, words in (
        (X.tolist(), [0] * 50, "`inputs` and `targets` are lists, in which each number"),
        (X.tolist(), Y, r"`inputs` is a list, .* pass `np.asarray\(inputs\)`"),
        (X, tuple(Y.tolist()), r"`targets` is a tuple, .* pass `np.asarray\(targets\)`"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            mj.Task("a", predict, inputs, targets)
        assert " more" in str(caught.value)
        assert len(str(caught.value)) < 400


def test_an_evaluator_says_what_it_scores():
    tasks = [mj.Task("all", predict, X, Y), mj.Task("few", predict, X[:33], Y[:33])]
    words = "3 coefficients on 'all' (50 examples), 'few' (33 examples)"
    assert repr(mj.Evaluator(TV, tasks)) == f"<Evaluator of {words}>"
