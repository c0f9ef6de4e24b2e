"""Tables that come with archives: name mappings and survival data, in any dialect of CSV.

They were written by many hands: with commas, semicolons or tabs, in UTF-8 or in what Excel saves,
and with columns in any order. Whatever is read of them is found by the name of its column.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_schema.errors import InputError
from cache_schema.vocabulary import UNKNOWN, Grade
from pipeline.case_folder import say_name
from pipeline.csv_text import Table, plain_name, read_table

_NAME_MAPPING: Final = re.compile(r"name[ _-]?mapping", re.IGNORECASE)
_SURVIVAL: Final = re.compile(r"survival", re.IGNORECASE)
_READ: Final = frozenset({".csv", ".tsv"})
_OTHER_FORMS: Final = frozenset(
    {
        *(".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".docx", ".pdf"),
        *(".txt", ".json", ".parquet", ".gz", ""),
    }
)

# Of a column's name without case, spaces and punctuation: `BraTS_2018_subject_ID`, `Brats18ID`.
_CASE_COLUMN: Final = re.compile(r"brats(20)?\d\d(subject|case|patient)?(id)?")
_TCGA_COLUMN: Final = re.compile(r"(tcga|tcia)+(subject|case|patient)?(id|barcode)?")
_GRADE_COLUMN: Final = re.compile(r"grade")
_KNOWN_COLUMNS: Final = (_CASE_COLUMN, _TCGA_COLUMN, _GRADE_COLUMN)
_EXPECTED: Final = "BraTS_2018_subject_ID, BraTS_2019_subject_ID or BraTS_2020_subject_ID"

_CASE_ID: Final = re.compile(r"brats(20)?\d\d_\w+", re.IGNORECASE)
_SOME_ID: Final = re.compile(r"(?=.*\d)\w+([_.-]\w+)+")
_ABSENT: Final = frozenset({"", "na", "n/a", "nan", "none", "null", "-"})
_GRADES: Final[dict[str, Grade]] = {"HGG": "HGG", "LGG": "LGG"}


@dataclass(frozen=True)
class MappingRow:
    """One person of a name mapping: the names used for them, and the grade of the tumour."""

    names: tuple[str, ...]
    grade: Grade


@dataclass(frozen=True)
class Survival:
    """What survival tables tell of cases.

    Attributes:
        attributes: Values as text, by case id and column.
        findings: Where tables contradict themselves or each other, sentences by case id.
    """

    attributes: Mapping[str, Mapping[str, str]]
    findings: Mapping[str, tuple[str, ...]]


def is_name_mapping(path: Path) -> bool:
    """Tell whether a file is a name mapping that can be read, by its name."""
    return bool(_NAME_MAPPING.match(path.name)) and path.suffix.lower() in _READ


def is_survival(path: Path) -> bool:
    """Tell whether a file is a survival table that can be read, by its name."""
    return bool(_SURVIVAL.match(path.name)) and path.suffix.lower() in _READ


def unread_tables(paths: Iterable[Path]) -> dict[Path, str]:
    """Tell which files are tables that are left out, and why.

    A name mapping in CSV is never left out: `read_name_mapping` refuses what it does not
    understand. Survival data are optional, so a survival table is.

    Args:
        paths: Files found beside the archives, tables or not.

    Returns:
        What is wrong and what to do about it, one phrase for each such table, sorted by path.
    """
    reasons = {path: _reason_unread(path) for path in sorted(paths)}
    return {path: reason for path, reason in reasons.items() if reason is not None}


def read_name_mapping(path: Path, spell: Callable[[str], str]) -> tuple[MappingRow, ...]:
    """Read who is who in a name mapping.

    Args:
        path: The table.
        spell: Gives the name under which a case id of any year is known.

    Returns:
        One row for each person who has a name, in the table's order.

    Raises:
        InputError: If the file is no table, no column of ids is found, a column that is read stands
            there twice, a value is no id, or a case has two grades.
    """
    table = read_table(path, _KNOWN_COLUMNS)
    cases, tcga, grades = _mapping_columns(path, table)
    rows = []
    for line, row in table.rows.items():
        names = [spell(row[i]) for i in cases if _is_id(path, line, row[i])]
        names += [row[i].upper() for i in tcga if _is_id(path, line, row[i])]
        if names:
            rows.append(MappingRow(tuple(names), read_grade(row[grades[0]] if grades else "")))
    _refuse_two_grades(path, rows)
    return tuple(rows)


def read_survival(paths: Sequence[Path], case_id: Callable[[str], str | None]) -> Survival:
    """Read the attributes of cases from survival tables.

    The first value of an attribute is kept, and any other is a finding of the case. Tables that
    cannot be understood are left out; `unread_tables` names them.

    Args:
        paths: The tables.
        case_id: Spells a case id as in its archive; None for what is not one.

    Returns:
        Attributes and findings of every case that is named.
    """
    attributes: dict[str, dict[str, str]] = {}
    findings: dict[str, tuple[str, ...]] = {}
    for path, table in _understood(paths):
        for text, column, value in _survival_cells(table):
            name = case_id(text)
            if name is None:
                continue
            kept = attributes.setdefault(name, {}).setdefault(column, value)
            if value != kept:
                finding = (
                    f"{say_name(path.name)} has {column} {value!r} for this case: {kept!r} was kept"
                )
                findings[name] = (*findings.get(name, ()), finding)
    return Survival(attributes, findings)


def _is_known(plain: str) -> bool:
    return any(column.fullmatch(plain) for column in _KNOWN_COLUMNS)


def _mapping_columns(path: Path, table: Table) -> tuple[list[int], list[int], list[int]]:
    """Find the columns of case ids, of TCGA ids and of the grade."""
    counts = Counter(plain_name(column) for column in table.columns)
    doubled = [c for c in table.columns if counts[plain_name(c)] > 1 and _is_known(plain_name(c))]
    if doubled:
        raise InputError(f"{path} has two columns named {doubled[0]}; keep one of them")
    cases = table.positions(_CASE_COLUMN)
    if not cases:
        found = ", ".join(repr(column[:60]) for column in table.columns[:8]) or "none"
        raise InputError(
            f"{path} has no column of ids: its columns are {found}; name them {_EXPECTED} in the "
            "first line, or take the file away"
        )
    return cases, table.positions(_TCGA_COLUMN), table.positions(_GRADE_COLUMN)


def _is_id(path: Path, line: int, value: str) -> bool:
    """Tell an id from a cell that says there is none; refuse what would join strangers."""
    if value.lower() in _ABSENT:
        return False
    if not _SOME_ID.fullmatch(value):
        raise InputError(
            f"{path}, line {line}: {value[:40]!r} is no id; leave it empty or write NA"
        )
    return True


def read_grade(text: str) -> Grade:
    """Read a tumour's grade from a cell, or from the name of the folder that a case lies in."""
    return _GRADES.get(text.upper(), "unknown")


