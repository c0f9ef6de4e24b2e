"""The folder of one case: which file is which modality, and which of them cannot be read."""

import os
import re
import stat
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache_schema.errors import InputError
from cache_schema.vocabulary import MODALITIES

SEGMENTATION: Final = "seg"

# One segmentation of BraTS 2020 was published under the name of its source study.
_MISNAMED: Final = {"BraTS20_Training_355": {"w39_1998.09.19_segm": SEGMENTATION}}
_SPECIAL: Final = (
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)
_NOISE: Final = frozenset({"thumbs.db", "desktop.ini", "@eadir", "__macosx"})


@dataclass
class CaseFiles:
    """What a case's folder holds.

    Attributes:
        files: Path of each modality and of the segmentation (`seg`) that can be opened.
        unreadable: Why the others cannot, by modality; their files are there.
        repairs: Known faults that were mended, one sentence each.
        findings: What is unusual about the folder, one sentence each.
    """

    files: dict[str, Path] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def read_case_folder(folder: Path, case_id: str) -> CaseFiles:
    """Tell the files of a case apart by their exact names.

    Args:
        folder: Named like the case, in any case of letters.
        case_id: As it is spelled in the archive.

    Raises:
        InputError: If a folder cannot be listed.
    """
    found = CaseFiles()
    misnamed = _MISNAMED.get(case_id, {})
    candidates: defaultdict[str, list[Path]] = defaultdict(list)
    for entry in _visible(folder):
        stem = _stem(entry.name)
        role = _role(stem, folder.name.lower())
        if role is None and stem in misnamed:
            role = misnamed[stem]
            found.repairs.append(f"{entry.name} taken as {role}")
        if role is None:
            found.findings.append(f"{say_name(entry.name)} ignored: not a file of this case")
        else:
            candidates[role].append(entry)
    for role, entries in candidates.items():
        _choose(found, role, entries)
    return found


def _choose(found: CaseFiles, role: str, entries: list[Path]) -> None:
    """Take the first of the files for a modality that can be opened, and say what became of the others."""
    problems = {entry: why_unreadable(entry) for entry in map(_inner_file, entries)}
    taken = next((path for path, problem in problems.items() if problem is None), None)
    if taken is None:
        path, problem = next(iter(problems.items()))
        found.unreadable[role] = f"{say_name(path.name)} {problem}"
        return
    found.files[role] = taken
    for entry, (path, problem) in zip(entries, problems.items(), strict=True):
        if path != taken:
            reason = problem or f"{say_name(taken.name)} was taken as {role}"
            found.findings.append(f"{say_name(entry.name)} ignored: {reason}")


def give_name(folder: Path) -> Path:
    """Give a folder the name that it has where it lies: of `.` and `..` that is what tells a case."""
    return folder if folder.name not in {"", ".."} else folder.resolve()


def say_name(name: str) -> str:
    """Spell a name so that it fits into a line of UTF-8; a zip of another system may hold any bytes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]


def is_noise(name: str) -> bool:
    """Tell whether a system or a browser of files keeps something under this name for itself."""
    return name.startswith(".") or name.lower() in _NOISE


def list_folder(folder: Path) -> list[Path]:
    """List a folder, sorted.

    Raises:
        InputError: If it cannot be listed, naming it.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries)
    except OSError as error:
        raise cannot_be_listed(error) from error


def cannot_be_listed(error: OSError) -> InputError:
    """Say which folder hides what is in it."""
    return InputError(
        f"{error.filename} cannot be listed ({error.strerror}): make it readable, or name roots that do "
        "not hold it"
    )


def why_unreadable(path: Path) -> str | None:
    """Say why a file that is there cannot be opened, or return None if nothing speaks against it.

    Whether its content is a scan shows when it is read.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            target = say_name(str(path.readlink()))
            return f"is a link that leads nowhere, to {target} ({error.strerror})"
        return f"cannot be looked at ({error.strerror})"
    if stat.S_ISDIR(mode):
        return f"is a folder of {len(_visible(path))} files instead of one"
    special = next((text for is_kind, text in _SPECIAL if is_kind(mode)), None)
    if special is not None:
        return f"{special}, not a file"
    return None if os.access(path, os.R_OK) else "may not be read (Permission denied)"


def _inner_file(entry: Path) -> Path:
    """Return the file itself, or the one file inside a mirror's folder named like a file."""
    with suppress(OSError):  # what cannot be looked at is no folder
        if stat.S_ISDIR(entry.stat().st_mode):
            inside = _visible(entry)
            return inside[0] if len(inside) == 1 else entry
    return entry


def _visible(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder) if not is_noise(path.name)]


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name.lower())


def _role(stem: str, case_name: str) -> str | None:
    for role in (*MODALITIES, SEGMENTATION):
        if stem == f"{case_name}_{role}":
            return role
    return None
