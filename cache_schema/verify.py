"""A cache held against its manifest."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cache_schema.admission import byte_problems, checksum_problems, table_problems
from cache_schema.errors import InputError
from cache_schema.layout import LOG_NAME, MANIFEST_NAME
from cache_schema.manifest import Manifest, ShardRecord, read_manifest
from cache_schema.shard import CaseEntry, ShardReader, count_label_voxels
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
    for problem in byte_problems(cache, shard):
        yield f"{shard.path}: {problem}"
    if deep and (cache / shard.path).is_file():
        yield from _deep_problems(cache, manifest, shard)


def _deep_problems(cache: Path, manifest: Manifest, shard: ShardRecord) -> Iterator[str]:
    """Look at every table and slice; whatever that ends with is this shard's problem, not the cache's."""
    with ShardReader(cache / shard.path) as reader:
        try:
            for problem in table_problems(manifest, shard.path, reader):
                yield f"{shard.path}: {problem}"
            for entry in reader.cases():
                found = list(_slice_problems(shard.path, reader, entry))
                yield from found
                for problem in () if found else checksum_problems(reader, entry):
                    yield f"{shard.path}: {problem}"
        except InputError as error:
            yield str(error)


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
