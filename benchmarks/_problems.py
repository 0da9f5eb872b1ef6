"""Test problems of the field, of any array library, and their true fronts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mapjax import pareto


def dtlz1(x: Any, xp: Any, num: int = 3) -> Any:
    """Deb, Thiele, Laumanns and Zitzler (2005): a plane behind many local fronts."""
    rest = x[..., num - 1 :] - 0.5
    ripples = xp.sum(rest**2 - xp.cos(20 * np.pi * rest), axis=-1)
    g = 100 * (rest.shape[-1] + ripples)
    return 0.5 * (1 + g)[..., None] * _nested(x[..., : num - 1], 1 - x[..., : num - 1], xp)


def dtlz2(x: Any, xp: Any, num: int = 3) -> Any:
    """Deb, Thiele, Laumanns and Zitzler (2005): a sphere."""
    g = xp.sum((x[..., num - 1 :] - 0.5) ** 2, axis=-1)
    angle = x[..., : num - 1] * (np.pi / 2)
    return (1 + g)[..., None] * _nested(xp.cos(angle), xp.sin(angle), xp)


def dtlz7(x: Any, xp: Any, num: int = 3) -> Any:
    """Deb, Thiele, Laumanns and Zitzler (2005): four patches."""
    g = 1 + 9 * xp.mean(x[..., num - 1 :], axis=-1)
    f = x[..., : num - 1]
    h = num - xp.sum(f / (1 + g)[..., None] * (1 + xp.sin(3 * np.pi * f)), axis=-1)
    return xp.concatenate([f, ((1 + g) * h)[..., None]], axis=-1)


def _nested(first: Any, last: Any, xp: Any) -> Any:
    """A b c, a b (1 - c), a (1 - b), 1 - a; or cosines and sines for these."""
    parts = [xp.prod(first, axis=-1)]
    for k in reversed(range(first.shape[-1])):
        parts.append(xp.prod(first[..., :k], axis=-1) * last[..., k])
    return xp.stack(parts, axis=-1)


def zdt(x: Any, xp: Any, kind: int) -> Any:
    """Zitzler, Deb and Thiele (2000): convex, concave, in pieces."""
    g = 1 + 9 * xp.mean(x[..., 1:], axis=-1)
    return xp.stack(
        [x[..., 0], g * _zdt_shape(x[..., 0], x[..., 0] / g, xp, kind)], axis=-1
    )


def _zdt_shape(first: Any, ratio: Any, xp: Any, kind: int) -> Any:
    if kind == 2:
        return 1 - ratio**2
    wave = ratio * xp.sin(10 * np.pi * first) if kind == 3 else 0
    return 1 - xp.sqrt(ratio) - wave


def plane(num: int, partitions: int) -> np.ndarray:
    return np.asarray(pareto.das_dennis(num, partitions), float)


def sphere(num: int, partitions: int) -> np.ndarray:
    points = plane(num, partitions)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def zdt_front(kind: int) -> np.ndarray:
    first = np.linspace(0, 1, 1001)
    points = np.stack([first, _zdt_shape(first, first, np, kind)], axis=1)
    return points[np.asarray(pareto.non_dominated(points))]


def dtlz7_front() -> np.ndarray:
    grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 150)]), axis=-1).reshape(-1, 2)
    points = dtlz7(np.pad(grid, ((0, 0), (0, 1))), np)
    return points[np.asarray(pareto.non_dominated(points))]


# Coefficients, generations, directions and points of the true front, as in Deb and Jain.
PROBLEMS: dict[str, tuple[Any, int, int, np.ndarray, Callable[[], np.ndarray]]] = {
    "ZDT1": (lambda x, xp: zdt(x, xp, 1), 30, 300, plane(2, 99), lambda: zdt_front(1)),
    "ZDT2": (lambda x, xp: zdt(x, xp, 2), 30, 300, plane(2, 99), lambda: zdt_front(2)),
    "ZDT3": (lambda x, xp: zdt(x, xp, 3), 30, 300, plane(2, 99), lambda: zdt_front(3)),
    "DTLZ1": (dtlz1, 7, 400, plane(3, 12), lambda: plane(3, 30) / 2),
    "DTLZ2, 3": (dtlz2, 12, 250, plane(3, 12), lambda: sphere(3, 30)),
    "DTLZ2, 5": (
        lambda x, xp: dtlz2(x, xp, 5),
        14,
        350,
        plane(5, 5),
        lambda: sphere(5, 9),
    ),
    "DTLZ7": (dtlz7, 22, 400, plane(3, 12), dtlz7_front),
}
