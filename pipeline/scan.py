"""An inventory of archives: what is there, what overlaps, what is wrong. Writes nothing."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

from cache_schema.findings import repairs_in
from cache_schema.vocabulary import COHORTS, MODALITIES
from pipeline.case import (
    Images,
    Preprocessing,
    bring,
    decode_source,
    prepare_case,
    read_files,
    read_sources,
    read_volume,
    take_head,
)
from pipeline.case_folder import SEGMENTATION
from pipeline.cohorts import Case
from pipeline.overlooked import Overlooked
from pipeline.quality import (
    CaseError,
    check_geometry,
    check_label,
    check_same_grid,
    repair_origin,
)
from pipeline.volume import Volume


@dataclass(frozen=True)
class CaseReport:
    """What reading a case brought to light.

    Attributes:
        case_id: The case.
        faults: All that is wrong with it; `prep partition` would quarantine it for the first.
        findings: What is unusual about it.
    """

    case_id: str
    faults: tuple[str, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True)
class CohortInventory:
    """Size of a cohort as found on disk, with its grades and sites."""

    cases: int
    patients: int
    grades: dict[str, int]
    sites: dict[str, int]


@dataclass(frozen=True)
class ScanReport:
    """The whole inventory.

    Attributes:
        cohorts: What each cohort holds.
        patients: Persons in all cohorts together.
        overlaps: Patients that two cohorts share, by names joined with `+`.
        absent: Modalities that cases lack.
        repairs: Known faults that would be mended.
        faults: All that is wrong with cases that would be quarantined.
        findings: What is unusual about cases.
        overlooked: What looks like cases or archives and is not read, by path, and why.
        synthetic: Cases that `prep phantom` made.
    """

    cohorts: dict[str, CohortInventory]
    patients: int
    overlaps: dict[str, int]
    absent: dict[str, tuple[str, ...]]
    repairs: dict[str, tuple[str, ...]]
    faults: dict[str, tuple[str, ...]]
    findings: dict[str, tuple[str, ...]]
    overlooked: dict[str, str]
    synthetic: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the report as plain dictionaries, for JSON."""
        return asdict(self)


def inspect_case(case: Case, geometry: str) -> CaseReport:
    """Read every voxel of a case and check it as `prep partition` would.

    Args:
        case: The case.
        geometry: See `quality.check_geometry`.

    Returns:
        Its faults, if it has any, and its findings.
    """
    if case.faults:
        return CaseReport(
            case.case_id, (*case.faults, *_file_faults(case, geometry)), case.findings
        )
    try:
        sources = read_sources(case)
        plane = read_volume(sources, SEGMENTATION, geometry).voxels.shape[:2]
        settings = Preprocessing("zscore", bias_correct=False, geometry=geometry, plane=plane)
        found = prepare_case(case, sources, settings).findings.splitlines()
    except CaseError as error:
        faults = dict.fromkeys((str(error), *_file_faults(case, geometry)))
        return CaseReport(case.case_id, tuple(faults), case.findings)
    return CaseReport(case.case_id, (), (*case.findings, *found))


def _file_faults(case: Case, geometry: str) -> Iterator[str]:
    """Yield what is wrong with each file by itself, and between files: a preparation stops at the first."""
    stored: dict[str, Volume] = {}
    for role in (SEGMENTATION, *MODALITIES):
        if role in case.files:
            try:
                stored[role] = decode_source(read_files({role: case.files[role]}), role)
            except CaseError as error:
                yield str(error)
    if SEGMENTATION in stored:
        affines = {name: stored[name].affine for name in stored if name != SEGMENTATION}
        stored[SEGMENTATION], _ = repair_origin(stored[SEGMENTATION], affines)
    volumes: dict[str, Volume] = {}
    for role, volume in stored.items():
        try:
            volumes[role] = bring(volume, role, geometry)
        except CaseError as error:
            yield str(error)
    for name, volume in volumes.items():
        yield from _volume_faults(name, volume, volumes, geometry)


def _volume_faults(
    name: str, volume: Volume, volumes: Mapping[str, Volume], geometry: str
) -> Iterator[str]:
    """Yield what is wrong with a volume, and with its grid beside that of the first."""
    anchor = next(iter(volumes))
    yield from _faults(partial(check_same_grid, {anchor: volumes[anchor], name: volume}))
    if name == SEGMENTATION:
        yield from _faults(partial(check_label, volume.voxels))
        yield from _faults(partial(check_geometry, {name: volume}, geometry))
    else:
        settings = Preprocessing("zscore", bias_correct=False, geometry=geometry, plane=(0, 0))
        yield from _faults(partial(Images, {name: take_head(volume, settings, name)}, settings))


def _faults(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except CaseError as error:
        yield str(error)


def summarise(
    cases: Sequence[Case],
    reports: Sequence[CaseReport],
    overlooked: Sequence[Overlooked] = (),
) -> ScanReport:
    """Put cases and the reports of reading them together.

    Args:
        cases: All cases, with patients.
        reports: One for each case, in any order.
        overlooked: What is not read.

    Returns:
        The inventory.
    """
    patients = {
        cohort: {case.patient_id for case in cases if case.cohort == cohort} for cohort in COHORTS
    }
    present = [cohort for cohort in COHORTS if patients[cohort]]
    return ScanReport(
        cohorts={
            cohort: _inventory([c for c in cases if c.cohort == cohort]) for cohort in present
        },
        patients=len(set().union(*patients.values())),
        overlaps={f"{a}+{b}": len(patients[a] & patients[b]) for a, b in combinations(present, 2)},
        absent={case.case_id: case.absent for case in cases if case.absent},
        repairs=_repairs(cases, reports),
        faults={report.case_id: report.faults for report in reports if report.faults},
        findings=_findings(reports),
        overlooked={str(each.path): each.reason for each in overlooked},
        synthetic=tuple(case.case_id for case in cases if case.is_synthetic),
    )


def _repairs(cases: Sequence[Case], reports: Sequence[CaseReport]) -> dict[str, tuple[str, ...]]:
    inside = {report.case_id: repairs_in(report.findings) for report in reports}
    every = {case.case_id: (*case.repairs, *inside.get(case.case_id, ())) for case in cases}
    return {case_id: actions for case_id, actions in every.items() if actions}


def _findings(reports: Sequence[CaseReport]) -> dict[str, tuple[str, ...]]:
    other = {
        report.case_id: tuple(f for f in report.findings if not repairs_in([f]))
        for report in reports
    }
    return {case_id: findings for case_id, findings in other.items() if findings}


def _inventory(cases: Sequence[Case]) -> CohortInventory:
    return CohortInventory(
        cases=len(cases),
        patients=len({case.patient_id for case in cases}),
        grades=dict(sorted(Counter(case.grade for case in cases).items())),
        sites=dict(sorted(Counter(case.site for case in cases).items())),
    )
