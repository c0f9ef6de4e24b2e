"""An inventory of archives: what is there, what overlaps, what is wrong. Writes nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from cache_schema.findings import repairs_in
from cache_schema.vocabulary import COHORTS
from pipeline.case import Preprocessing, prepare_case, read_sources, read_volume
from pipeline.cohorts import SEGMENTATION, Case
from pipeline.quality import CaseError


@dataclass(frozen=True)
class CaseReport:
    """What reading a case brought to light.

    Attributes:
        case_id: The case.
        fault: Why `prep partition` would quarantine it, or None.
        findings: What is unusual about it.
    """

    case_id: str
    fault: str | None
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
        faults: Why cases would be quarantined.
        findings: What is unusual about sound cases.
    """

    cohorts: dict[str, CohortInventory]
    patients: int
    overlaps: dict[str, int]
    absent: dict[str, tuple[str, ...]]
    repairs: dict[str, tuple[str, ...]]
    faults: dict[str, str]
    findings: dict[str, tuple[str, ...]]

    def document(self) -> dict[str, Any]:
        """Return the report as plain dictionaries, for JSON."""
        return asdict(self)


def inspect_case(case: Case, geometry: str) -> CaseReport:
    """Read every voxel of a case and check it as `prep partition` would.

    Args:
        case: The case.
        geometry: See `quality.check_geometry`.

    Returns:
        Its fault, if it has one, and its findings.
    """
    try:
        sources = read_sources(case)
        plane = read_volume(sources, SEGMENTATION, geometry).voxels.shape[:2]
        settings = Preprocessing("zscore", bias_correct=False, geometry=geometry, plane=plane)
        found = prepare_case(case, sources, settings).findings.splitlines()
    except CaseError as error:
        return CaseReport(case.case_id, str(error), case.findings)
    return CaseReport(case.case_id, None, (*case.findings, *found))


def summarise(cases: Sequence[Case], reports: Sequence[CaseReport]) -> ScanReport:
    """Put cases and the reports of reading them together.

    Args:
        cases: All cases, with patients.
        reports: One for each case, in any order.

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
        faults={report.case_id: report.fault for report in reports if report.fault is not None},
        findings=_findings(reports),
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
