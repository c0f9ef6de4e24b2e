"""Lines of a run's log: which of them are records. A log is written for people; nothing in it is relied on."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict

from cache_schema.documents import parse_object
from cache_schema.reading import open_regular

MOST_BYTES: Final = 2**30
"""Of a log; a thousand rounds of a thousand clients take less."""

LONGEST_LINE: Final = 2**24
"""Bytes; a round of thousands of clients takes less."""

Count = Annotated[int, Ge(0), Le(2**53)]
Number = Annotated[int, Ge(1), Le(2**53)]
Amount = Annotated[float, Ge(-1e15), Le(1e15)]
"""A number that is finite, and stays so when some are added."""


class _Record(BaseModel):
    """What is read of a line; a default stands for what some lines do not say, and is never read."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Client(_Record):
    client: Annotated[int, Ge(-1), Le(2**53)]
    num_examples: Count
    num_steps: Count
    loss: float | None
    dice: dict[str, float]
    seconds: Amount
    refused: str | None = None
    bytes_received: Count = 0
    bytes_sent: Count = 0


class _Round(_Record):
    round: Number
    loss: Amount
    dice: dict[str, Amount]
    seconds: Amount
    clients: list[_Client]
    absent: list[Count]
    figures: dict[str, float]
    total_bytes_received: Count = 0
    total_bytes_sent: Count = 0


class _Asked(_Record):
    round: Number
    clients: list[Count]
    absent: list[Count] = []


class _Reply(_Record):
    round: Number
    client: Count
    loss: float | None = None
    refused: str | None = None


class _Lost(_Record):
    round: Number
    client: Count
    reason: str


class _Steps(_Record):
    epoch: Number
    done: Number
    of: Number
    loss: Amount


class _Start(_Record):
    rounds: Number = 1
    round: Number = 1
    epoch: Number = 1


class _Said(_Record):
    reason: str = ""
    problem: str = ""


class _Line(_Record):
    event: str
    time: Annotated[float, Ge(0), Le(1e12)]


_EVENTS: Final[Mapping[str, type[_Record]]] = {
    "round": _Round,
    "asked": _Asked,
    "reply": _Reply,
    "lost": _Lost,
    "steps": _Steps,
    **dict.fromkeys(("started", "resumed"), _Start),
    **dict.fromkeys(("failed", "killed", "unsent"), _Said),
}
"""What a line must say, by its event, besides the event and its time; other events are never read."""


def read_lines(path: Path, *, is_whole: bool = True) -> tuple[tuple[dict[str, Any], ...], int]:
    """Read a log, also while it is written: a last line that is cut short is left out.

    Args:
        path: Of the log.
        is_whole: Leave out records that do not say all that is read of their event; the others come
            with what is known of their event and nothing else.

    Returns:
        The records, and the number of lines that are none.

    Raises:
        OSError: If the file cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES:,} bytes")
    events: list[dict[str, Any]] = []
    num_skipped = 0
    with open_regular(path) as file:
        while line := file.readline(LONGEST_LINE):
            record = _record(line, is_whole=is_whole)
            if record is not None:
                events.append(record)
            elif line.endswith(b"\n") and line.strip():
                num_skipped += 1
    return tuple(events), num_skipped


def _record(line: bytes, *, is_whole: bool) -> dict[str, Any] | None:
    """Take a line as a record, or None if it is none."""
    try:
        document = parse_object(line, is_finite=False)
        record = _read(_Line, document)
        if not is_whole:
            return document | record
        if (event := _EVENTS.get(record["event"])) is not None:
            record |= _read(event, document)
    except ValueError:
        return None
    return record


def _read(kind: type[_Record], document: Mapping[str, Any]) -> dict[str, Any]:
    return kind.model_validate(document).model_dump(exclude_unset=True)