def _refuse_two_grades(path: Path, rows: Sequence[MappingRow]) -> None:
    """Refuse a case in two rows of different grades; a tumour of TCGA may have progressed."""
    grades: dict[str, Grade] = {}
    for row in rows:
        for name in row.names if row.grade != UNKNOWN else ():
            if not name.startswith("TCGA") and grades.setdefault(name, row.grade) != row.grade:
                raise InputError(f"{path} has {name} both as HGG and as LGG; keep the right row")


def _reason_unread(path: Path) -> str | None:
    if is_survival(path):
        try:
            _read_survival_table(path)
        except InputError as error:
            return str(error).removeprefix(str(path)).lstrip(",: ")
    is_table = _NAME_MAPPING.match(path.name) or _SURVIVAL.match(path.name)
    if is_table and path.suffix.lower() in _OTHER_FORMS:
        return "not read in this form: save it as CSV"
    is_named_otherwise = not is_table and _NAME_MAPPING.search(path.name)
    if is_named_otherwise and path.suffix.lower() in _READ:
        return "not read under this name: let it begin with name_mapping"
    return None


def _understood(paths: Sequence[Path]) -> Iterator[tuple[Path, Table]]:
    """Yield the survival tables that can be understood."""
    for path in paths:
        with suppress(InputError):  # `unread_tables` names it.
            yield path, _read_survival_table(path)


def _read_survival_table(path: Path) -> Table:
    """Read a survival table, and refuse one that has rows and tells of no case."""
    table = read_table(path, _KNOWN_COLUMNS)
    if any(map(_CASE_ID.fullmatch, table.columns)):
        raise InputError(f"{path} has no header; name its columns in the first line")
    ids = _case_id_columns(table)
    named = [row[i] for row in table.rows.values() for i in ids]
    if not ids or (named and not any(map(_CASE_ID.fullmatch, named))):
        raise InputError(f"{path} has no column of case ids; name one as in BraTS20ID")
    return table


def _case_id_columns(table: Table) -> list[int]:
    """Find the columns of case ids by name, or else the first one that holds nothing else."""
    if named := table.positions(_CASE_COLUMN):
        return named
    for i in range(len(table.columns)):
        values = [row[i] for row in table.rows.values() if row[i].lower() not in _ABSENT]
        if values and all(map(_CASE_ID.fullmatch, values)):
            return [i]
    return []


def _survival_cells(table: Table) -> Iterator[tuple[str, str, str]]:
    """Yield what a survival table says of cases: case, column and value of every filled cell."""
    ids = _case_id_columns(table)
    for row in table.rows.values():
        for i in ids:
            for j, column in enumerate(table.columns):
                if column and row[j] and j not in ids:
                    yield row[i], column, row[j]
