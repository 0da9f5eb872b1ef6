"""The configuration of `mapjax front`, read and checked before any work."""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any

from mapjax.cli._errors import UsageError
from mapjax.cli._rules import Rule, read_rule

DRIVERS = ("map", "bayesian", "nested")
MAY_CHANGE = ("output", "driver", "budget", "seed", "bounds")
"""What may change between two runs that share their samples; options may too."""


@dataclass(frozen=True)
class Config:
    """What a run is made of.

    Attributes:
        text: The file as it was given.
        output: The run folder.
        base: The pretrained parameters; None for a function without files.
        experts: Names and paths of the fine-tuned ones.
        evaluator: "package.module:function".
        driver: One of `DRIVERS`.
        num_coefficients: How many the function takes; None for one that makes an
            evaluator.
        separator: Where names of tensors are nested into a tree; None to leave them flat.
        rule: What edits the task vectors.
        seed: Of the key.
        options: Further arguments of the driver.
    """

    text: str
    output: Path
    base: Path | None
    experts: dict[str, Path]
    evaluator: str
    driver: str
    num_coefficients: int | None
    separator: str | None
    rule: Rule
    seed: int
    options: dict[str, Any]


def read_config(text: str, folder: Path) -> Config:
    """Read a configuration.

    Args:
        text: The TOML.
        folder: What paths in it are relative to.

    Raises:
        UsageError: If it is no TOML, or a key is unknown, missing or has a wrong value. The
            key is named.
    """
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers that are too long
        raise UsageError(f"The configuration is no TOML: {error}.") from error
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        raise UsageError(
            f"The configuration has the unknown key {unknown[0]!r}; the known ones are "
            f"{', '.join(_KEYS)}."
        )
    for name in ("output", "evaluator"):
        if name not in given:
            raise UsageError(f"The configuration lacks `{name}`: {_KEYS[name].wants}.")
    for name, value in given.items():
        if not _KEYS[name].accepts(value):
            raise UsageError(
                f"`{name}` is {_short(value)}, but must be {_KEYS[name].wants}."
            )
    driver = given.get("driver", "map")
    experts = given.get("experts", {})
    if not isinstance(experts, dict):
        experts = {f"expert_{i}": path for i, path in enumerate(experts)}
    config = Config(
        text=text,
        output=folder / expanduser(given["output"]),
        base=folder / expanduser(given["base"]) if "base" in given else None,
        experts={name: folder / expanduser(path) for name, path in experts.items()},
        evaluator=given["evaluator"],
        driver=driver,
        num_coefficients=given.get("num_coefficients"),
        separator=given.get("separator"),
        rule=_rule(given.get("transform", "linear"), given.get("seed", 0)),
        seed=given.get("seed", 0),
        options={n: v for n, v in given.items() if n in _OPTIONS},
    )
    _check(config)
    return config


def _check(config: Config) -> None:
    if (config.base is None) != (not config.experts):
        raise UsageError("Say both `base` and `experts`, or neither, in the configuration.")
    count = config.num_coefficients
    if config.base is None and count is None:
        raise UsageError(
            "The configuration lacks `base` and `experts`, or, for an evaluator that is a "
            "function of coefficients, `num_coefficients`."
        )
    if config.base is not None and count not in (None, len(config.experts)):
        raise UsageError(
            f"`num_coefficients` is {count}, but there are {len(config.experts)} `experts`: "
            "one coefficient for each."
        )
    if config.base is None and config.rule.name != "linear":
        raise UsageError("`transform` edits task vectors: say `base` and `experts` too.")
    for name in config.options:
        drivers = _OPTIONS[name].drivers
        if config.driver not in drivers:
            raise UsageError(
                f"`{name}` is no option of the driver {config.driver!r}, but of "
                f"{' and '.join(map(repr, drivers))}."
            )
    if config.driver != "nested" and "budget" not in config.options:
        raise UsageError("The configuration lacks `budget`: how many merges to evaluate.")


def _rule(given: Any, seed: int) -> Rule:
    if isinstance(given, str):
        return read_rule(given, {}, seed)
    return read_rule(given["name"], {n: v for n, v in given.items() if n != "name"}, seed)


@dataclass(frozen=True)
class _Value:
    """What a key may hold, in words and as a test, and which drivers take it."""

    wants: str
    accepts: Callable[[Any], bool]
    drivers: tuple[str, ...] = DRIVERS


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) < 1e300 and not math.isnan(value)


