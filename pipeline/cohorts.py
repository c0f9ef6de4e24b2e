"""Folders to cases: finds BraTS 2018, 2019 and 2020 wherever they lie under the given roots.

A file belongs to a case by its exact name: `<case>_t1.nii.gz` is not `<case>_t1ce.nii.gz`, and
nothing is ever paired by position in a sorted listing.
"""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cache_schema.errors import InputError
from cache_schema.vocabulary import MODALITIES, UNKNOWN, Cohort, Grade

SEGMENTATION: Final = "seg"

# Folder names as in the archives; some mirrors change the case of letters.
_CASE_NAMES: Final[tuple[tuple[Cohort, str, re.Pattern[str]], ...]] = (
    ("brats2018", "Brats18_", re.compile(r"brats18_(\w+_\w+)", re.IGNORECASE)),
    ("brats2019", "BraTS19_", re.compile(r"brats19_(\w+_\w+)", re.IGNORECASE)),
    ("brats2020", "BraTS20_", re.compile(r"brats20_((?:training|validation)_\d+)", re.IGNORECASE)),
)
_GRADES: Final[dict[str, Grade]] = {"HGG": "HGG", "LGG": "LGG"}

# One segmentation of BraTS 2020 was published under the name of its source study.
_MISNAMED: Final = {"BraTS20_Training_355": {"w39_1998.09.19_segm": SEGMENTATION}}


@dataclass(frozen=True)
class Case:
    """One scan session and where its files lie.

    Attributes:
        case_id: Folder name, spelled as in the original archive.
        cohort: Archive that it comes from.
        folder: Where it was found.
        files: Path of each modality and of the segmentation (`seg`) that exists.
        patient_id: The person; `pipeline.identity` finds out.
        grade: Tumour grade.
        site: Acquisition site.
        attributes: Columns of `survival*.csv`, as text.
        repairs: Known faults that were mended, one sentence each.
        findings: What is unusual about the folder, one sentence each.
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
    is_synthetic: bool = False

    @property
    def absent(self) -> tuple[str, ...]:
        """Modalities that have no file."""
        return tuple(name for name in MODALITIES if name not in self.files)


@dataclass(frozen=True)
class Inventory:
    """What lies under the roots: cases by id, and the name mappings that came with them."""

    cases: tuple[Case, ...]
    name_mappings: tuple[Path, ...]


def discover(roots: Sequence[Path]) -> Inventory:
    """Find every BraTS case under the given folders, at any depth.

    Args:
        roots: Folders that hold unpacked archives or mirrors of them.

    Returns:
        Cases sorted by id, with what `survival*.csv` tells of them, and `name_mapping*.csv` sorted
        by path.

    Raises:
        InputError: If a root is not a folder, no case is found, or a case lies in two places.
    """
    cases: dict[str, Case] = {}
    tables: list[Path] = []
    for folder, files in _walk(roots):
        case = _read_case(folder)
        if case is None:
            tables += [folder / name for name in files if name.lower().endswith(".csv")]
        elif case.case_id in cases:
            first = cases[case.case_id].folder
            raise InputError(
                f"case {case.case_id} lies both in {first} and in {folder}; name the roots so that "
                "only one of them is under them"
            )
        else:
            cases[case.case_id] = case
    if not cases:
        names = ", ".join(str(root) for root in roots)
        raise InputError(
            f"no BraTS case under {names}: expected folders named Brats18_*, BraTS19_* or "
            "BraTS20_Training_*; give the folder that holds the unpacked archives"
        )
    tables.sort()
    attributes = _read_survival([p for p in tables if p.name.lower().startswith("survival")])
    return Inventory(
        cases=tuple(
            replace(cases[name], attributes=attributes.get(name, {})) for name in sorted(cases)
        ),
        name_mappings=tuple(p for p in tables if p.name.lower().startswith("name_mapping")),
    )


def _walk(roots: Sequence[Path]) -> list[tuple[Path, list[str]]]:
    """List folders and their files, a case folder without what is below it."""
    found: dict[Path, tuple[Path, list[str]]] = {}
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root} is not a folder; give the folder that holds the archives")
        for name, folders, files in os.walk(root, followlinks=True):
            folder = Path(name)
            folders[:] = sorted(set(folders) - {"__MACOSX"})  # resource forks of a mirror's zip
            identity = _identify(folder.name)
            if identity is not None and identity in map(_identify, folders) and not files:
                continue  # a case folder nested in its own name
            # The same folder may be reached from two roots, or again and again through a link.
            if identity is not None or folder.resolve() in found:
                folders.clear()
            found.setdefault(folder.resolve(), (folder, sorted(files)))
    return list(found.values())


def _identify(name: str) -> tuple[Cohort, str] | None:
    """Tell cohort and canonical case id from a folder's name."""
    for cohort, prefix, pattern in _CASE_NAMES:
        if match := pattern.fullmatch(name):
            tail = match[1].title() if cohort == "brats2020" else match[1].upper()
            return cohort, prefix + tail
    return None


def _read_case(folder: Path) -> Case | None:
    identity = _identify(folder.name)
    if identity is None:
        return None
    cohort, case_id = identity
    files: dict[str, Path] = {}
    repairs: list[str] = []
    findings: list[str] = []
    misnamed = _MISNAMED.get(case_id, {})
    for entry in sorted(folder.iterdir()):
        stem = _stem(entry.name)
        role = _role(stem, folder.name.lower())
        if role is None and stem in misnamed:
            role = misnamed[stem]
            repairs.append(f"{entry.name} taken as {role}")
        path = _inner_file(entry)
        if role is None or path is None:
            findings.append(f"{entry.name} ignored: not a file of this case")
        elif role in files:
            findings.append(f"{entry.name} ignored: {files[role].name} was taken as {role}")
        else:
            files[role] = path
    grade = _GRADES.get(folder.parent.name.upper(), "unknown")
    return Case(
        case_id,
        cohort,
        folder,
        files,
        grade=grade,
        repairs=tuple(repairs),
        findings=tuple(findings),
    )


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name.lower())


def _role(stem: str, case_name: str) -> str | None:
    for role in (*MODALITIES, SEGMENTATION):
        if stem == f"{case_name}_{role}":
            return role
    return None


def _inner_file(entry: Path) -> Path | None:
    """Return the file itself, or the one file inside a mirror's folder named like a file."""
    if entry.is_file():
        return entry
    entries = entry.iterdir() if entry.is_dir() else ()
    inside = [path for path in entries if path.is_file() and not path.name.startswith(".")]
    return inside[0] if len(inside) == 1 else None


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV table that came with an archive, one dictionary a row.

    Raises:
        InputError: If the file is not UTF-8 text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(line for line in file if line.strip()))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason}); save it as CSV in UTF-8"
        ) from error
    return [{str(k).strip(): (v or "").strip() for k, v in row.items() if k} for row in rows]


def _read_survival(paths: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Read the attributes of each case, by case id; the first column is the id in every year."""
    attributes: dict[str, dict[str, str]] = {}
    for path in paths:
        for row in read_table(path):
            name, *columns = row
            case_id = canonical_case_id(row[name])
            if case_id is not None:
                attributes[case_id] = {column: row[column] for column in columns}
    return attributes


def canonical_case_id(text: str) -> str | None:
    """Spell a case id as in the original archive, or return None if it is not one."""
    identity = _identify(text)
    return None if identity is None else identity[1]
