"""Tables that come with archives: name mappings and survival data, in any dialect of CSV.

They were written by many hands: with commas, semicolons or tabs, in UTF-8 or in what Excel saves,
and with columns in any order. Whatever is read of them is found by the name of its column.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_schema.errors import InputError
from cache_schema.vocabulary import UNKNOWN, Grade

_NAME_MAPPING: Final = re.compile(r"name[ _-]?mapping", re.IGNORECASE)
_SURVIVAL: Final = re.compile(r"survival", re.IGNORECASE)
_READ: Final = frozenset({".csv", ".tsv"})
_OTHER_FORMS: Final = frozenset(
    {".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".txt", ".gz", ".zip"}
)

_DELIMITERS: Final = (",", ";", "\t")
_EXCEL_DELIMITER: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)
_END: Final = "\0"

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
class Table:
    """The cells of a table, without the spaces around them.

    Attributes:
        columns: The header. Names may be empty or stand there twice.
        rows: One value for each column, by the number of the line at which the row ends.
    """

    columns: tuple[str, ...]
    rows: Mapping[int, tuple[str, ...]]

    def positions(self, name: re.Pattern[str]) -> list[int]:
        """Return where the columns of such a plain name stand."""
        return [i for i, column in enumerate(self.columns) if name.fullmatch(_plain(column))]


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
    table = read_table(path)
    cases, tcga, grades = _mapping_columns(path, table)
    rows = []
    for line, row in table.rows.items():
        names = [spell(row[i]) for i in cases if _is_id(path, line, row[i])]
        names += [row[i].upper() for i in tcga if _is_id(path, line, row[i])]
        if names:
            rows.append(MappingRow(tuple(names), _grade([row[i] for i in grades])))
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
                finding = f"{path.name} has {column} {value!r} for this case: {kept!r} was kept"
                findings[name] = (*findings.get(name, ()), finding)
    return Survival(attributes, findings)


def read_table(path: Path) -> Table:
    """Read a table in whatever dialect of CSV it was written.

    The delimiter is a comma, semicolon or tab, as the header tells, or what a first line of Excel
    (`sep=;`) says. Rows may be shorter than the header, or longer by empty cells.

    Args:
        path: A file in UTF-8, or in UTF-16 with a byte order mark.

    Returns:
        Header and rows; no columns if the file is empty.

    Raises:
        InputError: If the file cannot be read, is no text, a quote is never closed, a cell is too
            long, or a row has more cells than the header.
    """
    lines = list(io.StringIO(_decode(path), newline=None))
    try:
        delimiter = _choose_delimiter(lines)
        *records, end = _parse([*lines, _END], delimiter)
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); save it as CSV again") from error
    if end[1] != (_END,):
        raise InputError(f"{path}: a quote is opened and never closed; close it or take it out")
    columns = _without_empty_tail(records[0][1]) if records else ()
    return Table(columns, {line: _fitted(path, line, row, columns) for line, row in records[1:]})


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); mend or remove it") from error
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding, name = ("utf-16", "UTF-16") if is_wide else ("utf-8-sig", "UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not {name} text ({error.reason}); save it as CSV in UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{path} holds NUL bytes, so it is no text; save it as CSV in UTF-8")
    return text


def _choose_delimiter(lines: list[str]) -> str:
    """Choose the delimiter that gives the header most columns of known names, then most columns.

    A wrong one may cut quoted names, which leaves quotes in them. A line of Excel that names the
    delimiter is blanked.
    """
    if lines and (excel := _EXCEL_DELIMITER.fullmatch(lines[0])):
        lines[0] = "\n"
        return excel[1]

    def worth(delimiter: str) -> tuple[int, bool, int]:
        _, header = next(_parse(lines, delimiter), (0, ()))
        is_whole = not any('"' in column for column in header)
        return sum(map(_is_known, map(_plain, header))), is_whole, len(header)

    return max(_DELIMITERS, key=worth)


def _parse(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the cells of each row that is not blank, with the number of its last line."""
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    for record in reader:
        cells = tuple(cell.strip() for cell in record)
        if any(cells):
            yield reader.line_num, cells


def _fitted(path: Path, line: int, row: tuple[str, ...], columns: Sequence[str]) -> tuple[str, ...]:
    """Fill a row up to the header, and refuse one that is longer: its cells may have shifted."""
    row = _without_empty_tail(row)
    if len(row) > len(columns):
        raise InputError(
            f"{path}, line {line}: {len(row)} cells under {len(columns)} columns; "
            "quote cells that hold the delimiter, or complete the header"
        )
    return row + ("",) * (len(columns) - len(row))


def _without_empty_tail(row: tuple[str, ...]) -> tuple[str, ...]:
    while row and not row[-1]:
        row = row[:-1]
    return row


def _plain(column: str) -> str:
    """Reduce a column's name to what its spellings have in common."""
    return re.sub(r"[\W_]", "", column).lower()


def _is_known(plain: str) -> bool:
    return any(column.fullmatch(plain) for column in _KNOWN_COLUMNS)


def _mapping_columns(path: Path, table: Table) -> tuple[list[int], list[int], list[int]]:
    """Find the columns of case ids, of TCGA ids and of the grade."""
    counts = Counter(_plain(column) for column in table.columns)
    doubled = [c for c in table.columns if counts[_plain(c)] > 1 and _is_known(_plain(c))]
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


def _grade(cells: Sequence[str]) -> Grade:
    return _GRADES.get(cells[0].upper(), "unknown") if cells else "unknown"


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
            return str(error).removeprefix(f"{path} ")
    is_table = _NAME_MAPPING.match(path.name) or _SURVIVAL.match(path.name)
    if is_table and path.suffix.lower() in _OTHER_FORMS:
        return "not read in this form: save it as CSV"
    return None


def _understood(paths: Sequence[Path]) -> Iterator[tuple[Path, Table]]:
    """Yield the survival tables that can be understood."""
    for path in paths:
        with suppress(InputError):  # `unread_tables` names it.
            yield path, _read_survival_table(path)


def _read_survival_table(path: Path) -> Table:
    """Read a survival table, and refuse one that has rows and tells of no case."""
    table = read_table(path)
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
