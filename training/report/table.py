"""A table of a report, as text: what stands where, and the caption that goes with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.filesize import decimal

from cache_schema.vocabulary import REGIONS

COLUMNS: Final = (*REGIONS, "average")
FACTORS: Final = {"dice": 100.0, "hd95_mm": 1.0, "sensitivity": 100.0, "specificity": 100.0}
"""What a metric is multiplied with to be shown."""
NONE: Final = "-"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: As shown; a line break in one breaks its line.
        kind: How it is set: `published`, `ours`, `total`, or as the others.
    """

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Attributes:
        caption: What it is, and what must be known about its numbers.
        header: Headings of the columns; empty for a list of names and values.
        rows: Below them.
        text_columns: Columns, from 0, that are words; all others are numbers.
        has_scores: Whether it shows scores of test cases or networks.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    text_columns: tuple[int, ...] = (0,)
    has_scores: bool = False


def duration(seconds: float) -> str:
    """Write a time as a person would say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def interval(sample: Mapping[str, Any], metric: str, num_cases: int) -> str:
    """Write a mean above its interval, and from how many cases it is, if not from all."""
    if sample["count"] == 0:
        return mean_cell(NONE, 0, num_cases)
    low, high = (FACTORS[metric] * sample[key] for key in ("low", "high"))
    text = f"{number(sample['mean'], metric)}\n[{low:.1f}, {high:.1f}]"
    return mean_cell(text, sample["count"], num_cases)


def number(value: float, metric: str) -> str:
    """Write a score in the unit of its metric."""
    return NONE if math.isnan(value) else f"{FACTORS[metric] * value:.2f}"


def mean_cell(text: str, count: int, num_cases: int) -> str:
    """Write below a mean from how many cases it is, if not from all."""
    return text if count == num_cases else f"{text}\nof {count} case{'' if count == 1 else 's'}"


def percent(value: float | None) -> str:
    """Write a fraction in percent."""
    return NONE if value is None else f"{100 * value:.2f}"


def size(num_bytes: int) -> str:
    """Write a number of bytes as a person would say it."""
    return decimal(num_bytes) if num_bytes else NONE


def thousands(number: int) -> str:
    """Write a whole number with narrow spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")
