"""The one error that a user is meant to read."""


class InputError(Exception):
    """Something that the user gave cannot be used.

    The message is one line that names the file or option and says what to do about it. The command
    line prints it on stderr without a traceback and exits with 1.
    """


class WriteError(InputError):
    """The disk refuses a file or folder: it is full, read-only or broken."""
