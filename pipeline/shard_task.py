"""One shard, start to finish: the unit of work of a Dask worker. Knows nothing of Dask."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cache_schema.errors import InputError
from cache_schema.manifest import CaseRecord, LabelVoxels, Quarantined, ShardRecord
from cache_schema.shard import TEST_CLIENT, CaseEntry, ShardReader, ShardWriter, digest
from pipeline.case import Preprocessing, prepare_case, read_sources, source_key
from pipeline.cohorts import Case
from pipeline.plan import ShardPlan
from pipeline.quality import CaseError
from pipeline.reuse import Donor, find_slices

NO_DONORS: Final[Mapping[str, Donor]] = MappingProxyType({})


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
    donors: Mapping[str, Donor] = NO_DONORS,
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
        donors: Cases of another cache whose slices are copied if their source files are the same.

    Returns:
        Records for the manifest. A case that fails is quarantined and the rest go on.
    """
    path = cache / plan.path
    if _is_whole(path, recorded) and _is_current(plan, path, settings):
        for case in plan.cases:
            on_case(case.case_id)
        return _outcome(plan, path, (), reused=True)
    path.unlink(missing_ok=True)
    quarantined = _write(plan, path, settings, donors, on_case)
    return _outcome(plan, path, quarantined, reused=False)


def _is_whole(path: Path, recorded: str | None) -> bool:
    return recorded is not None and path.is_file() and digest(path) == recorded


def _is_current(plan: ShardPlan, path: Path, settings: Preprocessing) -> bool:
    try:
        with ShardReader(path) as reader:
            attributes, entries = reader.attributes, reader.cases()
    except InputError:
        return False
    owner = TEST_CLIENT if plan.client is None else plan.client
    if (attributes["fingerprint"], attributes["client"]) != (settings.fingerprint, owner):
        return False
    if [_identity(entry) for entry in entries] != [_identity(case) for case in plan.cases]:
        return False
    try:
        return all(
            entry.key == source_key(read_sources(case))
            for entry, case in zip(entries, plan.cases, strict=True)
        )
    except CaseError:
        return False


def _identity(case: Case | CaseEntry) -> tuple[str, str, str, str, str]:
    return case.case_id, case.patient_id, case.cohort, case.grade, case.site


def _write(
    plan: ShardPlan,
    path: Path,
    settings: Preprocessing,
    donors: Mapping[str, Donor],
    on_case: Callable[[str], None],
) -> tuple[Quarantined, ...]:
    quarantined: list[Quarantined] = []
    fingerprint = settings.fingerprint
    with ShardWriter(
        path, plane=settings.plane, fingerprint=fingerprint, client=plan.client
    ) as writer:
        for case in plan.cases:
            try:
                _add(writer, case, settings, donors)
            except CaseError as error:
                quarantined.append(
                    Quarantined(case_id=case.case_id, cohort=case.cohort, reason=str(error))
                )
            on_case(case.case_id)
    return tuple(quarantined)


def _add(
    writer: ShardWriter, case: Case, settings: Preprocessing, donors: Mapping[str, Donor]
) -> None:
    """Copy a case's slices from another cache, or prepare them."""
    sources = read_sources(case)
    found = find_slices(case, source_key(sources), donors) if donors else None
    if found is None:
        writer.append(prepare_case(case, sources, settings))
        return
    reader, entry = found
    with reader:
        writer.copy(reader, entry)


def _outcome(
    plan: ShardPlan, path: Path, quarantined: tuple[Quarantined, ...], *, reused: bool
) -> ShardOutcome:
    if not path.exists():
        return ShardOutcome(None, (), quarantined, reused)
    with ShardReader(path) as reader:
        voxels = reader.column("label_voxels")
        entries = reader.cases()
    planned = {case.case_id: case for case in plan.cases}
    records = []
    for entry in entries:
        nec, ed, et = voxels[entry.first_row : entry.stop_row].sum(axis=0, dtype="int64").tolist()
        labels = LabelVoxels(NEC=nec, ED=ed, ET=et)
        records.append(_case_record(plan, planned[entry.case_id], entry, labels))
    shard = ShardRecord(
        path=plan.path, rows=len(voxels), bytes=path.stat().st_size, sha256=digest(path)
    )
    return ShardOutcome(shard, tuple(records), quarantined, reused)


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
