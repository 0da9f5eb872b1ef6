"""Pictures show what the solution holds, for any number of tasks and either direction."""

import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from plot_tools import NUM_VERIFIED, failed_solution, make_solution, plot, png, points

from mapjax._result import Front, Samples


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_front_shows_every_kind_of_point(num_tasks):
    solution = make_solution(num_tasks)
    ax = plot.front(solution)
    scores = np.asarray(solution.samples.scores)
    finite = scores[np.isfinite(scores).all(axis=1)]
    assert len(finite) == len(scores) - 2
    np.testing.assert_allclose(points(ax, "evaluated"), finite)
    np.testing.assert_allclose(points(ax, "front, predicted"), solution.front.scores)
    np.testing.assert_allclose(points(ax, "front, verified"), scores[-NUM_VERIFIED:])
    np.testing.assert_allclose(points(ax, "base"), scores[:1])
    for i in range(num_tasks):
        np.testing.assert_allclose(points(ax, f"expert c{i}"), scores[[i + 1]])
    np.testing.assert_allclose(points(ax, "uniform merge"), scores[[num_tasks + 1]])
    assert png(ax.figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_front_joins_predictions_to_measurements(num_tasks):
    solution = make_solution(num_tasks)
    ax = plot.front(solution)
    rows = slice(-NUM_VERIFIED, None)
    predicted = np.asarray(solution.surrogate(solution.samples.coefficients))[rows]
    measured = np.asarray(solution.samples.scores)[rows]
    assert len(ax.lines) == NUM_VERIFIED
    for line, start, end in zip(ax.lines, predicted, measured, strict=True):
        data = line.get_data() if num_tasks == 2 else line.get_data_3d()
        np.testing.assert_allclose(np.transpose(data), [start, end], rtol=1e-6)


def test_front_of_a_choice_of_tasks_in_the_order_asked_for():
    solution = make_solution(5)
    ax = plot.front(solution, tasks=("task 4", 1))
    expected = np.asarray(solution.front.scores)[:, [4, 1]]
    np.testing.assert_allclose(points(ax, "front, predicted"), expected)
    assert ax.get_xlabel().startswith("task 4")
    assert ax.get_ylabel().startswith("task 1")


def test_labels_say_which_way_is_better():
    ax = plot.front(make_solution(2, directions=("maximize", "minimize")))
    assert ax.get_xlabel() == "task 0  (higher is better →)"
    assert ax.get_ylabel() == "task 1  (← lower is better)"


def test_front_draws_standard_deviations_where_there_are_some():
    solution = make_solution(2)
    std = jnp.full_like(solution.front.scores, 0.05).at[0].set(jnp.nan)
    front = Front(solution.front.coefficients, solution.front.scores, std)
    (bars,) = plot.front(make_solution(2, front=front)).containers
    across, up = bars[2]
    assert len(across.get_segments()) == len(up.get_segments()) == len(front) - 1
    lengths = [np.ptp(segment, axis=0) for segment in across.get_segments()]
    np.testing.assert_allclose(lengths, [[0.1, 0.0]] * len(lengths), atol=1e-6)
    assert not plot.front(solution).containers


class Sure:
    """A surrogate that knows scores up to a common shift."""

    def __init__(self, surrogate):
        self.surrogate = surrogate

    def __call__(self, c):
        return self.surrogate(c)

    def errors(self, c, num_draws, *, key, noise):
        assert not noise
        shift = np.linspace(-0.05, 0.05, num_draws)[:, None, None]
        return np.broadcast_to(shift, (num_draws, *self(c).shape))


@pytest.mark.parametrize("directions", [("maximize", "minimize"), ("minimize", "maximize")])
def test_front_shades_the_band_of_sampled_fronts(directions):
    solution = make_solution(2, directions=directions)
    solution = make_solution(
        2, directions=directions, surrogate=Sure(solution.surrogate), verified=None
    )
    ax = plot.front(solution)
    (band,) = [x for x in ax.collections if x.get_label() == "front, 90 % sure"]
    corners = band.get_paths()[0].vertices
    # Every point of the front is within the band, if it is no end of the front.
    signs = np.array([1 if d == "minimize" else -1 for d in directions])
    front = np.unique(np.asarray(solution.front.scores) * signs, axis=0)
    front = front[[not (front < p).all(axis=1).any() for p in front]]
    inner = front[(front[:, 0] > front[:, 0].min() + 0.1)]
    for point in inner[:-1]:
        near = corners[np.abs(corners[:, 0] * signs[0] - point[0]) < 2e-3][:, 1] * signs[1]
        assert near.min() - 1e-3 <= point[1] <= near.max() + 1e-3
    assert not plot.front(make_solution(3), tasks=(0, 1)).containers
    assert png(ax.figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [plot.front, plot.pairs, plot.parallel])
def test_standard_deviations_are_drawn_for_three_tasks(draw):
    solution = make_solution(3)
    std = jnp.full_like(solution.front.scores, 0.05).at[0].set(jnp.nan)
    front = Front(solution.front.coefficients, solution.front.scores, std)

    def lines(drawn):
        axes = drawn.axes if isinstance(drawn, Figure) else [drawn]
        png(axes[0].figure)  # lines in space are laid out when drawn
        found: list[Any] = [x for ax in axes for x in ax.collections]
        found = [x for x in found if "Line" in type(x).__name__]
        return sum(len(x.get_segments()) for x in found)

    assert lines(draw(make_solution(3, front=front))) == lines(draw(solution)) + (
        6 if draw is plot.pairs else 3
    ) * (len(front) - 1)


def test_front_without_verification_or_uniform_merge():
    solution = make_solution(2, verified=None, num_verified=0)
    few = Samples(solution.samples.coefficients[:3], solution.samples.scores[:3])
    ax = plot.front(make_solution(2, verified=None, num_verified=0, samples=few))
    shown = {text.get_text() for text in ax.get_legend().get_texts()}
    assert shown == {"evaluated", "front, predicted", "base", "expert c0", "expert c1"}
    assert not ax.lines


def test_axes_that_are_given_are_drawn_on():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    solution = make_solution(2)
    assert plot.front(solution, ax=left) is left
    assert plot.parallel(solution, ax=right) is right
    below = Figure().add_subplot()
    assert plot.contours(solution, ax=below) is below
    space = Figure().add_subplot(projection="3d")
    assert plot.front(make_solution(3), ax=space) is space


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_legend_hides_no_data(num_tasks):
    ax = plot.front(make_solution(num_tasks))
    figure = ax.figure
    figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert legend.x0 >= ax.get_window_extent().x1 - 1
    assert legend.x1 <= figure.bbox.x1


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
def test_pairs_draw_every_pair_once(num_tasks):
    directions = ("minimize", *["maximize"] * (num_tasks - 1))
    solution = make_solution(num_tasks, directions=directions)
    figure = plot.pairs(solution)
    visible = [ax for ax in figure.axes if ax.get_visible()]
    assert len(visible) == num_tasks * (num_tasks - 1) // 2
    scores = np.asarray(solution.front.scores)
    pairs = [(j, i) for i in range(1, num_tasks) for j in range(i)]
    for ax, (x, y) in zip(visible, pairs, strict=True):
        np.testing.assert_allclose(points(ax, "front, predicted"), scores[:, [x, y]])
    assert "lower is better" in figure.axes[-num_tasks + 1].get_xlabel()
    assert len(figure.legends) == 1
    assert png(figure)


@pytest.mark.parametrize("num_tasks", [2, 3, 8])
def test_parallel_puts_the_better_score_higher(num_tasks):
    directions = ("minimize", *["maximize"] * (num_tasks - 1))
    solution = make_solution(num_tasks, directions=directions)
    ax = plot.parallel(solution)
    predicted = ax.lines[: len(solution.front)]
    heights = np.array([line.get_ydata() for line in predicted])
    scores = np.array(solution.front.scores)
    scores[:, 0] *= -1
    np.testing.assert_array_equal(np.argsort(heights, axis=0), np.argsort(scores, axis=0))
    drawn = [text.get_text() for text in ax.texts]
    assert len(drawn) == 2 * num_tasks
    assert float(drawn[0]) < float(drawn[1])  # the lowest, best score stands at the top
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(solution.task_names)
    assert png(ax.figure)


def test_parallel_with_a_constant_task():
    solution = make_solution(2)
    flat = Front(solution.front.coefficients, solution.front.scores.at[:, 1].set(0.5))
    samples = Samples(
        solution.samples.coefficients, solution.samples.scores.at[:, 1].set(0.5)
    )
    solution = make_solution(2, front=flat, samples=samples, verified=None, num_verified=0)
    assert png(plot.parallel(solution).figure)


def test_a_failed_run_can_be_drawn():
    assert png(plot.front(failed_solution()).figure)
    assert png(plot.pairs(failed_solution()))


def test_contours_predict_on_the_plane_that_is_held():
    seen = []
    truth = make_solution(3)

    def surrogate(c):
        seen.append(np.asarray(c))
        return truth.surrogate(c)

    solution = make_solution(3, surrogate=surrogate)
    ax = plot.contours(solution, "task 1", ("c2", 0), held=(9.0, 0.25, 9.0), num_points=7)
    (grid,) = seen
    assert grid.shape == (49, 3)
    np.testing.assert_allclose(grid[:, 1], 0.25)
    np.testing.assert_allclose(np.unique(grid[:, 0]), np.linspace(0, 1, 7), atol=1e-6)
    assert ax.get_xlabel() == "coefficient of c2"
    assert ax.get_ylabel() == "coefficient of c0"
    assert ax.get_title().startswith("others held at 0.25")
    assert png(ax.figure)


def test_contours_show_measured_scores_on_the_colours_of_the_prediction():
    solution = make_solution(3)
    ax = plot.contours(solution, task=0, coefficients=(0, 1))
    scatters: Any = [x for x in ax.collections if isinstance(x, PathCollection)]
    elsewhere, here = scatters
    # Base and two experts lie on the plane c2 = 0; two failures lie nowhere.
    np.testing.assert_allclose(here.get_offsets(), [[0, 0], [1, 0], [0, 1]])
    np.testing.assert_allclose(here.get_array(), solution.samples.scores[:3, 0])
    assert len(elsewhere.get_offsets()) == len(solution.samples) - 3 - 2
    filled = ax.collections[0]
    assert here.get_clim() == elsewhere.get_clim() == filled.get_clim()
    assert {text.get_text() for text in ax.texts} == {"base", "expert c0", "expert c1"}


def test_contours_of_a_constant_surrogate():
    solution = make_solution(2, surrogate=lambda c: jnp.full((len(c), 2), 0.5))
    samples = Samples(
        solution.samples.coefficients, jnp.full_like(solution.samples.scores, 0.5)
    )
    solution = make_solution(2, surrogate=solution.surrogate, samples=samples)
    assert png(plot.contours(solution).figure)


@pytest.mark.parametrize("num_tasks", [2, 8])
def test_predicted_vs_verified_shows_every_evaluation(num_tasks):
    solution = make_solution(num_tasks)
    figure = plot.predicted_vs_verified(solution)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == list(solution.task_names)
    predicted = np.asarray(solution.surrogate(solution.samples.coefficients))
    measured = np.asarray(solution.samples.scores)
    for t, ax in enumerate(panels):
        both = np.stack([predicted[:, t], measured[:, t]], axis=1)
        fitted, verified = both[:-NUM_VERIFIED], both[-NUM_VERIFIED:]
        fitted = fitted[np.isfinite(fitted).all(axis=1)]
        np.testing.assert_allclose(points(ax, "evaluated to fit"), fitted)
        np.testing.assert_allclose(points(ax, "evaluated to verify"), verified)
        error = np.abs(verified[:, 0] - verified[:, 1]).mean()
        assert f"off by {error:.2g} in {NUM_VERIFIED} verified" in ax.texts[0].get_text()
    assert png(figure)


def test_a_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "mapjax\[plot\]"'):
        plot.front(make_solution(2))


def test_pictures_load_late_and_leave_pyplot_alone():
    code = """
import sys, mapjax.plot
assert "matplotlib" not in sys.modules
import matplotlib.figure
from mapjax.plot._figure import new_figure
new_figure(1, 1).add_subplot(projection="3d")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
