"""What all parts refuse alike, before anything is traced."""

from typing import Any

import numpy as np


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse anything but an int of at least `least`.

    Raises:
        ValueError: If it is something else.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"`{name}` is {value!r}, but must be an int of at least {least}.")


def check_least(name: str, value: Any, least: int) -> None:
    """Refuse what `check_count` refuses, but take None."""
    if value is not None:
        check_count(name, value, least)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse anything but one of a few words.

    Raises:
        ValueError: If it is something else.
    """
    if value not in choices:
        words = ", ".join(repr(choice) for choice in choices if choice is not None)
        raise ValueError(f"`{name}` is {value!r}; choose from {words}.")
