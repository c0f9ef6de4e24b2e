"""The log of a cache: what happened when, and which shards are known to be whole."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cache_schema.append import AppendedFile
from cache_schema.errors import InputError
from cache_schema.files import GOES_ON
from cache_schema.layout import LOG_NAME, MANIFEST_NAME
from cache_schema.locks import lock_file
from cache_schema.manifest import SCHEMA_VERSION, Manifest, Quarantined, read_manifest
from cache_schema.names import Name
from cache_schema.reading import read_bytes
from cache_schema.vocabulary import Cohort
from pipeline.request import Request, request_of_manifest

MAX_LOG_BYTES: Final = 2**28
"""Of a log: a preparation of all BraTS cases writes a thousandth of it."""

BEGINNING: Final = b'{"time": '
"""Of every record; a line that a kill cut short has no more."""


class _Any(BaseModel):
    """What every record has."""

    model_config = ConfigDict(frozen=True, strict=True)

    event: str


class _Finished(_Any):
    """A shard with its digest, of this run or known from an earlier one."""

    path: str
    sha256: str


class _Left(_Any):
    """A case that was quarantined."""

    event: Literal["quarantined"]
    case_id: Name
    cohort: Cohort
    reason: str
    key: str | None

    def entry(self) -> Quarantined:
        """Give it as a manifest has it."""
        return Quarantined(**self.model_dump(exclude={"event"}))


class _Turn(_Any):
    """A run that began, or was refused; logs of earlier releases do not tell of what it was made."""

    event: Literal["started", "refused"]
    options: dict[str, Any] = {}
    cases: list[str] | None = None


Record = TypeVar("Record", bound=_Any)


class Journal:
    """The open log of a cache, held by one preparation at a time.

    Attributes:
        is_guarded: Whether a lock keeps others out; not every file system has locks.
    """

    def __init__(self, cache: Path, file: AppendedFile, *, is_guarded: bool) -> None:
        """Use `open_journal` instead, which takes the lock."""
        self.is_guarded = is_guarded
        self._cache = cache
        self._file = file

    def record(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Append one event with the time; it is on its way to the disk when this returns.

        Raises:
            WriteError: If the disk refuses it.
        """
        line = json.dumps({"time": time.time(), "event": event, **fields}) + "\n"
        self._file.append(line.encode())

    def shard_digests(self) -> dict[str, str]:
        """Collect the SHA-256 of every shard that earlier runs finished, by path.

        The log knows what a run had finished when it was killed, the manifest what came with a cache
        that was copied without its log.
        """
        digests = {e.path: e.sha256 for e in self._events(_Finished)}
        manifest = self._manifest()
        found = {shard.path: shard.sha256 for shard in manifest.shards} if manifest else {}
        return digests | found

    def faults(self) -> dict[str, Quarantined]:
        """Collect the cases that earlier runs quarantined, by id, if their files could be read."""
        noted = [event.entry() for event in self._events(_Left)]
        manifest = self._manifest()
        found = manifest.quarantined if manifest else ()
        return {entry.case_id: entry for entry in (*noted, *found) if entry.key is not None}

    def last_request(self) -> Request | None:
        """Tell what the cache was made of: by its manifest, else by the last run that began one.

        A run that was refused because no case could be read has made nothing, and does not count.

        Returns:
            Options and cases; None of a folder that nothing was written to.

        Raises:
            InputError: If the manifest cannot be read.
        """
        if (self._cache / MANIFEST_NAME).exists():
            return request_of_manifest(read_manifest(self._cache))
        begun: list[Request] = []
        for event in self._events(_Turn):
            if event.event == "started":
                begun.append(Request(event.options, event.cases))
            elif begun:
                begun.pop()
        return begun[-1] if begun else None

    def has_older_manifest(self) -> bool:
        """Tell whether the cache has a manifest of a version that is not written any more."""
        manifest = self._manifest()
        return manifest is not None and manifest.schema_version != SCHEMA_VERSION

    def foreign_lines(self) -> list[int]:
        """Number the lines, from 1, that are no records; one that a kill cut short is none of them."""
        return [number for number, line in enumerate(self._lines(), 1) if _is_foreign(line)]

    def _events(self, kind: type[Record]) -> Iterator[Record]:
        """Read the records of a kind; what is not whole is passed over, its shard is then redone."""
        for line in self._lines():
            with suppress(ValidationError):
                yield kind.model_validate_json(line)

    def _lines(self) -> list[bytes]:
        path = self._cache / LOG_NAME
        try:
            return read_bytes(path, most=MAX_LOG_BYTES).splitlines()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); move it elsewhere"
            ) from error

    def _manifest(self) -> Manifest | None:
        try:
            return read_manifest(self._cache)
        except InputError:
            return None


@contextmanager
def open_journal(cache: Path) -> Iterator[Journal]:
    """Open a cache's log and lock it, so that two preparations never share a cache.

    Where the file system has no locks, nothing keeps a second preparation out, and the journal says so.

    Raises:
        InputError: If another preparation holds it, or the disk refuses it.
    """
    with AppendedFile(cache / LOG_NAME, advice=GOES_ON) as file:
        refusal = f"another `prep partition` writes to {cache}; wait for it"
        is_guarded = lock_file(file, refusal)
        file.end_line()  # a kill may have cut the last one short
        yield Journal(cache, file, is_guarded=is_guarded)


def _is_foreign(line: bytes) -> bool:
    if not line.strip() or _is_record(line):
        return False
    return line.endswith(b"}") or not line.startswith(BEGINNING[: len(line)])


def _is_record(line: bytes) -> bool:
    try:
        _Any.model_validate_json(line)
    except ValidationError:
        return False
    return True
