"""Host-side checks of what transforms are given, before anything is traced."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from mapjax._tensors import kept_tensors
from mapjax.task_vectors import TaskVectors


def check_number(name: str, value: Any) -> None:
    """Refuse anything but one finite real number.

    Raises:
        ValueError: If it is something else.
    """
    real = isinstance(value, int | float | np.integer | np.floating)
    if not real or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"`{name}` is {value!r}, but must be one finite number.")


def check_density(value: Any) -> None:
    """Refuse a share of entries to keep that is outside (0, 1].

    Raises:
        ValueError: If it is.
    """
    check_number("density", value)
    if not 0 < value <= 1:
        raise ValueError(
            f"`density` is {value}, but must be in (0, 1]: it is the share of entries to "
            "keep, 1 for all of them."
        )


def check_scope(value: Any) -> None:
    """Refuse anything but 'tensor' and 'global'.

    Raises:
        ValueError: If it is something else.
    """
    if value not in ("tensor", "global"):
        raise ValueError(
            f"`scope` is {value!r}: pass 'tensor' to compare entries within each tensor, or "
            "'global' to compare them over the whole model."
        )


def check_real(task_vectors: TaskVectors, rule: str) -> None:
    """Refuse complex vectors, for a rule that reads signs.

    Raises:
        ValueError: If a tensor is complex; its key path is named.
    """
    for path, v in kept_tensors(task_vectors).items():
        if jnp.issubdtype(v.dtype, jnp.complexfloating):
            raise ValueError(
                f"`{rule}` compares signs, but leaf {path} is {v.dtype}: store its real and "
                "imaginary parts as two leaves, or use a transform without signs, such as "
                "`mapjax.transforms.dare`."
            )


def check_share(name: str, value: Any, usual: str) -> None:
    """Refuse what is not a number from 0 to 1.

    Raises:
        ValueError: If it is something else.
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(
            f"`{name}` is {value}: pass a number from 0 to 1, such as {usual}."
        )


def check_positive(name: str, value: Any, usual: str) -> None:
    """Refuse what is not a positive number.

    Raises:
        ValueError: If it is something else.
    """
    check_number(name, value)
    if not value > 0:
        raise ValueError(f"`{name}` is {value}: pass a positive number, such as {usual}.")
