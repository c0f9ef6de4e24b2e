"""Tables as text, in any dialect of CSV: delimiter, encoding, quotes and line ends.

What the columns mean is for `pipeline.tables` to say.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_schema.errors import InputError
from cache_schema.reading import read_bytes
from pipeline.case_folder import why_unreadable

_DELIMITERS: Final = (",", ";", "\t")
_EXCEL_DELIMITER: Final = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)
_END: Final = "\0"


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
        return [i for i, column in enumerate(self.columns) if name.fullmatch(plain_name(column))]


def read_table(path: Path, known: Sequence[re.Pattern[str]] = ()) -> Table:
    """Read a table in whatever dialect of CSV it was written.

    The delimiter is a comma, semicolon or tab, as the header tells, or what a first line of Excel
    (`sep=;`) says. Rows may be shorter than the header, or longer by empty cells.

    Args:
        path: A file in UTF-8, or in UTF-16 with a byte order mark.
        known: Plain names of columns to look for: the delimiter is the one that finds most of them.

    Returns:
        Header and rows; no columns if the file is empty.

    Raises:
        InputError: If the file cannot be read, is no text, a quote is never closed, a cell is too
            long, or a row has more cells than the header.
    """
    lines = list(io.StringIO(_decode(path), newline=None))
    try:
        delimiter = _choose_delimiter(lines, known)
        *records, end = _parse([*lines, _END], delimiter)
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV ({error}); save it as CSV again") from error
    if end[1] != (_END,):
        raise InputError(f"{path}: a quote is opened and never closed; close it or take it out")
    columns = _without_empty_tail(records[0][1]) if records else ()
    return Table(columns, {line: _fitted(path, line, row, columns) for line, row in records[1:]})


def _decode(path: Path) -> str:
    if problem := why_unreadable(path):  # a pipe would keep its reader waiting
        raise InputError(f"{path} cannot be read: it {problem}; mend or remove it")
    try:
        data = read_bytes(path)
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


def _choose_delimiter(lines: list[str], known: Sequence[re.Pattern[str]]) -> str:
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
        names = [plain_name(column) for column in header]
        num_known = sum(any(one.fullmatch(name) for one in known) for name in names)
        return num_known, is_whole, len(header)

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


def plain_name(column: str) -> str:
    """Reduce a column's name to what its spellings have in common."""
    return re.sub(r"[\W_]", "", column).lower()
