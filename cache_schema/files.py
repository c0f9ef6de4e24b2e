"""Files that are whole or not there: written beside their name, then renamed."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cache_schema.errors import InputError, WriteError

PARTIAL_SUFFIX: Final = ".partial"
"""How the name of everything ends that is not finished."""

ADVICE: Final = "make room or give it another place"

GOES_ON: Final = "make room: the same command goes on from what is finished"
"""What to do where a command keeps what it has finished."""

DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What a disk answers that is full, over a quota, too small for the file, broken or read-only."""


def write_atomically(
    path: Path, content: bytes | str, *, option: str | None = None, advice: str = ADVICE
) -> None:
    """Write a file in one step: what was there before is whole until then, and after a failure.

    A file that a user named may be a link, a pipe or a device; see `replacing`.

    Args:
        path: Of the file; folders that lack are made.
        content: Of the file; text is written as UTF-8.
        option: That named the file, for the message; None of a file in a folder of ours.
        advice: What to do if it cannot be written.

    Raises:
        InputError: If it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    told = reporting(path, option=option, advice=advice, num_bytes=len(content))
    with told, replacing(path, follows_links=option is not None) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def reporting(
    path: Path, *, option: str | None = None, advice: str = ADVICE, num_bytes: int = 0
) -> Iterator[None]:
    """Turn whatever the disk refuses in a block into one line.

    Args:
        path: Of the file or folder that is written.
        option: That named it.
        advice: What to do.
        num_bytes: That it takes, where that is known.

    Raises:
        WriteError: For every OSError.
    """
    try:
        yield
    except OSError as error:
        name = f"{option} {path}" if option else path
        reason = f"{describe_refusal(error)}{_shortage(path, num_bytes)}"
        raise WriteError(f"{name} cannot be written ({reason}); {advice}") from error


def describe_refusal(error: OSError) -> str:
    """Say in a few words what the disk answered; HDF5 puts a whole report into its own."""
    if error.errno in DISK_ERRORS:
        return os.strerror(error.errno)
    return error.strerror or " ".join(str(error).split())


def _shortage(path: Path, num_bytes: int) -> str:
    """Say what a file takes if that is more than there is room for."""
    existing = next(
        place for place in (path.absolute(), *path.absolute().parents) if place.exists()
    )
    free = shutil.disk_usage(existing).free
    return f": it takes {num_bytes} bytes, {free} are free" if num_bytes > free else ""


@contextlib.contextmanager
def replacing(path: Path, *, follows_links: bool = False) -> Iterator[Path]:
    """Give a path to write a file to, which gets its name in one step when the block ends.

    The path has the file's own name, in a folder beside it that is new and this writer's alone:
    two writers never share it, and no link can be laid there. After an error it is removed, and what
    was there before is untouched.

    Args:
        path: Of the file; folders that lack are made.
        follows_links: For a file that a user named: where a link has its name, the file that it leads to
            is replaced, and a pipe or a device, which has nothing to keep, is written to directly.
            Otherwise a file of this name takes the place of whatever has it.

    Yields:
        Where to write.

    Raises:
        OSError: If it cannot be written.
    """
    if follows_links and _is_stream(path):
        yield path
        return
    target = Path(os.path.realpath(path)) if follows_links else path
    target.parent.mkdir(parents=True, exist_ok=True)
    with _private_folder(target) as folder:
        yield folder / target.name
        _rename(folder / target.name, target)


def _is_stream(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def _private_folder(target: Path) -> Iterator[Path]:
    start = f".{target.name[:40]}."  # with a whole name of 255 bytes it would be too long
    with TemporaryDirectory(
        suffix=PARTIAL_SUFFIX, prefix=start, dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def _rename(partial: Path, target: Path) -> None:
    if target.is_file() and not target.is_symlink():
        with contextlib.suppress(OSError):
            shutil.copymode(target, partial)
    sync(partial)
    partial.replace(target)
    # The file is whole under its name; some file systems cannot sync a folder.
    with contextlib.suppress(OSError):
        sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_links(place: Path) -> None:
    """Make sure that writing to a place of ours, or removing what is there, changes nothing elsewhere.

    The folder of a cache or a run may be a link, what is inside may not.

    Args:
        place: A file or folder inside; it need not be there.

    Raises:
        InputError: Naming the first link.
    """
    below = (Path(root, name) for root, *names in os.walk(place) for name in chain(*names))
    link = next((path for path in chain([place], below) if path.is_symlink()), None)
    if link is not None:
        raise InputError(
            f"{link} is a link, and what it leads to is not to be changed; remove the link, or put there "
            "what it leads to"
        )


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in a folder that has no other writer now.

    Args:
        folder: Not its subfolders.
    """
    for leftover in folder.glob(f".*.????????{PARTIAL_SUFFIX}"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
