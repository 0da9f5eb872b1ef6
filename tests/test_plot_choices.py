"""What cannot be drawn is said, and several runs share a picture."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from plot_tools import failed_solution, make_solution, plot, png

from mapjax import RESULTS
from mapjax._result import Samples
from mapjax.design import to_simplex
from mapjax.plot._figure import references


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


def test_fronts_of_opposite_directions_share_no_axis():
    up, down = (make_solution(2, directions=(way, way)) for way in ("maximize", "minimize"))
    with pytest.raises(ValueError, match=r"'b' has the directions .* one axis cannot"):
        plot.fronts({"a": up, "b": down})


def test_references_are_told_from_experts_of_their_names():
    solution = make_solution(2, coefficient_names=("base", "uniform"))
    found = [(label, row) for _, label, row, _ in references(solution)]
    rows = [("base", 0), ("uniform merge", 3), ("expert base", 1), ("expert uniform", 2)]
    assert found == rows


def mixtures(n, **changes):
    """A solution whose samples all sum to one."""
    solution = make_solution(n, **changes)
    c = to_simplex(solution.samples.coefficients[1:], len(solution.expert_names))
    samples = Samples(c, solution.samples.scores[1:])
    return make_solution(n, samples=samples, **changes)


@pytest.mark.parametrize("n", [3, 4])
def test_contours_of_mixtures_predict_nothing_but_mixtures(n):
    seen, truth = [], make_solution(n)

    def surrogate(c):
        seen.append(np.asarray(c))
        return truth.surrogate(c)

    ax = plot.contours(mixtures(n, surrogate=surrogate), num_points=11)
    np.testing.assert_allclose(seen[0].sum(axis=1), 1, atol=1e-5)
    assert seen[0].min() >= -1e-6
    inside = seen[0][seen[0][:, 0] + seen[0][:, 1] < 1]
    np.testing.assert_allclose(inside[:, 2:], np.repeat(inside[:, 2:3], n - 2, axis=1))
    assert "share what is left" in ax.get_title()


@pytest.mark.parametrize(
    ("n", "changes", "why"),
    [
        (2, {}, "two experts lie on a line"),
        (
            3,
            {"num_coefficients": 6, "experts": ("a", "b", "c")},
            "groups have several sums",
        ),
    ],
)
def test_mixtures_that_no_plane_shows_are_refused(n, changes, why):
    with pytest.raises(ValueError, match=rf"{why}, .*Draw `mapjax.plot.pairs`"):
        plot.contours(mixtures(n, **changes))
