"""The log of a cache: what happened when, and which shards are known to be whole."""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from cache_schema.errors import InputError
from cache_schema.layout import LOG_NAME
from cache_schema.manifest import Manifest, Quarantined, read_manifest


class Journal:
    """The open log of a cache, held by one preparation at a time."""

    def __init__(self, cache: Path, file: TextIO) -> None:
        """Use `open_journal` instead, which takes the lock."""
        self._cache = cache
        self._file = file

    def record(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Append one event with the time; it is on its way to the disk when this returns."""
        self._file.write(json.dumps({"time": time.time(), "event": event, **fields}) + "\n")
        self._file.flush()

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

    Raises:
        InputError: If another preparation holds it.
    """
    with (cache / LOG_NAME).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another `prep partition` writes to {cache}; wait for it") from None
        if not _ends_with_newline(cache / LOG_NAME):
            file.write("\n")  # a kill cut the last line short; the next one starts afresh
            file.flush()
        yield Journal(cache, file)


def _ends_with_newline(path: Path) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(b"\n")
