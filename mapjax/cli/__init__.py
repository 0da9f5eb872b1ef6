"""The command line, `mapjax`; needs the extra `cli`."""

from mapjax.cli._main import main as main
