"""Sizes of arrays whose number of rows is known only when they come."""

USUAL_POINTS = 512
"""How many points a front has at most that was traced with the defaults, nearly always."""


def room_for(count: int, least: int = 1) -> int:
    """Round a number of rows up to a power of two, so that few sizes are compiled."""
    return max(least, 1 << max(count - 1, 0).bit_length())
