"""What a user did wrong on the command line."""


class UsageError(ValueError):
    """An argument that cannot be used; its message is shown without a traceback."""
