"""Places to write to, tried before the work whose result goes there."""

import errno
import fcntl
import os
from pathlib import Path
from tempfile import TemporaryFile

from cache_schema.errors import InputError


def require_writable_file(path: Path, option: str) -> None:
    """Make sure that a file can be written, leaving what is there as it is and nothing behind.

    Args:
        path: The file; its folder need not exist yet.
        option: What the user gave it by, such as `--json`.

    Raises:
        InputError: If it is a folder, or cannot be written; the message names the option.
    """
    try:
        target = path.resolve()
        if target.is_dir():
            raise _error(errno.EISDIR)
        if target.exists():
            _try_file(target)
        if target.is_file() or not target.exists():
            _try_folder(target.parent)
    except (OSError, RuntimeError) as error:  # resolve() calls a loop of links a RuntimeError
        raise InputError(
            f"{option} {path} cannot be written ({_reason(error)}); name a file that can be"
        ) from error


def require_writable_folder(path: Path, option: str) -> None:
    """Make sure that files can be written to a folder, or it can be made; nothing is left behind.

    Args:
        path: The folder; it need not exist yet.
        option: What the user gave it by, such as `--cache`.

    Raises:
        InputError: If it is a file, or cannot be written; the message names the option.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_dir():
            raise _error(errno.ENOTDIR)
        _try_folder(target)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{option} {path} cannot be written ({_reason(error)}); name a folder that can be"
        ) from error


def takes_locks(folder: Path) -> bool:
    """Tell whether files in a folder can be locked; some network file systems have no locks.

    Args:
        folder: It need not exist yet.

    Raises:
        OSError: If it cannot be written.
    """
    with TemporaryFile(dir=_nearest(folder.resolve())) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            return False
    return True


def _try_file(path: Path) -> None:
    """Open a file that exists for writing; a pipe would wait for its reader, so it is only asked."""
    if path.is_file():
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
    elif not os.access(path, os.W_OK):
        raise _error(errno.EACCES)


def _try_folder(folder: Path) -> None:
    """Write a nameless file to the nearest folder that exists: permissions alone do not tell."""
    with TemporaryFile(dir=_nearest(folder)):
        pass


def _nearest(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
