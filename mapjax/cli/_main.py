"""Commands, and what a user sees when one fails."""

import sys
from collections.abc import Sequence
from importlib import metadata


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; the entry point of `mapjax`.

    Args:
        args: What follows `mapjax` on the command line; by default `sys.argv[1:]`.

    `mapjax --version` prints the version.

    Raises:
        SystemExit: With code 2 if an argument is wrong, 1 if a package is missing, and a
            sentence on the standard error stream.
    """
    args = sys.argv[1:] if args is None else args
    if list(args) == ["--version"]:
        print(f"mapjax {metadata.version('mapjax')}")
        return
    try:
        from tyro.extras import SubcommandApp
    except ImportError:
        _fail('The command line is an extra. Install it: pip install "mapjax[cli]"', 1)

    from mapjax.cli._demo import demo
    from mapjax.cli._errors import UsageError

    app = SubcommandApp()
    app.command(name="demo")(demo)
    try:
        app.cli(prog="mapjax", description=_DESCRIPTION, args=args)
    except UsageError as error:
        _fail(str(error), 2)
    except ImportError as error:
        if "pip install" not in str(error):
            raise
        _fail(str(error), 1)


_DESCRIPTION = "Pareto fronts of merged models, from a handful of evaluations."


def _fail(message: str, code: int) -> None:
    print(f"mapjax: {message}", file=sys.stderr)
    raise SystemExit(code)