def _is_list(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(accepts, value))


def _is_table(value: Any, accepts: Callable[[Any], bool]) -> bool:
    whole = isinstance(value, Mapping) and bool(value)
    return whole and all(map(_is_text, value)) and all(map(accepts, value.values()))


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and least <= x < 2**31


def _is_end(value: Any) -> bool:
    return _is_number(value) or _is_list(value, _is_number)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_end, value))


def _is_function(value: Any) -> bool:
    module, colon, name = value.partition(":") if _is_text(value) else ("", "", "")
    parts = [*module.split("."), *name.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def _is_transform(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return _is_text(value)
    plain = _is_text(value.get("name"))
    return plain and all(_is_number(x) or isinstance(x, str | bool) for x in value.values())


def _one_of(*choices: str) -> _Value:
    return _Value(f"one of {', '.join(map(repr, choices))}", lambda x: x in choices)


def _texts(wants: str, *drivers: str) -> _Value:
    def accepts(value: Any) -> bool:
        return _is_text(value) or _is_list(value, _is_text)

    return _Value(wants, accepts, drivers or DRIVERS)


_SEARCHED = ("map", "bayesian")
_OPTIONS = {
    "budget": _Value("a whole number, at least 1", _whole(1)),
    "bounds": _Value(
        'two numbers, or two lists of numbers, such as [0.0, 1.0], or "simplex"',
        lambda x: x == "simplex" or _is_pair(x),
    ),
    "directions": _texts('"maximize" or "minimize", or a list of them'),
    "task_names": _Value("a list of names", lambda x: _is_list(x, _is_text)),
    "verify": _Value("a whole number, at least 0", _whole(0)),
    "surrogate": _one_of("outputs", "quadratic", "gradient"),
    "link": _texts("the name of a link, or a list of them"),
    "link_bounds": _Value("two numbers, or two lists of numbers", _is_pair),
    "ridge": _Value(
        'a number, at least 0, or "auto"',
        lambda x: x == "auto" or (_is_number(x) and x >= 0),
    ),
    "num_points": _Value("a whole number, at least 2", _whole(2)),
    "num_generations": _Value("a whole number, at least 1", _whole(1), _SEARCHED),
    "design": _Value("the name of a design", _is_text, _SEARCHED),
    "tolerance": _Value(
        "a number, at least 0", lambda x: _is_number(x) and x >= 0, _SEARCHED
    ),
    "rounds": _Value("a whole number, at least 1", _whole(1), ("map",)),
    "acquisition": _Value('"hypervolume" or "cells"', _is_text, ("bayesian",)),
    "batch_size": _Value("a whole number, at least 1", _whole(1), ("bayesian",)),
    "preference": _Value(
        "numbers, or a table from tasks to numbers",
        lambda x: _is_list(x, _is_number) or _is_table(x, _is_number),
        ("nested",),
    ),
    "pairing": _Value('"scores" or "cosine"', _is_text, ("nested",)),
    "method": _Value('"composed" or "paper"', _is_text, ("nested",)),
    "owners": _Value(
        "a table from tasks to experts", lambda x: _is_table(x, _is_text), ("nested",)
    ),
}
_KEYS = {
    "output": _Value("the path of the run folder", _is_text),
    "evaluator": _Value(
        '"package.module:function", a function that can be imported', _is_function
    ),
    "base": _Value("the path of a checkpoint", _is_text),
    "experts": _Value(
        "a table from names to paths of checkpoints, or a list of paths",
        lambda x: _is_list(x, _is_text) or _is_table(x, _is_text),
    ),
    "num_coefficients": _Value("a whole number, at least 1", _whole(1)),
    "separator": _Value("a text, such as '.'", _is_text),
    "transform": _Value(
        'the name of a rule, or a table such as { name = "ties", density = 0.2 }',
        _is_transform,
    ),
    "driver": _one_of(*DRIVERS),
    "seed": _Value("a whole number, at least 0", _whole(0)),
    **_OPTIONS,
}


def may_change() -> tuple[str, ...]:
    """List the keys that may change while a run folder keeps its samples."""
    return (*MAY_CHANGE, *(n for n in _OPTIONS if n not in ("directions", "task_names")))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
