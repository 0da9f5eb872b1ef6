"""What a fit refuses, and how it says so."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mapjax._checks import check_choice
from mapjax.surrogate._links import LINKS


def check_samples(coefficients: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return samples as NumPy arrays `[K, N]` and `[K, T]`, or say what is wrong."""
    c, s = np.asarray(coefficients), np.asarray(scores)
    for name, x, axes in (
        ("coefficients", c, "[samples, coefficients]"),
        ("scores", s, "[samples, tasks]"),
    ):
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(
                f"`{name}` has shape {x.shape}, expected {axes} with at least one of "
                "each. Reshape it, such as `scores[:, None]` for one task."
            )
    if len(c) != len(s):
        raise ValueError(
            f"`coefficients` has {len(c)} rows and `scores` has {len(s)}. Pass one row of "
            "scores per row of coefficients, NaN where a score is missing."
        )
    # ml_dtypes' bfloat16 is no NumPy float: look at values in double precision.
    c, s = c.astype(np.float64), s.astype(np.float64)
    if not np.isfinite(c).all():
        row = int(np.argmin(np.isfinite(c).all(axis=1)))
        raise ValueError(
            f"`coefficients[{row}]` is {c[row]}, expected finite numbers. Drop the row; "
            "only scores may be missing (NaN)."
        )
    for task in np.flatnonzero(~np.isfinite(s).any(axis=0)):
        raise ValueError(
            f"`scores[:, {task}]` has no finite score, so there is nothing to fit. Drop "
            "the task, or evaluate the base alone and check its metric."
        )
    return c, s


def check_width(shape: tuple[int, ...], num_coefficients: int) -> None:
    """Refuse coefficients `[..., coefficients]` of another number than that of the fit."""
    if not shape or shape[-1] != num_coefficients:
        raise ValueError(
            f"`coefficients` has shape {shape}, but this surrogate was fitted to "
            f"{num_coefficients} coefficients. Pass an array [..., {num_coefficients}]."
        )


def check_links(link: str | Sequence[str], num_tasks: int) -> tuple[str, ...]:
    """Return one known link per task, or say what is wrong."""
    links = (link,) * num_tasks if isinstance(link, str) else tuple(link)
    for each in links:
        check_choice("link", each, tuple(LINKS))
    if len(links) != num_tasks:
        raise ValueError(
            f"`link` names {len(links)} links for {num_tasks} tasks. Pass one per task, "
            "or a single string for all of them."
        )
    return links


def check_bounds(
    bounds: Sequence[Any] | None, links: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each link reads of the bounds as `lower` and `upper`, one per task.

    None and NaN are no bound, as an infinite one. What a link does not read becomes 0 or
    1 above the lower bound, so that `upper - lower` is the width of the unit score.
    """
    if bounds is None:
        bounds = (0.0, 1.0)
    if len(bounds) != 2:
        raise ValueError(
            f"`bounds` has {len(bounds)} entries, expected `(lower, upper)`, each a "
            "number or one per task."
        )
    lower, upper = (_one_per_task("bounds", bound, len(links)) for bound in bounds)
    lower = np.where(np.isnan(lower), -np.inf, lower)
    upper = np.where(np.isnan(upper), np.inf, upper)
    for task, link in enumerate(links):
        where = f"`bounds` of task {task} are [{lower[task]:g}, {upper[task]:g}]"
        if not lower[task] < upper[task]:
            raise ValueError(f"{where}, expected lower < upper. Swap or correct them.")
        needed = {"sigmoid": [lower[task], upper[task]], "softplus": [lower[task]]}
        if not np.isfinite(needed.get(link, [])).all():
            ends = "both ends" if link == "sigmoid" else "the lower end"
            raise ValueError(
                f"{where}, but its link {link!r} needs {ends} finite. Pass finite bounds "
                "or another link."
            )
    bounded = np.array(links) != "identity"
    lower = np.where(bounded, lower, 0.0)
    return lower, np.where(np.array(links) == "sigmoid", upper, lower + 1.0)


def check_range(
    scores: np.ndarray, links: tuple[str, ...], lower: np.ndarray, upper: np.ndarray
) -> None:
    """Refuse scores that a link cannot reach; a rounding error outside is let pass."""
    for task, link in enumerate(links):
        if link == "identity":
            continue
        top = upper[task] if link == "sigmoid" else np.inf
        slack = 1e-6 * (upper[task] - lower[task])
        column = scores[np.isfinite(scores[:, task]), task]
        outside = column[(column < lower[task] - slack) | (column > top + slack)]
        if outside.size:
            raise ValueError(
                f"`scores[:, {task}]` holds {outside[0]:g}, outside the range "
                f"[{lower[task]:g}, {top:g}] of its link {link!r}. Pass bounds of "
                "the scores that hold every one (`link_bounds` of a driver, `bounds` of a "
                "fit), or link='identity'."
            )


def check_num_examples(num_examples: Any, num_tasks: int) -> np.ndarray:
    """Return the margins that half a count makes, one per task."""
    if num_examples is None:
        return np.full(num_tasks, 1e-4)
    counts = _one_per_task("num_examples", num_examples, num_tasks)
    if not (counts >= 1).all():
        raise ValueError(
            f"`num_examples` is {num_examples}, expected positive counts. Pass the number "
            "of examples behind each task's score, or None."
        )
    return 0.5 / counts


def check_weights(weights: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return weights `[K, 1]` or `[K, T]`, or say what is wrong."""
    w = np.ones(shape[0]) if weights is None else np.asarray(weights, np.float64)
    if w.shape not in (shape[:1], shape):
        raise ValueError(
            f"`weights` has shape {w.shape}, expected {shape[:1]} or {shape}. Pass one "
            "weight per sample, or one per score."
        )
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError(
            "`weights` holds negative, NaN or infinite values, expected finite ones from "
            "0 up. Pass 0 to leave a sample out."
        )
    return w.reshape(shape[0], -1)


def check_jacobian(jacobian: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Return which gradients are known, `[samples, tasks]`, or say what is wrong."""
    if jacobian is None:
        return np.zeros(shape[:2], bool)
    given = np.asarray(jacobian)
    if given.shape != shape:
        raise ValueError(
            f"`jacobian` has shape {given.shape}, expected {shape}: [samples, tasks, "
            "coefficients]. Fill with NaN the samples that have no gradient."
        )
    return np.asarray(np.isfinite(given.astype(np.float64)).all(axis=2))


def check_ridge(ridge: Any) -> None:
    """Refuse what is neither a name nor a penalty."""
    if isinstance(ridge, str):
        if ridge != "auto":
            raise ValueError(
                f"Unknown `ridge` {ridge!r}. Choose from None, 'auto' or a number."
            )
    elif ridge is not None and not (np.isfinite(ridge) and ridge >= 0):
        raise ValueError(
            f"`ridge` is {ridge}, expected a finite number from 0 up. Pass 'auto' to have "
            "it chosen by leave-one-out error."
        )


def _one_per_task(name: str, value: Any, num_tasks: int) -> np.ndarray:
    x = np.asarray(value, np.float64)
    if x.shape not in ((), (num_tasks,)):
        raise ValueError(
            f"`{name}` holds an entry of shape {x.shape}, expected a number or one per "
            f"task ({num_tasks})."
        )
    return np.broadcast_to(x, (num_tasks,))
