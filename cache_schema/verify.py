"""A cache held against its manifest."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cache_schema.errors import InputError
from cache_schema.layout import LOG_NAME, MANIFEST_NAME
from cache_schema.manifest import CaseRecord, Manifest, ShardRecord, read_manifest
from cache_schema.shard import TEST_CLIENT, CaseEntry, ShardReader, count_label_voxels, digest
from cache_schema.vocabulary import LABELS


def verify_cache(
    cache: Path, *, deep: bool = False, on_shard: Callable[[str, int], None] | None = None
) -> list[str]:
    """Compare every shard of a cache with the manifest.

    Args:
        cache: A finished cache.
        deep: Also decode every slice and compare tables, labels and counts with the manifest.
        on_shard: Told each shard's path before it is looked at, and their number.

    Returns:
        One sentence for each problem, naming the shard, case or file; empty if there is none.

    Raises:
        InputError: If the manifest itself cannot be read.
    """
    manifest = read_manifest(cache)
    problems: list[str] = []
    for shard in manifest.shards:
        if on_shard is not None:
            on_shard(shard.path, len(manifest.shards))
        problems += _shard_problems(cache, manifest, shard, deep=deep)
    return [*problems, *_foreign_files(cache, manifest)]


def verify_client(
    cache: Path, client: int, *, on_shard: Callable[[str, int], None] | None = None
) -> list[str]:
    """Compare one client's shards with the manifest, every slice; others need not be there.

    Args:
        cache: Holds the manifest and this client's folder.
        client: Whose shards.
        on_shard: Told each shard's path before it is looked at, and their number.

    Returns:
        One sentence for each problem; empty if there is none.

    Raises:
        InputError: If the manifest itself cannot be read.
    """
    manifest = read_manifest(cache)
    paths = manifest.client_shards(client)
    problems: list[str] = []
    for shard in manifest.shards:
        if shard.path in paths:
            if on_shard is not None:
                on_shard(shard.path, len(paths))
            problems += _shard_problems(cache, manifest, shard, deep=True)
    return problems


def _shard_problems(
    cache: Path, manifest: Manifest, shard: ShardRecord, *, deep: bool
) -> Iterator[str]:
    path = cache / shard.path
    if not path.is_file():
        yield f"{shard.path}: missing"
        return
    if path.stat().st_size != shard.bytes:
        yield f"{shard.path}: {path.stat().st_size} bytes instead of {shard.bytes}"
    elif digest(path) != shard.sha256:
        yield f"{shard.path}: its bytes differ from the manifest's SHA-256"
    if not deep:
        return
    cases = {case.case_id: case for case in manifest.cases if case.shard == shard.path}
    with ShardReader(path) as reader:
        try:
            yield from _table_problems(shard.path, reader, manifest, cases)
            for entry in reader.cases():
                found = list(_slice_problems(shard.path, reader, entry))
                yield from found
                if not found and not reader.has_sound_tables(entry):
                    yield f"{shard.path}: the tables of {entry.case_id} differ from their checksum"
        except InputError as error:
            yield str(error)


def _table_problems(
    name: str, reader: ShardReader, manifest: Manifest, cases: dict[str, CaseRecord]
) -> Iterator[str]:
    attributes = reader.attributes
    if attributes.get("fingerprint") != manifest.fingerprint:
        yield f"{name}: was made with other preprocessing"
    owners = {TEST_CLIENT if case.client is None else case.client for case in cases.values()}
    if {attributes.get("client")} != owners:
        yield f"{name}: belongs to client {attributes.get('client')}, not to {sorted(owners)}"
    voxels = reader.column("label_voxels")
    stored = {entry.case_id: entry for entry in reader.cases()}
    for case_id in sorted(stored.keys() ^ cases.keys()):
        yield f"{name}: {case_id} is only in the {'shard' if case_id in stored else 'manifest'}"
    for case_id in sorted(stored.keys() & cases.keys()):
        entry, case = stored[case_id], cases[case_id]
        yield from (f"{name}: {case_id} {text}" for text in _case_differences(entry, case))
        counts = voxels[entry.first_row : entry.stop_row].sum(axis=0).tolist()
        if counts != list(case.label_voxels.model_dump().values()):
            yield f"{name}: {case_id} has {counts} label voxels, not as in the manifest"


def _case_differences(entry: CaseEntry, case: CaseRecord) -> Iterator[str]:
    if entry.stop_row - entry.first_row != case.num_slices:
        yield f"has {entry.stop_row - entry.first_row} slices, not {case.num_slices}"
    for field in ("patient_id", "cohort", "grade", "site", "key", "present"):
        if getattr(entry, field) != getattr(case, field):
            yield f"has {field} {getattr(entry, field)}, not {getattr(case, field)}"


def _slice_problems(name: str, reader: ShardReader, entry: CaseEntry) -> Iterator[str]:
    counts = reader.column("label_voxels")
    planes = reader.column("z")
    for row in range(entry.first_row, entry.stop_row):
        problem = _slice_problem(reader, row, counts[row].tolist())
        if problem is not None:
            yield f"{name}: {entry.case_id} slice z={planes[row]}: {problem}"


def _slice_problem(reader: ShardReader, row: int, counts: list[int]) -> str | None:
    try:
        (image,), (label,) = reader.images([row]), reader.labels([row])
    except InputError as error:
        return f"cannot be read ({error.__cause__ or error})"
    if not np.isfinite(image).all():
        return "has values that are not finite"
    if not np.isin(label, (0, *LABELS.values())).all():
        return "has labels other than 0, 1, 2, 4"
    if list(count_label_voxels(label)) != counts:
        return "its labels differ from label_voxels"
    return None


def _foreign_files(cache: Path, manifest: Manifest) -> Iterator[str]:
    known = {MANIFEST_NAME, LOG_NAME, *(shard.path for shard in manifest.shards)}
    for path in sorted(cache.rglob("*")):
        relative = path.relative_to(cache).as_posix()
        if path.is_file() and relative not in known:
            yield f"{relative}: not in the manifest; move it elsewhere or remove it"
