"""Tables for a terminal: the numbers of the manifest, under the right headings."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from cache_schema.leakage import SYNTHETIC_NOTE
from cache_schema.manifest import read_manifest
from pipeline.scan import CaseReport, summarise
from pipeline.show import client_table, cohort_table, describe_options, plan_table, scan_tables


@pytest.fixture
def rows():
    """Prints tables on a wide terminal and gives the cells of every line."""

    def cells(*tables) -> list[list[str]]:
        text = io.StringIO()
        Console(file=text, width=300).print(*tables, sep="\n")
        lines = text.getvalue().replace("┃", "│").splitlines()
        return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]

    return cells


@pytest.fixture(scope="module")
def manifest(small_cache):
    return read_manifest(small_cache)


def test_the_options_are_shown_as_they_are_given(manifest):
    options = manifest.options.model_copy(update={"alpha": 0.5, "bias_correct": True})
    assert describe_options(options) == (
        "made with --clients 2 --alpha 0.5 --seed 0 --test-fraction 0.2 --protocol patient --skew quantity "
        "--min-cases 1 --missing refuse --bias-correct --normalize zscore --geometry any --shard-cases 3 "
        "--duplicates keep"
    )
    assert " --no-bias-correct " in describe_options(manifest.options)


def test_each_client_has_a_line_of_its_numbers(manifest, rows):
    table = rows(client_table(manifest))
    heading = next(line for line in table if line[0] == "client")
    for record in manifest.partition.clients:
        line = next(line for line in table if line[0] == str(record.client))
        shown = dict(zip(heading, line, strict=True))
        assert line[1:4] == [str(n) for n in (record.patients, record.cases, record.slices)]
        assert shown["NEC"] == f"{record.label_voxels.NEC / 1000:.1f}"
        assert shown["ED"] == f"{record.label_voxels.ED / 1000:.1f}"
        assert shown["grades"] == mix(record.grades)
        assert shown["sites"] == mix(record.sites)


def mix(counts: dict[str, int]) -> str:
    return " ".join(f"{name}:{counts[name]}" for name in sorted(counts))


def test_cohorts_show_their_test_sets(manifest, rows):
    table = rows(cohort_table(manifest))
    assert ["brats2018", "5", "5", "1", "0 of 1"] in table
    assert ["brats2020", "6", "6", "1", "0 of 1"] in table


def test_leaked_test_patients_are_shown(manifest, rows):
    leak = manifest.leakage.cohorts["brats2018"].model_copy(
        update={"test_patients": 29, "also_in_training": 28}
    )
    leakage = manifest.leakage.model_copy(update={"cohorts": {"brats2018": leak}})
    table = rows(cohort_table(manifest.model_copy(update={"leakage": leakage})))
    assert ["brats2018", "5", "5", "1", "28 of 29"] in table
    assert ["brats2019", "5", "5", "1", "no test set"] in table


def test_the_cohorts_say_their_leak_and_whether_they_are_synthetic(manifest):
    leak = "protocol patient: 0 of 1 test patients were also trained on"
    assert cohort_table(manifest).caption == leak
    synthetic = manifest.model_copy(update={"synthetic": True})
    assert cohort_table(synthetic).caption == f"{SYNTHETIC_NOTE}; {leak}"


def test_a_plan_is_shown_by_owner(small_plan, rows):
    table = rows(plan_table(small_plan))
    assert ["test/brats2018", "1", "1", "1"] in table
    for client, patients in enumerate(small_plan.partition.patients):
        owned = [shard for shard in small_plan.shards if shard.client == client]
        num_cases = sum(len(shard.cases) for shard in owned)
        numbers = [str(n) for n in (len(patients), num_cases, len(owned))]
        assert [f"clients/client-{client:02d}", *numbers] in table


def test_a_scan_shows_every_case_worth_a_look(small_plan, rows):
    cases = list(small_plan.cases)
    cases[3] = replace(cases[3], repairs=("a taken as seg",))
    cases[4] = replace(cases[4], files={"seg": cases[4].files["seg"]})
    reports = [CaseReport(cases[0].case_id, ("t1 is empty",), ("notes.txt ignored", "no ET"))]
    table = rows(*scan_tables(summarise(cases, reports)))
    assert ["brats2018", "5", "5"] in [line[:3] for line in table]
    assert [cases[0].case_id, "fault", "t1 is empty"] in table
    assert [cases[0].case_id, "finding", "notes.txt ignored, no ET"] in table
    assert [cases[3].case_id, "repair", "a taken as seg"] in table
    assert [cases[4].case_id, "absent", "t1, t1ce, t2, flair"] in table


@pytest.mark.parametrize(
    ("count", "line"), [(1, "1 case is synthetic"), (2, "2 cases are synthetic")]
)
def test_a_scan_counts_synthetic_cases(small_plan, rows, count, line):
    cases = [
        replace(case, is_synthetic=place < count) for place, case in enumerate(small_plan.cases)
    ]
    assert [line] in rows(*scan_tables(summarise(cases, [])))


def test_a_scan_shows_every_overlap_on_a_line_of_its_own(small_plan, rows):
    table = rows(*scan_tables(summarise(small_plan.cases, [])))
    assert ["5 patients are in brats2018+brats2019"] in table
    assert ["5 patients are in brats2019+brats2020"] in table


def test_a_scan_says_a_single_patient_or_case_in_the_singular(small_plan, rows):
    patient = small_plan.cases[0].patient_id
    cases = [case for case in small_plan.cases if case.patient_id == patient]
    cases[0] = replace(cases[0], is_synthetic=True)
    cases[1:] = [replace(case, is_synthetic=False) for case in cases[1:]]
    table = rows(*scan_tables(summarise(cases, [])))
    assert ["1 patient is in brats2018+brats2019"] in table
    assert ["1 case is synthetic"] in table


def test_a_scan_without_anything_to_look_at_says_so(small_plan, rows):
    table = rows(*scan_tables(summarise(small_plan.cases, [])))
    assert table[-1] == ["no faults, repairs or findings"]
