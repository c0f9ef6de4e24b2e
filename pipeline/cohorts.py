"""Folders to cases: finds BraTS 2018, 2019 and 2020 wherever they lie under the given roots.

A file belongs to a case by its exact name: `<case>_t1.nii.gz` is not `<case>_t1ce.nii.gz`, and
nothing is ever paired by position in a sorted listing.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

from cache_schema.errors import InputError
from cache_schema.vocabulary import MODALITIES, SYNTHETIC_MARK, UNKNOWN, Cohort, Grade
from pipeline.case_folder import (
    SEGMENTATION,
    CaseFiles,
    cannot_be_listed,
    give_name,
    is_noise,
    read_case_folder,
    why_unreadable,
)
from pipeline.overlooked import (
    Overlooked,
    describe_overlooked,
    find_overlooked,
    find_overlooked_inside,
)
from pipeline.tables import (
    is_name_mapping,
    is_survival,
    read_grade,
    read_survival,
    unread_tables,
)

# Folder names as in the archives; some mirrors change the case of letters.
_CASE_NAMES: Final[tuple[tuple[Cohort, str, re.Pattern[str]], ...]] = (
    ("brats2018", "Brats18_", re.compile(r"brats18_(\w+_\w+)", re.IGNORECASE)),
    ("brats2019", "BraTS19_", re.compile(r"brats19_(\w+_\w+)", re.IGNORECASE)),
    ("brats2020", "BraTS20_", re.compile(r"brats20_((?:training|validation)_\d+)", re.IGNORECASE)),
)

WHOLE_FOLDER: Final = "folder"
"""Stands among the unreadable modalities of a case for all of them."""


@dataclass(frozen=True)
class Case:
    """One scan session and where its files lie.

    Attributes:
        case_id: Folder name, spelled as in the original archive.
        cohort: Archive that it comes from.
        folder: Where it was found.
        files: Path of each modality and of the segmentation (`seg`) that exists.
        unreadable: Why others cannot be opened though they are there, by modality.
        patient_id: The person; `pipeline.identity` finds out.
        grade: Tumour grade.
        site: Acquisition site.
        attributes: Columns of `survival*.csv`, as text.
        repairs: Known faults that were mended, one sentence each.
        findings: What is unusual about the case, one sentence each.
        is_synthetic: Whether `prep phantom` made it.
    """

    case_id: str
    cohort: Cohort
    folder: Path
    files: Mapping[str, Path]
    patient_id: str = UNKNOWN
    grade: Grade = UNKNOWN
    site: str = UNKNOWN
    attributes: Mapping[str, str] = field(default_factory=dict)
    repairs: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    is_synthetic: bool = False

    @property
    def absent(self) -> tuple[str, ...]:
        """Modalities that have no file, not even one that cannot be read."""
        if WHOLE_FOLDER in self.unreadable:
            return ()
        there = {*self.files, *self.unreadable}
        return tuple(name for name in MODALITIES if name not in there)

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the case cannot be used at all, by the names and kinds of its files."""
        reasons = tuple(
            f"{name} is there but cannot be read: {reason}"
            for name, reason in self.unreadable.items()
        )
        there = {*self.files, *self.unreadable}
        is_unlabelled = not there & {SEGMENTATION, WHOLE_FOLDER}
        return (*reasons, "no segmentation file") if is_unlabelled else reasons


@dataclass(frozen=True)
class Inventory:
    """What lies under the roots.

    Attributes:
        cases: Sorted by id.
        name_mappings: Tables that came with them, sorted by path.
        overlooked: What looks like cases or archives and is not read, sorted by path.
    """

    cases: tuple[Case, ...]
    name_mappings: tuple[Path, ...]
    overlooked: tuple[Overlooked, ...] = ()


def discover(roots: Sequence[Path]) -> Inventory:
    """Find every BraTS case under the given folders, at any depth.

    Args:
        roots: Folders that hold unpacked archives or mirrors of them.

    Returns:
        Cases, with what survival tables tell of them, name mappings, and what is not read.

    Raises:
        InputError: If a root is not a folder, a folder cannot be listed, no case is found, or a case
            lies in two places.
    """
    _is_marked.cache_clear()
    cases: dict[str, Case] = {}
    loose: list[Path] = []
    overlooked: list[Overlooked] = []
    for folder in _walk(roots):
        for case in _read_cases(folder):
            if case.case_id in cases:
                first = cases[case.case_id].folder
                raise InputError(
                    f"case {case.case_id} lies both in {first} and in {case.folder}; name the roots so "
                    "that only one of them is under them"
                )
            cases[case.case_id] = case
        if folder.identity is None:
            loose += [folder.path / name for name in folder.loose]
        overlooked += _find_overlooked(folder)
    if not cases:
        raise _no_case(roots, overlooked)
    loose.sort()
    survival = read_survival([path for path in loose if is_survival(path)], canonical_case_id)
    overlooked += (Overlooked(path, reason) for path, reason in unread_tables(loose).items())
    return Inventory(
        cases=tuple(
            replace(
                cases[name],
                attributes=survival.attributes.get(name, {}),
                findings=(*cases[name].findings, *survival.findings.get(name, ())),
            )
            for name in sorted(cases)
        ),
        name_mappings=tuple(path for path in loose if is_name_mapping(path)),
        overlooked=tuple(sorted(overlooked, key=lambda each: each.path)),
    )


