"""What a user sees when a command cannot do its work."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """An argument that cannot be used; its message is shown without a traceback."""


class Failure(Exception):
    """Something that went wrong with the files or the data; shown without a traceback."""


class Stopped(Exception):
    """Ctrl-C, after what was done has been kept; the message says how to go on."""


@contextmanager
def told() -> Iterator[None]:
    """Show errors that name their file and its remedy as such, and not as a traceback."""
    try:
        yield
    except UsageError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        raise Failure(f"{where}{error.strerror or error}.") from error
    except ValueError as error:
        raise Failure(str(error)) from error
