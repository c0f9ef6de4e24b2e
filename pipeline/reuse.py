"""Another cache of the same cases as a source of finished slices."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache as cache_result
from pathlib import Path

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from cache_schema.shard import CaseEntry, ShardReader, is_whole
from pipeline.case import Preprocessing
from pipeline.cohorts import Case


@dataclass(frozen=True)
class Donor:
    """Where a case lies in another cache.

    Attributes:
        path: Its shard.
        sha256: Of the shard, as its manifest says.
        key: Identity of the source files that the case was made from.
    """

    path: Path
    sha256: str
    key: str


# Copying does not decode, so damage would be copied too; a shard is hashed once in every process.
_is_whole_once = cache_result(is_whole)


def find_donors(cache: Path, settings: Preprocessing) -> dict[str, Donor]:
    """List the cases of a finished cache whose slices can be copied.

    Args:
        cache: The other cache; its partition does not matter.
        settings: Of the new cache.

    Returns:
        Donors by case id.

    Raises:
        InputError: If the cache is not finished, or was made with other preprocessing.
    """
    manifest = read_manifest(cache)
    if manifest.fingerprint != settings.fingerprint:
        raise InputError(
            f"--reuse {cache}: was made with other preprocessing (--normalize, --bias-correct, "
            "--geometry, or another release); leave --reuse out"
        )
    shards = {shard.path: shard.sha256 for shard in manifest.shards}
    return {
        case.case_id: Donor((cache / case.shard).resolve(), shards[case.shard], case.key)
        for case in manifest.cases
    }


def find_slices(
    case: Case, key: str, donors: Mapping[str, Donor]
) -> tuple[ShardReader, CaseEntry] | None:
    """Find a case's slices in another cache, if they were made from the same source files.

    Args:
        case: As it is known now; its patient, grade and site replace those of the other cache.
        key: Identity of its source files.
        donors: From `find_donors`.

    Returns:
        The other shard and the case's entry in it, or None if the case has to be prepared.
    """
    donor = donors.get(case.case_id)
    if donor is None or donor.key != key or not _is_whole_once(donor.path, donor.sha256):
        return None
    reader = ShardReader(donor.path)
    entry = next(entry for entry in reader.cases() if entry.case_id == case.case_id)
    renamed = replace(entry, patient_id=case.patient_id, grade=case.grade, site=case.site)
    return reader, renamed
