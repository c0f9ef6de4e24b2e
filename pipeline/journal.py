"""The log of a cache: what happened when, and which shards are known to be whole."""

import errno
import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from cache_schema.append import AppendedFile
from cache_schema.errors import InputError
from cache_schema.files import GOES_ON
from cache_schema.layout import LOG_NAME, MANIFEST_NAME
from cache_schema.manifest import SCHEMA_VERSION, Manifest, Quarantined, read_manifest
from pipeline.request import Request, request_of_manifest

HELD: Final = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
"""What a lock that somebody else holds answers; anything else means that this file system has no locks."""


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
        digests = {e["path"]: e["sha256"] for e in self._events() if e.get("sha256")}
        manifest = self._manifest()
        found = {shard.path: shard.sha256 for shard in manifest.shards} if manifest else {}
        return digests | found

    def faults(self) -> dict[str, Quarantined]:
        """Collect the cases that earlier runs quarantined, by id, if their files could be read."""
        noted = [
            Quarantined(**{name: event[name] for name in Quarantined.model_fields})
            for event in self._events()
            if event["event"] == "quarantined"
        ]
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
        for event in self._events():
            if event["event"] == "started":
                begun.append(Request(event.get("options", {}), event.get("cases")))
            elif event["event"] == "refused" and begun:
                begun.pop()
        return begun[-1] if begun else None

    def has_older_manifest(self) -> bool:
        """Tell whether the cache has a manifest of a version that is not written any more."""
        manifest = self._manifest()
        return manifest is not None and manifest.schema_version != SCHEMA_VERSION

    def _events(self) -> Iterator[dict[str, Any]]:
        """Read the log; a line that a kill cut short is passed over, its shard is then redone."""
        for line in (self._cache / LOG_NAME).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                yield json.loads(line)

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
        is_guarded = _lock(file, cache)
        if not _ends_with_newline(cache / LOG_NAME):
            file.append(b"\n")  # a kill cut the last line short; the next one starts afresh
        yield Journal(cache, file, is_guarded=is_guarded)


def _lock(file: AppendedFile, cache: Path) -> bool:
    """Lock a cache's log until it is closed, and tell whether the file system could.

    Raises:
        InputError: If another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise InputError(f"another `prep partition` writes to {cache}; wait for it") from None
        return False
    return True


def _ends_with_newline(path: Path) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(b"\n")
