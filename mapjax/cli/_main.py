"""Commands, and what a user sees when one fails."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

_COMMANDS = {
    "demo": "Find the front of three merged digit classifiers, in about half a minute.",
    "inspect": "Look at checkpoints before merging them: what fits, and what does not.",
    "merge": "Merge checkpoints into one, larger than memory too.",
    "front": "Find the front of merged checkpoints, as a configuration says.",
    "plot": "Draw a run.",
    "pick": "Take one merge of a run, for a preference, and save it.",
}
_DESCRIPTION = """Pareto fronts of merged models, from a handful of evaluations.

Each command explains itself, with examples: mapjax merge --help. Exit codes: 0 done, 1 it
failed, 2 a wrong argument, 130 stopped by Ctrl-C. Completion of the shell (bash, zsh or
tcsh): mapjax --tyro-write-completion bash ~/.local/share/bash-completion/completions/mapjax
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; the entry point of `mapjax`.

    Args:
        args: What follows `mapjax` on the command line; by default `sys.argv[1:]`.

    `mapjax --version` prints the version.

    Raises:
        SystemExit: With code 2 if an argument is wrong, 1 if a package is missing or the
            command fails, 130 after Ctrl-C, and a sentence on the standard error stream.
    """
    args = [_at_home(arg) for arg in (sys.argv[1:] if args is None else args)]
    if args == ["--version"]:
        print(f"mapjax {metadata.version('mapjax')}")
        return
    try:
        from tyro.extras import SubcommandApp
    except ImportError:
        _fail('The command line is an extra. Install it: pip install "mapjax[cli]"', 1)

    from mapjax.cli._errors import Failure, Stopped, UsageError

    app = SubcommandApp()
    for name, summary in _COMMANDS.items():
        # What is not run is not imported: help comes at once. Completion needs all of them.
        all_of_them = any(arg.startswith("--tyro-") for arg in args)
        if all_of_them or name in args[:1]:
            app.command(name=name)(_load(name))
        else:
            app.command(name=name, help=summary)(_unused)
    try:
        app.cli(prog="mapjax", description=_DESCRIPTION, args=args)
    except UsageError as error:
        _fail(str(error), 2)
    except Failure as error:
        _fail(str(error), 1)
    except (Stopped, KeyboardInterrupt) as error:
        _fail(str(error) or "Stopped.", 130)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        _fail(str(error), 1)


def _load(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"mapjax.cli._{name}"), name)


def _unused() -> None:
    """Stand for a command that is not run."""


def _at_home(arg: str) -> str:
    """Expand ~, also where shells do not: in --output=~/merged."""
    option, equals, value = arg.partition("=") if arg.startswith("-") else ("", "", arg)
    return option + equals + os.path.expanduser(value)


def _fail(message: str, code: int) -> None:
    print(f"mapjax: {message}", file=sys.stderr)
    raise SystemExit(code)
