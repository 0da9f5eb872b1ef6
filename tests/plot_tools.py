"""What the tests of pictures share: solutions to draw, and what was drawn."""

import io
from typing import Any

import jax.numpy as jnp
import numpy as np

from mapjax import plot as _plot
from mapjax._result import RESULTS, Front, Samples
from mapjax._solution import Solution

NUM_VERIFIED = 4

plot: Any = _plot  # what is read back from matplotlib has no useful static types


def make_solution(num_tasks, *, directions=None, num_coefficients=None, **changes) -> Any:
    """A solution of quadratics whose optima are near the experts, with two failures."""
    n = num_coefficients or num_tasks
    directions = directions or ("maximize",) * num_tasks
    signs = np.array([1 if d == "maximize" else -1 for d in directions])
    random = np.random.default_rng(num_tasks)
    optima = 0.9 * np.eye(n)[np.arange(num_tasks) % n]

    def surrogate(c):
        c = np.asarray(c)
        scores = 0.9 - 0.3 * ((c[:, None] - optima) ** 2).sum(-1)
        return jnp.asarray(signs * scores, jnp.float32)

    front = jnp.asarray(random.dirichlet(np.ones(n), 30), jnp.float32)
    sampled = [np.zeros((1, n)), np.eye(n), np.full((1, n), 1 / n), random.random((10, n))]
    sampled = jnp.asarray(np.concatenate([*sampled, front[:NUM_VERIFIED]]), jnp.float32)
    scores = np.array(surrogate(sampled)) + random.normal(
        0, 0.02, (len(sampled), num_tasks)
    )
    scores[n + 3] = np.nan
    scores[n + 4, 0] = np.inf
    samples = Samples(sampled, jnp.asarray(scores, jnp.float32))
    names = tuple(f"task {t}" for t in range(num_tasks))
    fields: dict[str, Any] = dict(
        front=Front(front, surrogate(front)),
        samples=samples,
        verified=Front(sampled[-NUM_VERIFIED:], samples.scores[-NUM_VERIFIED:]),
        surrogate=surrogate,
        result=RESULTS.successful,
        stats={},
        num_verified=NUM_VERIFIED,
        task_names=names,
        coefficient_names=tuple(f"c{i}" for i in range(n)),
        directions=directions,
    )
    return Solution(**fields | changes)


def failed_solution():
    """What a run leaves that measured nothing but NaN."""
    samples = make_solution(2).samples
    samples = Samples(samples.coefficients, jnp.full_like(samples.scores, jnp.nan))
    front = Front(jnp.zeros((0, 2)), jnp.zeros((0, 2)))
    return make_solution(2, samples=samples, front=front, verified=front, surrogate=None)


def points(ax, label):
    """What is drawn under a label of the legend."""
    for collection in ax.collections:
        if collection.get_label() == label:
            drawn = getattr(collection, "_offsets3d", None)
            if drawn is None:
                return np.asarray(collection.get_offsets())
            return np.stack([np.asarray(x) for x in drawn], axis=1)
    raise AssertionError(f"nothing is labelled {label!r}")


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()
