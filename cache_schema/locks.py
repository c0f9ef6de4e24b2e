"""Locks that keep a second writer out of a folder, also on another machine where the file system tells."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from cache_schema.errors import InputError
from cache_schema.files import reporting
from cache_schema.reading import open_to_append

HELD: Final = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
"""What a lock that somebody else holds answers; anything else means that this file system has no locks."""


@runtime_checkable
class HasDescriptor(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Give its descriptor."""


def lock_file(file: HasDescriptor, refusal: str) -> bool:
    """Lock an open file until it is closed, however its process ends, and do not wait for it.

    Args:
        file: Open for writing: over a network others are asked only then.
        refusal: What to say if another holds it.

    Returns:
        Whether the file system could; where it has no locks, nothing keeps others out.

    Raises:
        InputError: If another process holds the lock, or this one does already.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise InputError(refusal) from None
        return False
    return True


@contextmanager
def holding(path: Path, refusal: str) -> Iterator[bool]:
    """Hold the lock of a file through a block; the file is made if it is not there, and stays.

    Args:
        path: Of a file that nobody removes while another may hold it; its folder is there.
        refusal: What to say if another holds it.

    Yields:
        Whether the file system could.

    Raises:
        InputError: If another holds the lock, or the file cannot be opened.
    """
    with reporting(path):
        file = open_to_append(path)
    with file:
        yield lock_file(file, refusal)
