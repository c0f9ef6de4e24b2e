"""What looks like BraTS cases or archives and is not read: named, so that nobody misses cases by accident."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.case_folder import why_unreadable

_COPY: Final = re.compile(
    r"(.+?)(?: ?\(\d+\)| ?- ?copy(?: ?\(\d+\))?|[ _]copy\d*)", re.IGNORECASE | re.DOTALL
)
_LIKE_A_CASE: Final = re.compile(r"(brats|fets).*\d", re.IGNORECASE | re.DOTALL)
_SCAN: Final = re.compile(r".+\.nii(\.gz)?", re.IGNORECASE | re.DOTALL)
_PACKED: Final = re.compile(
    r".+\.(zip|tar|tgz|tbz2?|txz|7z|rar|tar\.\w+|zip\.\d+|part|crdownload)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Overlooked:
    """A file or folder that is not read.

    Attributes:
        path: Where it lies.
        reason: Why it is not read and what to do.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        """Name it and say why."""
        return f"{self.path} ({self.reason})"


def describe_overlooked(overlooked: Sequence[Overlooked]) -> str:
    """Say in a clause how much is not read."""
    is_one = len(overlooked) == 1
    what = "file or folder looks" if is_one else "files or folders look"
    return (
        f"{len(overlooked)} {what} like cases or archives and {'is' if is_one else 'are'} not read"
    )


def find_overlooked(
    folder: Path, folders: Sequence[str], files: Sequence[str]
) -> Iterator[Overlooked]:
    """Look at a folder that is not a case.

    Args:
        folder: Which.
        folders: Names of the folders in it.
        files: Names of what else is in it.

    Yields:
        The folder itself, if it holds scans or is named like a case of another year, and archives
        and links in it.
    """
    reason = _why_no_case(folder.name, folders, files)
    if reason is not None:
        yield Overlooked(folder, reason)
    yield from _packed(folder, files)
    for name in files:
        path = folder / name
        is_link = path.is_symlink() and not _PACKED.fullmatch(name)
        if is_link and (problem := why_unreadable(path)):
            yield Overlooked(path, problem)


def find_overlooked_inside(
    folder: Path, cases: Sequence[str], files: Sequence[str]
) -> Iterator[Overlooked]:
    """Look at the folder of a case, whose own files are not looked for any deeper.

    Args:
        folder: Which.
        cases: Names of the folders in it that are named like cases.
        files: Names of the files in it.

    Yields:
        The cases and archives in it.
    """
    for name in cases:
        yield Overlooked(folder / name, "a case inside the folder of a case: move it out")
    yield from _packed(folder, files)


def _packed(folder: Path, files: Sequence[str]) -> Iterator[Overlooked]:
    for name in files:
        if _PACKED.fullmatch(name):
            yield Overlooked(folder / name, "still packed: unpack it")


def _why_no_case(name: str, folders: Sequence[str], files: Sequence[str]) -> str | None:
    num_scans = sum(_SCAN.fullmatch(each) is not None for each in (*folders, *files))
    if not num_scans and (folders or not _LIKE_A_CASE.match(name)):
        return None
    if copied := _COPY.fullmatch(name):
        return f"by its name a second copy of {copied[1]}: remove or rename it"
    if not num_scans:
        return "an empty folder" if not files else "a folder without scans"
    scans = "1 scan" if num_scans == 1 else f"{num_scans} scans"
    return f"{scans}, but it is not named like a case of BraTS 2018 to 2020"
