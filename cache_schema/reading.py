"""Files that others may have made: opened only if they are files, read only up to a size.

Reading a pipe waits for a writer that may never come, and a device has no end. What is refused raises
OSError, as whatever else cannot be read does, so that every reader has one answer to both.
"""

import errno
import os
import stat
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Final

MAX_DOCUMENT_BYTES: Final = 2**26
"""Of a document, a table or a log: fifty times the manifest of all BraTS cases."""

_KINDS: Final = (
    (stat.S_ISLNK, "it is a link, not a file"),
    (stat.S_ISFIFO, "it is a pipe, not a file"),
    (stat.S_ISSOCK, "it is a socket, not a file"),
    (stat.S_ISCHR, "it is a device, not a file"),
    (stat.S_ISBLK, "it is a device, not a file"),
)


def require_regular(path: Path, *, most: int | None = None) -> None:
    """Make sure that a path leads to a file, for libraries that open it themselves.

    Args:
        path: Of the file.
        most: Bytes that a sound one can have.

    Raises:
        OSError: If it leads to anything else, or nowhere, or the file is larger.
    """
    found = path.stat()
    _require_regular(found, path)
    if most is not None and found.st_size > most:
        raise _too_large(path, most)


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        OSError: If it cannot be read, or is a folder, a pipe, a socket or a device.
    """
    require_regular(path)  # opening a device may do something to it
    return os.fdopen(_open_regular(path, os.O_RDONLY), "rb")


def open_to_append(path: Path) -> FileIO:
    """Open a file in a folder of ours, or make it, to go on at its end without a buffer.

    Raises:
        OSError: If it cannot be written, or is no file; a link is not followed.
    """
    with suppress(FileNotFoundError):
        _require_regular(path.lstat(), path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return FileIO(_open_regular(path, flags), "a")


def read_bytes(path: Path, *, most: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Read a whole file.

    Args:
        path: Of the file.
        most: Bytes that a sound one can have.

    Raises:
        OSError: If it cannot be read, is no file, or is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            content = file.read(size + 1)  # takes as much memory as is asked for
            if len(content) > size:  # it has grown
                content += file.read(most - size)
            if len(content) <= most:
                return content
    raise _too_large(path, most)


def read_text(path: Path, *, most: int = MAX_DOCUMENT_BYTES) -> str:
    """Read a whole file of UTF-8.

    Raises:
        OSError: As of `read_bytes`.
        UnicodeDecodeError: If it is no such text.
    """
    return read_bytes(path, most=most).decode("utf-8")


def _too_large(path: Path, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))


def _open_regular(path: Path, flags: int) -> int:
    """Open a file without waiting, and make sure that it is what was asked for."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    reason = next((text for is_kind, text in _KINDS if is_kind(found.st_mode)), "it is no file")
    raise OSError(errno.EINVAL, reason, str(path))
