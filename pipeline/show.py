"""Tables of who got what, for a terminal."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from cache_schema.leakage import describe_data
from cache_schema.manifest import Manifest, Options
from cache_schema.vocabulary import COHORTS, LABELS
from pipeline.plan import Plan
from pipeline.request import spell_option
from pipeline.scan import ScanReport

MAX_NEIGHBOURS: Final = 8
"""Lines of a table for folders side by side that are not read for the same reason."""


def describe_options(options: Options) -> str:
    """Say by which options of `prep partition` a cache was made, as they are given there."""
    given = (spell_option(name, value) for name, value in options.model_dump().items())
    return f"made with {' '.join(given)}"


def client_table(manifest: Manifest) -> Table:
    """Show the training cases of each client: counts, mix of grades and sites, label volumes."""
    table = Table(title="Training cases by client; label volumes in thousand voxels")
    for heading in ("client", "pat.", "cases", "slices", *LABELS):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("grades", "sites"):
        table.add_column(heading, overflow="fold")
    for record in manifest.partition.clients:
        voxels = record.label_voxels
        table.add_row(
            *(str(n) for n in (record.client, record.patients, record.cases, record.slices)),
            *(f"{count / 1000:.1f}" for count in (voxels.NEC, voxels.ED, voxels.ET)),
            _mix(record.grades),
            _mix(record.sites),
        )
    return table


def cohort_table(manifest: Manifest) -> Table:
    """Show each cohort's size and test set, and how many test patients are trained on."""
    data = describe_data(manifest.leakage, is_synthetic=manifest.synthetic)
    table = Table(title=f"Cohorts, protocol {manifest.options.protocol}", caption=data)
    for heading in ("cohort", "cases", "patients", "test cases", "test patients also trained on"):
        table.add_column(heading, justify="left" if heading == "cohort" else "right")
    for cohort in COHORTS:
        if cohort in manifest.cohorts:
            record = manifest.cohorts[cohort]
            leak = manifest.leakage.cohorts.get(cohort)
            leaked = f"{leak.also_in_training} of {leak.test_patients}" if leak else "no test set"
            numbers = (record.cases, record.patients, record.test_cases)
            table.add_row(cohort, *(str(number) for number in numbers), leaked)
    return table


def plan_table(plan: Plan) -> Table:
    """Show who would get what, before any voxel is read."""
    table = Table(title="Plan: nothing was written")
    for heading in ("owner", "patients", "cases", "shards"):
        table.add_column(heading, justify="left" if heading == "owner" else "right")
    owners: dict[str, list[int]] = {}
    for number, shard in enumerate(plan.shards):
        owners.setdefault(shard.path.rsplit("/", 1)[0], []).append(number)
    for owner, numbers in owners.items():
        cases = [case for number in numbers for case in plan.shards[number].cases]
        patients = len({case.patient_id for case in cases})
        table.add_row(owner, *(str(n) for n in (patients, len(cases), len(numbers))))
    return table


def scan_tables(report: ScanReport) -> tuple[RenderableType, ...]:
    """Show what the archives hold, how they overlap, and what is wrong with them."""
    cohorts = Table(title=f"{report.patients} patients in all")
    for heading in ("cohort", "cases", "patients", "grades", "sites"):
        cohorts.add_column(heading)
    for name, cohort in report.cohorts.items():
        numbers = (str(cohort.cases), str(cohort.patients))
        cohorts.add_row(name, *numbers, _mix(cohort.grades), _mix(cohort.sites))
    overlaps = [f"{_are(count, 'patient')} in {names}" for names, count in report.overlaps.items()]
    made_up = [f"{_are(len(report.synthetic), 'case')} synthetic"] if report.synthetic else []
    return cohorts, *overlaps, *made_up, _cases_table(report), *_overlooked_table(report)


def _cases_table(report: ScanReport) -> RenderableType:
    """Show what is wrong or unusual, case by case."""
    table = Table(title="Cases worth a look")
    for heading in ("case", "what", "detail"):
        table.add_column(heading, overflow="fold")
    for what, entries in (
        ("fault", report.faults),
        ("absent", report.absent),
        ("repair", report.repairs),
        ("finding", report.findings),
    ):
        for name, details in entries.items():
            table.add_row(name, what, escape(", ".join(details)))
    return table if table.rows else "no faults, repairs or findings"


def _overlooked_table(report: ScanReport) -> Iterator[RenderableType]:
    """Show what is not read; of many neighbours with the same reason a few."""
    if not report.overlooked:
        return
    table = Table(title="Not read, though it looks like cases or archives")
    for heading in ("file or folder", "why"):
        table.add_column(heading, overflow="fold")
    alike: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for path, reason in report.overlooked.items():
        alike[str(Path(path).parent), reason].append(path)
    for (_, reason), paths in alike.items():
        for path in paths[:MAX_NEIGHBOURS]:
            table.add_row(escape(path), escape(reason))
        if len(paths) > MAX_NEIGHBOURS:
            table.add_row(
                f"and {len(paths) - MAX_NEIGHBOURS} more beside them; --json lists all", ""
            )
    yield table


def _are(count: int, what: str) -> str:
    return f"1 {what} is" if count == 1 else f"{count} {what}s are"


def _mix(counts: Mapping[str, int]) -> str:
    return " ".join(f"{name}:{count}" for name, count in sorted(counts.items()))
