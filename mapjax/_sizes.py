"""Sizes of arrays whose number of rows is known only when they come."""

import numpy as np

USUAL_POINTS = 512
"""How many points a front has at most that was traced with the defaults, nearly always."""


def room_for(count: int, least: int = 1) -> int:
    """Round a number of rows up to a power of two, so that few sizes are compiled."""
    return max(least, 1 << max(count - 1, 0).bit_length())


def padded(points: np.ndarray, least: int = 1) -> np.ndarray:
    """Repeat the first row up to the room for that many, which changes no front."""
    return _fill(points, points[0], room_for(len(points), least))


def usual(points: np.ndarray, filler: np.ndarray | None = None) -> np.ndarray:
    """Repeat a row, or else the first, up to the usual number; more points stay as they are."""
    row = points[0] if filler is None else filler.astype(points.dtype)
    return _fill(points, row, max(len(points), USUAL_POINTS))


def _fill(points: np.ndarray, row: np.ndarray, room: int) -> np.ndarray:
    return np.concatenate([points, np.repeat(row[None], room - len(points), axis=0)])
