"""Tables of the cache: its cohorts, its clients, and what was left out."""

from cache_schema.leakage import describe_data
from cache_schema.manifest import LeakageRecord, Manifest
from cache_schema.vocabulary import COHORTS, LABELS
from training.report.table import PageTable, Row, thousands


def cohort_table(manifest: Manifest, leakage: LeakageRecord) -> PageTable:
    """Count the cases of each cohort, and the test patients that are trained on as well.

    Args:
        manifest: Of the cache.
        leakage: What its leak count is worth for the runs of the page.
    """
    rows = []
    for name in (cohort for cohort in COHORTS if cohort in manifest.cohorts):
        cohort, leak = manifest.cohorts[name], manifest.leakage.cohorts.get(name)
        numbers = [cohort.cases, cohort.patients, cohort.cases - cohort.test_cases]
        numbers += [cohort.test_cases, leak.test_patients if leak else 0]
        numbers += [leak.also_in_training if leak else 0]
        rows.append(Row((name, *map(str, numbers))))
    header = (
        "cohort",
        "cases",
        "patients",
        "not test",
        "test cases",
        "test patients",
        "of these trained on",
    )
    return PageTable(
        f"Cohorts and their test sets; {describe_data(leakage, is_synthetic=manifest.synthetic)}",
        header,
        tuple(rows),
    )


def client_table(manifest: Manifest) -> PageTable:
    """Count what each client holds."""
    clients = manifest.partition.clients
    grades = sorted({grade for client in clients for grade in client.grades})
    rows = [
        (
            client.patients,
            client.cases,
            *(client.grades.get(grade, 0) for grade in grades),
            client.slices,
            *(int(getattr(client.label_voxels, name)) for name in LABELS),
        )
        for client in clients
    ]
    header = ("client", "patients", "cases", *grades, "slices", *LABELS)
    total = tuple(thousands(sum(column)) for column in zip(*rows, strict=True))
    return PageTable(
        f"Training data of each client; {', '.join(LABELS)} in voxels",
        header,
        (
            *(
                Row((str(client.client), *map(thousands, row)))
                for client, row in zip(clients, rows, strict=True)
            ),
            Row(("all", *total), "total"),
        ),
    )


def omission_tables(manifest: Manifest) -> list[PageTable]:
    """List the cases that were quarantined, and those that a later cohort's case of a patient replaced."""
    quarantined = tuple(Row((q.case_id, q.cohort, q.reason)) for q in manifest.quarantined)
    superseded = tuple(Row((s.case_id, s.cohort, s.patient_id)) for s in manifest.superseded)
    tables = [
        PageTable("Quarantined cases", ("case", "cohort", "reason"), quarantined, (0, 1, 2)),
        PageTable(
            "Training cases left out for a later cohort's case of the same patient",
            ("case", "cohort", "patient"),
            superseded,
            (0, 1, 2),
        ),
    ]
    return [table for table in tables if table.rows]
