"""Sizes of arrays whose number of rows is known only when they come."""

import numpy as np

USUAL_POINTS = 512
"""How many points a front has at most that was traced with the defaults, nearly always."""


def room_for(count: int, least: int = 1) -> int:
    """Round a number of rows up to a power of two, so that few sizes are compiled."""
    return max(least, 1 << max(count - 1, 0).bit_length())


def padded(
    points: np.ndarray, least: int = 1, filler: np.ndarray | None = None
) -> np.ndarray:
    """Repeat a row up to the room for that many: the first one, which changes no front."""
    missing = room_for(len(points), least) - len(points)
    row = points[:1] if filler is None else filler[None].astype(points.dtype)
    return np.concatenate([points, np.repeat(row, missing, axis=0)])
