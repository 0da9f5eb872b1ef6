"""What commands that read and write checkpoints have in common."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapjax.cli._errors import UsageError
from mapjax.cli._rules import Rule, merge_arguments

if TYPE_CHECKING:
    from mapjax._solution import Solution
    from mapjax.io import MergePlan

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def read_memory(text: str) -> int:
    """Read an amount of memory such as 4GiB.

    Raises:
        UsageError: If it is none.
    """
    digits = text.strip().rstrip("BGIKMTbgikmt ")
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        size = int(float(digits) * _UNITS[unit.removesuffix("B") + "B" if unit else ""])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise UsageError(f"--memory is {text!r}; write it as 4GiB or 500MB.")
    return size


def read_pairs(option: str, pairs: Sequence[str]) -> dict[str, float]:
    """Read `name=number` pairs.

    Raises:
        UsageError: If one is none, or a name comes twice.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, number = pair.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not name or name in found or value != value:
            raise UsageError(
                f"{option} has {pair!r}; write each task once, such as mnist=0.9."
            )
        found[name] = value
    return found


def read_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` pairs, whose values are numbers or words.

    Raises:
        UsageError: If one is none.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise UsageError(
                f"--options has {pair!r}; write name=value, such as window=0.1."
            )
        for kind in (int, float, str):
            try:
                found[name] = kind(value)
                break
            except ValueError:
                continue
    return found


def check_paths(paths: Mapping[str, Path]) -> None:
    """Refuse paths where nothing is.

    Raises:
        UsageError: If there is one.
    """
    for name, path in paths.items():
        if not path.exists():
            raise UsageError(f"{name} is {path}, where there is nothing.")


def stamp(path: Path) -> list[list[int]]:
    """Give sizes and times of a checkpoint's files, which tell if one was written again.

    Raises:
        OSError: If it is gone.
    """
    folder = path if path.is_dir() else path.parent
    sharded = path.is_dir() or path.suffix == ".json"
    files = sorted(folder.rglob("[!.]*.safetensors")) if sharded else [path]
    return [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def merge_checkpoints(
    base: Path,
    experts: Mapping[str, Path],
    output: Path,
    coefficients: Any,
    *,
    rule: Rule,
    memory: int,
    dtype: str | None = None,
    dry_run: bool = False,
    progress: bool | None = None,
    solution: "Solution | None" = None,
    purpose: str = "",
) -> "MergePlan":
    """Merge files by a rule, and write the recipe beside the result."""
    from mapjax.io import merge_files, save_model_card
    from mapjax.io._model_card import card_path

    card_path(output)  # before the work
    plan = merge_files(
        base,
        experts,
        output,
        coefficients,
        **merge_arguments(rule),
        dtype=_dtype(dtype),
        memory=memory,
        dry_run=dry_run,
        progress=progress,
    )
    if not dry_run:
        save_model_card(
            output,
            base=base,
            experts=experts,
            coefficients=coefficients,
            rule=str(rule),
            plan=plan,
            solution=solution,
            purpose=purpose,
        )
    return plan


def _dtype(name: str | None) -> Any:
    if name is None:
        return None
    import jax.numpy as jnp

    from mapjax.io._dtypes import BY_NAME

    if name not in BY_NAME or not jnp.issubdtype(BY_NAME[name], jnp.floating):
        raise UsageError(
            f"--dtype is {name!r}; use float32, float16, bfloat16 or another floating-point "
            "dtype."
        )
    return BY_NAME[name]


def size(nbytes: float | int) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"


def print_json(value: Any) -> None:
    """Print a value as the one thing on the standard output; numbers that are none as null."""
    print(json.dumps(_finite(value), indent=1), file=sys.stdout)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (
        value != value or value in (float("inf"), -float("inf"))
    ):
        return None
    return value
