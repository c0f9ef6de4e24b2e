"""One shard, start to finish: the unit of work of a Dask worker. Knows nothing of Dask."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cache_schema.errors import InputError
from cache_schema.manifest import CaseRecord, LabelVoxels, Quarantined, ShardRecord
from cache_schema.shard import TEST_CLIENT, CaseEntry, ShardReader, ShardWriter, is_whole
from pipeline.case import Preprocessing, prepare_case, read_sources, source_key
from pipeline.cohorts import Case
from pipeline.plan import ShardPlan
from pipeline.quality import CaseError
from pipeline.reuse import Shelf

Loaded = tuple[dict[str, bytes], str]
"""The files of a case by role, and their key."""

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True)
class ShardOutcome:
    """What became of one shard.

    Attributes:
        shard: The file, or None if every case was quarantined.
        cases: What the manifest says of its cases.
        quarantined: Cases left out, and why.
        reused: True if the file was there already with the same content.
    """

    shard: ShardRecord | None
    cases: tuple[CaseRecord, ...]
    quarantined: tuple[Quarantined, ...]
    reused: bool


def make_shard(
    plan: ShardPlan,
    cache: Path,
    settings: Preprocessing,
    on_case: Callable[[str], None],
    *,
    recorded: str | None = None,
    faults: Mapping[str, Quarantined] = NOTHING,
    donors: Mapping[str, Path] = NOTHING,
) -> ShardOutcome:
    """Write one shard, streaming its cases one after another, or keep the one that is there.

    A shard is kept if its bytes are those that were recorded when it was written, and it holds the
    same cases of the same patients, made from the same source bytes with the same preprocessing;
    where source and cache lie does not matter. One case is in memory at a time.

    Args:
        plan: The shard's cases.
        cache: Root of the cache.
        settings: How to normalise.
        on_case: Told the id of every case that is done with.
        recorded: SHA-256 of the shard by an earlier run; without it the shard is written anew.
        faults: Cases that an earlier run quarantined; they stay so while their files are the same.
        donors: Shards of another cache by case; slices are copied if the source files are the same.

    Returns:
        Records for the manifest. A case that fails is quarantined and the rest go on.
    """
    path = cache / plan.path
    is_kept = recorded is not None and is_whole(path, recorded)
    if is_kept and _is_current(plan, path, settings, faults):
        for case in plan.cases:
            on_case(case.case_id)
        return _outcome(plan, path, recorded, faults, reused=True)
    sha256, quarantined = _write(plan, path, settings, donors, on_case)
    if sha256 is None:
        path.unlink(missing_ok=True)
    return _outcome(plan, path, sha256, quarantined, reused=False)


def _is_current(
    plan: ShardPlan, path: Path, settings: Preprocessing, faults: Mapping[str, Quarantined]
) -> bool:
    """Tell whether a shard holds what it would hold if it were written now."""
    try:
        with ShardReader(path) as reader:
            attributes, entries = reader.attributes, reader.cases()
    except InputError:
        return False
    owner = TEST_CLIENT if plan.client is None else plan.client
    if (attributes.get("fingerprint"), attributes.get("client")) != (settings.fingerprint, owner):
        return False
    stored = {_identity(entry): entry.key for entry in entries}
    if not stored.keys() <= {_identity(case) for case in plan.cases}:
        return False
    for case in plan.cases:
        fault = faults.get(case.case_id)
        expected = stored.get(_identity(case), fault.key if fault else None)
        if expected is None or expected != read_key(case):
            return False
    return True


def read_key(case: Case) -> str | None:
    """Read the identity of a case's source files, or None if they cannot be read."""
    try:
        return source_key(read_sources(case))
    except CaseError:
        return None


def quarantine(case: Case, reason: str) -> Quarantined:
    """Note that a case is left out, and for which files that holds."""
    return Quarantined(case_id=case.case_id, cohort=case.cohort, reason=reason, key=read_key(case))


def _identity(case: Case | CaseEntry) -> tuple[str, str, str, str, str]:
    return case.case_id, case.patient_id, case.cohort, case.grade, case.site


def _write(
    plan: ShardPlan,
    path: Path,
    settings: Preprocessing,
    donors: Mapping[str, Path],
    on_case: Callable[[str], None],
) -> tuple[str | None, dict[str, Quarantined]]:
    """Write the shard and return its SHA-256, and the cases that could not be stored, by id."""
    quarantined: dict[str, Quarantined] = {}
    fingerprint = settings.fingerprint
    with (
        Shelf(donors, settings) as shelf,
        ShardWriter(
            path, plane=settings.plane, fingerprint=fingerprint, client=plan.client
        ) as writer,
    ):
        for case, loading in _load_ahead(plan.cases):
            try:
                sources, key = loading.result()
                stored = shelf.find(case, key)
                if stored is None:
                    writer.append(prepare_case(case, sources, settings, key=key))
                else:
                    writer.copy(stored)
            except CaseError as error:
                quarantined[case.case_id] = quarantine(case, str(error))
            on_case(case.case_id)
    return writer.sha256, quarantined


def _load_ahead(cases: Sequence[Case]) -> Iterator[tuple[Case, Future[Loaded]]]:
    """Read and hash the files of every case in a thread, while the case before it is worked on.

    Both release the interpreter's lock. A case that cannot be read raises when its result is asked
    for.
    """
    with ThreadPoolExecutor(1) as pool:
        coming = deque[tuple[Case, Future[Loaded]]]()
        for case in cases:
            coming.append((case, pool.submit(_load, case)))
            if len(coming) == 2:
                yield coming.popleft()
        yield from coming


def _load(case: Case) -> Loaded:
    sources = read_sources(case)
    return sources, source_key(sources)


def _outcome(
    plan: ShardPlan,
    path: Path,
    sha256: str | None,
    faults: Mapping[str, Quarantined],
    *,
    reused: bool,
) -> ShardOutcome:
    """Describe a finished shard, which has no hash if it has no case; those it lacks are in `faults`."""
    if sha256 is None:
        return ShardOutcome(None, (), tuple(faults[c.case_id] for c in plan.cases), reused=False)
    with ShardReader(path) as reader:
        voxels = reader.column("label_voxels")
        entries = reader.cases()
    planned = {case.case_id: case for case in plan.cases}
    records = []
    for entry in entries:
        nec, ed, et = voxels[entry.first_row : entry.stop_row].sum(axis=0, dtype="int64").tolist()
        labels = LabelVoxels(NEC=nec, ED=ed, ET=et)
        records.append(_case_record(plan, planned[entry.case_id], entry, labels))
    shard = ShardRecord(path=plan.path, rows=len(voxels), bytes=path.stat().st_size, sha256=sha256)
    stored = {entry.case_id for entry in entries}
    lacking = tuple(faults[c.case_id] for c in plan.cases if c.case_id not in stored)
    return ShardOutcome(shard, tuple(records), lacking, reused=reused)


def _case_record(plan: ShardPlan, case: Case, entry: CaseEntry, labels: LabelVoxels) -> CaseRecord:
    return CaseRecord(
        case_id=case.case_id,
        patient_id=case.patient_id,
        cohort=case.cohort,
        grade=case.grade,
        site=case.site,
        split="test" if plan.client is None else "train",
        client=plan.client,
        shard=plan.path,
        key=entry.key,
        num_slices=entry.stop_row - entry.first_row,
        label_voxels=labels,
        present=entry.present,
        findings=(*case.findings, *entry.findings.splitlines()),
        attributes=dict(case.attributes),
    )
