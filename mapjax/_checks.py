"""What all parts refuse alike, before anything is traced."""

from typing import Any

import numpy as np


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse anything but an int of at least `least`.

    Raises:
        ValueError: If it is something else.
    """
    if not _is_whole(value) or value < least:
        raise ValueError(f"`{name}` is {value!r}, but must be an int of at least {least}.")


def check_least(name: str, value: Any, least: int) -> None:
    """Refuse what `check_count` refuses, but take None, where that is an option."""
    if value is not None:
        check_count(name, value, least)


def check_shares(num_experts: Any, num_coefficients: int) -> None:
    """Refuse a number of experts that cannot share the coefficients out evenly.

    Raises:
        ValueError: If they cannot, or it is no int of at least 1.
    """
    if not _is_whole(num_experts) or num_experts < 1 or num_coefficients % num_experts:
        raise ValueError(
            f"`num_experts` is {num_experts!r}, but must be an int of at least 1 that "
            f"divides the number of coefficients, {num_coefficients}: every expert has as "
            "many."
        )


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse anything but one of a few words.

    Raises:
        ValueError: If it is something else.
    """
    if value not in choices:
        words = ", ".join(repr(choice) for choice in choices if choice is not None)
        raise ValueError(f"`{name}` is {value!r}; choose from {words}.")


def read_bounds(
    bounds: Any, num_coefficients: int, dtype: Any, *, simplex: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of a box, one number per coefficient.

    Two entries are the lower and the upper end, of an array `[2, 2]` its rows.

    Args:
        bounds: What was given.
        num_coefficients: How many there are.
        dtype: Of both ends, and what they are compared in.
        simplex: Whether "simplex" would have been taken, too; only for the message.

    Raises:
        ValueError: If there are not two ends, each a number or one per coefficient, finite
            and lower below upper.
    """
    # A string or a dictionary has entries, too, but no ends.
    entries: Any = () if isinstance(bounds, str | dict | set) else bounds
    try:
        lower, upper = entries
        with np.errstate(over="ignore", invalid="ignore"):
            lower, upper = (
                np.broadcast_to(np.asarray(end, dtype), (num_coefficients,))
                for end in (lower, upper)
            )
            sound = (lower < upper) & np.isfinite(upper - lower)
    except (TypeError, ValueError) as error:
        words = "; drivers and designs of mixtures also take 'simplex'" if simplex else ""
        raise ValueError(
            f"`bounds` is {bounds!r}, but must be (lower, upper): two numbers, or two arrays "
            f"of {num_coefficients}{words}."
        ) from error
    if not sound.all():
        i = int(np.argmin(sound))
        raise ValueError(
            f"`bounds` of coefficient {i} are {lower[i]} and {upper[i]}, but every lower "
            "bound must be below its upper bound, and both finite."
        )
    return lower, upper


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
