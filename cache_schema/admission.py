"""The door to a cache's slices: a shard held against the manifest before anything of it is used."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cache_schema.errors import InputError
from cache_schema.manifest import CaseRecord, Manifest, ShardRecord, read_manifest
from cache_schema.shard import TEST_CLIENT, CaseEntry, ShardReader, digest
from cache_schema.vocabulary import Split


def open_shard(cache: Path, manifest: Manifest, path: str) -> ShardReader:
    """Open a shard of a cache, if it is the one that the manifest lists.

    Its size and all that its tables say are looked at, no slice: that takes milliseconds. Whether its
    bytes are those that were written, `require_whole` tells.

    Args:
        cache: A finished cache.
        manifest: Of that cache.
        path: Of the shard, as in the manifest.

    Raises:
        InputError: If it cannot be read, is damaged, or is another client's or another cache's.
    """
    for problem in _problems(cache, manifest, path):
        raise InputError(_refusal(cache, path, problem))
    return ShardReader(cache / path)


def _problems(cache: Path, manifest: Manifest, path: str) -> Iterator[str]:
    """Look at the tables first: what they say tells more than a size."""
    with ShardReader(cache / path) as reader:
        yield from table_problems(manifest, path, reader)
        for entry in reader.cases():
            yield from checksum_problems(reader, entry)
    yield from _size_problems(cache, _record(manifest, path))


def _record(manifest: Manifest, path: str) -> ShardRecord:
    return next(shard for shard in manifest.shards if shard.path == path)


def require_whole(
    cache: Path,
    manifest: Manifest,
    paths: Iterable[str],
    *,
    on_shard: Callable[[str, int], None] | None = None,
) -> None:
    """Make sure that shards have the bytes that were recorded when they were written.

    Every byte is read and hashed. Once in a run is enough: a shard never changes.

    Args:
        cache: A finished cache.
        manifest: Of that cache.
        paths: Of the shards, as in the manifest.
        on_shard: Told each shard's path before it is looked at, and their number.

    Raises:
        InputError: Naming the first shard that is gone or has other bytes.
    """
    wanted = set(paths)
    shards = [shard for shard in manifest.shards if shard.path in wanted]
    for shard in shards:
        if on_shard is not None:
            on_shard(shard.path, len(shards))
        for problem in byte_problems(cache, shard):
            raise InputError(_refusal(cache, shard.path, problem))


def require_whole_splits(
    cache: Path, *splits: Split, on_shard: Callable[[str, int], None] | None = None
) -> None:
    """Make sure that the shards that a command will open have the bytes that were written.

    Args:
        cache: A finished cache.
        splits: Whose shards are opened.
        on_shard: Told each shard's path before it is looked at, and their number.

    Raises:
        InputError: As `require_whole` does, or if the manifest cannot be read.
    """
    manifest = read_manifest(cache)
    paths = (case.shard for case in manifest.cases if case.split in splits)
    require_whole(cache, manifest, paths, on_shard=on_shard)


def _refusal(cache: Path, path: str, problem: str) -> str:
    return (
        f"shard {cache / path} is not what its manifest lists: {problem}; run `prep verify --deep` on "
        "the cache, then `prep partition` again to rebuild what is damaged"
    )


def byte_problems(cache: Path, shard: ShardRecord) -> Iterator[str]:
    """Yield how a file differs from what the manifest says of its bytes: at most one problem."""
    try:
        found = list(_size_problems(cache, shard))
        yield from found
        if not found and digest(cache / shard.path) != shard.sha256:
            yield "its bytes differ from the manifest's SHA-256"
    except OSError as error:
        yield f"cannot be read ({error.strerror})"


def _size_problems(cache: Path, shard: ShardRecord) -> Iterator[str]:
    path = cache / shard.path
    if not path.is_file():
        yield "missing"
    elif path.stat().st_size != shard.bytes:
        yield f"{path.stat().st_size} bytes instead of {shard.bytes}"


def table_problems(manifest: Manifest, path: str, reader: ShardReader) -> Iterator[str]:
    """Yield every way in which the tables of a shard differ from the manifest.

    Args:
        manifest: Of the cache.
        path: Of the shard, as in the manifest.
        reader: Of the shard.

    Yields:
        One sentence for each problem, without the shard's name.

    Raises:
        InputError: If it cannot be read.
    """
    cases = {case.case_id: case for case in manifest.cases if case.shard == path}
    entries = reader.cases()
    yield from _owner_problems(manifest, cases, reader)
    stored = {entry.case_id: entry for entry in entries}
    for case_id in sorted(stored.keys() ^ cases.keys()):
        where = "shard" if case_id in stored else "manifest"
        yield f"{case_id} is only in the {where}"
    voxels = reader.column("label_voxels")
    for entry in entries:
        case = cases.get(entry.case_id)
        if case is not None:
            counts = voxels[entry.first_row : entry.stop_row].sum(axis=0, dtype="int64").tolist()
            yield from (f"{case.case_id} {text}" for text in _differences(entry, case, counts))


def checksum_problems(reader: ShardReader, entry: CaseEntry) -> Iterator[str]:
    """Yield it if what the tables say of a case is not what was once written."""
    if not reader.has_sound_tables(entry):
        yield f"the tables of {entry.case_id} differ from their checksum"


def _owner_problems(
    manifest: Manifest, cases: dict[str, CaseRecord], reader: ShardReader
) -> Iterator[str]:
    attributes = reader.attributes
    if attributes.get("fingerprint") != manifest.fingerprint:
        yield "was made with other preprocessing"
    if reader.plane != manifest.plane:
        yield f"has slices of {reader.plane}, not of {manifest.plane}"
    found = attributes.get("client")
    for owner in {case.client for case in cases.values()}:
        if owner is not None and found == TEST_CLIENT:
            yield "is a shard of the test set; training never opens one"
        elif found != (TEST_CLIENT if owner is None else owner):
            yield f"belongs to client {found}, not to {_owner(owner)}"


def _owner(client: int | None) -> str:
    return "the test set" if client is None else f"client {client}"


def _differences(entry: CaseEntry, case: CaseRecord, counts: list[int]) -> Iterator[str]:
    if entry.stop_row - entry.first_row != case.num_slices:
        yield f"has {entry.stop_row - entry.first_row} slices, not {case.num_slices}"
    for field in ("patient_id", "cohort", "grade", "site", "key", "present"):
        if getattr(entry, field) != getattr(case, field):
            yield f"has {field} {getattr(entry, field)}, not {getattr(case, field)}"
    findings = tuple(entry.findings.splitlines())
    if case.findings[len(case.findings) - len(findings) :] != findings:
        yield "has other findings than in the manifest"
    if counts != list(case.label_voxels.model_dump().values()):
        yield f"has {counts} label voxels, not as in the manifest"
