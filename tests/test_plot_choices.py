"""What cannot be drawn is said, and several runs share a picture."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from plot_tools import failed_solution, make_solution, plot, png

from mapjax import RESULTS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.front(make_solution(4)), r"there are 4\. Choose from .*pairs"),
        (lambda: plot.front(make_solution(4), [0]), r"`tasks` is \[0\]"),
        (lambda: plot.front(make_solution(4), [1, 1]), "different tasks"),
        (lambda: plot.front(make_solution(3), ["task 0", "mnist"]), "no task 'mnist'"),
        (lambda: plot.front(make_solution(3), [0, 3]), "no task 3: the 3 tasks"),
        (
            lambda: plot.front(make_solution(3), ax=Figure().add_subplot()),
            r"three tasks need axes made by .*projection",
        ),
        (
            lambda: plot.front(make_solution(2), ax=Figure().add_subplot(projection="3d")),
            r"two tasks need axes made by .*add_subplot\(\)",
        ),
        (lambda: plot.pairs(make_solution(1)), "two tasks or more"),
        (lambda: plot.parallel(make_solution(1)), "two tasks or more"),
        (lambda: plot.contours(make_solution(3), 5), "no task 5"),
        (lambda: plot.contours(make_solution(3), 0, (0, 3)), "no coefficient 3: the 3"),
        (lambda: plot.contours(make_solution(3), 0, (0, -1)), "no coefficient -1"),
        (lambda: plot.contours(make_solution(3), 0, ("c0", "x")), "no coefficient 'x'"),
        (lambda: plot.contours(make_solution(3), 0, (1, 1)), "two different ones"),
        (lambda: plot.contours(make_solution(3), held=(0.1, 0.2)), r"shape \(2,\)"),
        (lambda: plot.contours(make_solution(3), num_points=1), "at least 2"),
        (lambda: plot.contours(make_solution(3, surrogate=None)), "none was kept"),
        (
            lambda: plot.predicted_vs_verified(
                make_solution(3, surrogate=None, result=RESULTS.no_finite_scores)
            ),
            "no surrogate. A task has no finite score",
        ),
        (lambda: plot.parallel(failed_solution()), "no finite score"),
    ],
)
def test_errors_say_what_to_pass_instead(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_fronts_of_several_runs_are_staircases_of_two_tasks():
    both = ("maximize", "minimize", "maximize")
    solutions = {
        "one": make_solution(3, directions=both),
        "two": make_solution(3, directions=both, verified=None),
    }
    ax = plot.fronts(solutions, ("task 1", 2))
    assert [line.get_label() for line in ax.lines] == ["one", "two"]
    scores = np.asarray(solutions["one"].front.scores)[:, 1:]
    keep = [
        p
        for p in scores
        if not ((scores[:, 0] < p[0]) & (scores[:, 1] >= p[1])).any()
        and not ((scores[:, 0] <= p[0]) & (scores[:, 1] > p[1])).any()
    ]
    drawn = np.transpose(ax.lines[0].get_data())
    np.testing.assert_allclose(drawn, sorted(map(tuple, keep)), rtol=1e-6)
    measured = np.transpose(plot.fronts(solutions, verified=True).lines[1].get_data())
    samples = np.asarray(solutions["two"].samples.scores)[:, :2]
    assert {*map(tuple, measured.tolist())} <= {*map(tuple, samples.tolist())}
    assert png(ax.figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("solutions", "tasks", "message"),
    [
        ({}, None, "`solutions` is empty"),
        (
            {"a": make_solution(2), "b": make_solution(3)},
            None,
            "Draw runs on the same tasks",
        ),
        ({"a": make_solution(3)}, (1, 1), "two different tasks"),
        ({"a": make_solution(3)}, (0, 1, 2), "two different tasks"),
    ],
)
def test_fronts_that_cannot_be_compared(solutions, tasks, message):
    with pytest.raises(ValueError, match=message):
        plot.fronts(solutions, tasks)


def test_fronts_need_names():
    fronts = plot.fronts.__wrapped__  # the type checks of tests would be first
    with pytest.raises(ValueError, match=r"is a list: pass `{name: solution, \.\.\.}`"):
        fronts([make_solution(2)])