def _find_overlooked(folder: "_Folder") -> Iterator[Overlooked]:
    if folder.is_hidden:
        return  # what a program keeps for itself, such as the objects of git-annex
    if folder.identity is None:
        yield from find_overlooked(folder.path, folder.folders, folder.loose)
    else:
        cases = [name for name in folder.folders if _identify(name) is not None]
        yield from find_overlooked_inside(folder.path, cases, folder.files)


def _no_case(roots: Sequence[Path], overlooked: Sequence[Overlooked]) -> InputError:
    names = ", ".join(str(root) for root in roots)
    seen = f"; {describe_overlooked(overlooked)}, first {overlooked[0]}" if overlooked else ""
    return InputError(
        f"no BraTS case under {names}: expected folders named Brats18_*, BraTS19_* or "
        f"BraTS20_Training_*; give the folder that holds the unpacked archives{seen}"
    )


@dataclass(frozen=True)
class _Folder:
    """A folder and what lies directly in it.

    Attributes:
        path: Where it lies.
        folders: Names of the folders in it.
        files: Names of what else is in it.
        is_hidden: Whether it, or a folder between a root and it, has a name that begins with a dot.
    """

    path: Path
    folders: list[str]
    files: list[str]
    is_hidden: bool

    @property
    def identity(self) -> tuple[Cohort, str] | None:
        """Cohort and case id, if it is named like a case."""
        return _identify(self.path.name)

    @property
    def loose(self) -> list[str]:
        """Names of the files in it that are not named like a case."""
        return [name for name in self.files if _identify(name) is None]


def _walk(roots: Sequence[Path]) -> Iterator[_Folder]:
    """List folders from the roots downwards, each once; under two names of cases it may be two."""
    seen: set[tuple[Path, tuple[Cohort, str] | None]] = set()
    for root in map(_require_folder, roots):
        for name, folders, files in os.walk(root, followlinks=True, onerror=_refuse_unlisted):
            folder = Path(name)
            folders[:] = sorted(n for n in folders if n.startswith(".") or not is_noise(n))
            found = _Folder(
                folder,
                folders=list(folders),
                files=sorted(name for name in files if not is_noise(name)),
                is_hidden=any(part.startswith(".") for part in folder.relative_to(root).parts),
            )
            if found.identity in map(_identify, folders) and not found.files and found.identity:
                continue  # a case folder nested in its own name
            # The same folder may be reached from two roots, or again and again through a link.
            place = folder.resolve(), found.identity
            if found.identity or place in seen:
                folders.clear()
            if place not in seen:
                seen.add(place)
                yield found


def _require_folder(root: Path) -> Path:
    """Refuse a root that is no folder, and give it its name, which may be that of a case."""
    try:
        is_folder = root.is_dir()
    except OSError as error:
        raise cannot_be_listed(error) from error
    if not is_folder:
        problem = why_unreadable(root) if root.is_symlink() else None
        raise InputError(
            f"{root} {problem or 'is not a folder'}; give the folder that holds the archives"
        )
    return give_name(root)


def _refuse_unlisted(error: OSError) -> None:
    raise cannot_be_listed(error) from error


def _identify(name: str) -> tuple[Cohort, str] | None:
    """Tell cohort and canonical case id from a folder's name."""
    for cohort, prefix, pattern in _CASE_NAMES:
        if match := pattern.fullmatch(name):
            tail = match[1].title() if cohort == "brats2020" else match[1].upper()
            return cohort, prefix + tail
    return None


def _read_cases(folder: _Folder) -> Iterator[Case]:
    """Yield the case that a folder is, or those that lie in it as something else than folders."""
    if folder.identity is not None:
        found = read_case_folder(folder.path, folder.identity[1])
        yield _make_case(folder.path, folder.identity, found)
        return
    for name in folder.files:
        path, identity = folder.path / name, _identify(name)
        if identity is not None:
            problem = f"{name} {why_unreadable(path) or 'is a file, not a folder'}"
            yield _make_case(path, identity, CaseFiles(unreadable={WHOLE_FOLDER: problem}))


def _make_case(folder: Path, identity: tuple[Cohort, str], found: CaseFiles) -> Case:
    return Case(
        case_id=identity[1],
        cohort=identity[0],
        folder=folder,
        files=found.files,
        unreadable=found.unreadable,
        grade=read_grade(folder.parent.name),
        repairs=tuple(found.repairs),
        findings=tuple(found.findings),
        is_synthetic=any(_is_marked(parent) for parent in _above(folder)),
    )


def _above(folder: Path) -> set[Path]:
    """List the folders that a case lies in, by its name and by where it really is."""
    return {*folder.absolute().parents, *folder.resolve().parents}


@cache
def _is_marked(folder: Path) -> bool:
    """Tell whether `prep phantom` has marked a folder as an archive of its own."""
    return (folder / SYNTHETIC_MARK).is_file()


def canonical_case_id(text: str) -> str | None:
    """Spell a case id as in the original archive, or return None if it is not one."""
    identity = _identify(text)
    return None if identity is None else identity[1]
