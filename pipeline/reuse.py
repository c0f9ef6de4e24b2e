"""Another cache of the same cases as a source of finished slices."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from cache_schema.shard import CaseEntry, ShardReader, StoredCase
from pipeline.case import Preprocessing
from pipeline.cohorts import Case


def find_donors(cache: Path, settings: Preprocessing) -> dict[str, Path]:
    """List the cases of a finished cache whose slices can be copied.

    Args:
        cache: The other cache; its partition does not matter.
        settings: Of the new cache.

    Returns:
        The shard of each of its cases, by case id.

    Raises:
        InputError: If the cache is not finished, or was made with other preprocessing.
    """
    manifest = read_manifest(cache)
    if manifest.fingerprint != settings.fingerprint:
        raise InputError(
            f"--reuse {cache}: was made with other preprocessing (--normalize, --bias-correct, "
            "--geometry, or another release); leave --reuse out"
        )
    return {case.case_id: (cache / case.shard).resolve() for case in manifest.cases}


class Shelf:
    """The shards of another cache, each opened once and for as long as the block lasts."""

    def __init__(self, donors: Mapping[str, Path], settings: Preprocessing) -> None:
        """Remember who lies where; nothing is opened yet.

        Args:
            donors: From `find_donors`.
            settings: Of the new cache; a shard that was made with others gives nothing.
        """
        self._donors, self._settings = donors, settings
        self._opened: dict[Path, tuple[ShardReader, dict[str, CaseEntry]]] = {}

    def __enter__(self) -> "Shelf":
        """Return the shelf itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the shards."""
        for reader, _entries in self._opened.values():
            reader.close()

    def find(self, case: Case, key: str) -> StoredCase | None:
        """Find a case's slices, if they were made from the same source files.

        Args:
            case: As it is known now; its patient, cohort, grade and site replace those of the other cache.
            key: Identity of its source files.

        Returns:
            The slices, or None if the case is not here, made from other files or with other
            preprocessing, or damaged: copying does not decode, so damage would be copied too.
        """
        if case.case_id not in self._donors:
            return None
        try:
            reader, entries = self._open(self._donors[case.case_id])
            entry = entries.get(case.case_id)
            if entry is None or entry.key != key:
                return None
            stored = reader.stored(entry)
        except InputError:
            return None
        known = {name: getattr(case, name) for name in ("patient_id", "cohort", "grade", "site")}
        return replace(stored, entry=replace(entry, **known))

    def _open(self, path: Path) -> tuple[ShardReader, dict[str, CaseEntry]]:
        """Open a shard once; one that cannot be read is asked again for each case, and says so again."""
        if path not in self._opened:
            reader = ShardReader(path)
            fits = (reader.attributes.get("fingerprint"), reader.plane) == (
                self._settings.fingerprint,
                self._settings.plane,
            )
            entries = reader.cases() if fits else ()
            self._opened[path] = reader, {entry.case_id: entry for entry in entries}
        return self._opened[path]
