"""All 989 cases of BraTS 2018, 2019 and 2020 under their real ids, with volumes of a few voxels.

The ids of 2018 and 2019 come from the true name mapping. Nobody may publish that of 2020, so one of
the same form is made: the people of 2019 and 34 more, numbered in a drawn order.
"""

import csv
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cache_schema.manifest import CaseRecord, LabelVoxels, count_leakage, read_manifest
from pipeline.cohorts import Case, discover
from pipeline.identity import identify
from pipeline.partition import partition_patients
from pipeline.phantom.archives import brats_affine
from pipeline.plan import Plan, make_plan
from pipeline.split import draw_test_cases
from pipeline.volume import encode_nifti

ROOT = Path(__file__).parents[2]
SHAPE = (8, 6, 4)
YEARS = ("BraTS_2018_subject_ID", "BraTS_2019_subject_ID", "BraTS_2020_subject_ID")
FOLDERS = (
    "MICCAI_BraTS_2018_Data_Training",
    "MICCAI_BraTS_2019_Data_Training",
    "MICCAI_BraTS2020_TrainingData",
)
NUM_SEEDS = 200
NUM_CLIENTS = 20


def tell(text: str) -> None:
    """Show a duration, or what else is worth knowing, to whoever runs `pytest -s`."""
    print(f"\n{text}")  # noqa: T201


@dataclass(frozen=True)
class Cohorts:
    """The tree of 989 cases, and the rows of the mapping of 2020: one for each person."""

    root: Path
    rows: list[dict[str, str]]


@pytest.fixture(scope="module")
def cohorts(real_data, tmp_path_factory) -> Cohorts:
    root = tmp_path_factory.mktemp("cohorts") / "data"
    true_mapping = real_data / "metadata" / "name_mapping_2019.csv"
    with true_mapping.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[YEARS[1]]]
    numbers = np.random.default_rng(2020).permutation(len(rows) + 34) + 1
    newcomer = dict.fromkeys(rows[0], "NA") | {"Grade": "HGG"}
    rows = [*rows, *(dict(newcomer) for _ in range(34))]
    for row, number in zip(rows, numbers.tolist(), strict=True):
        row[YEARS[2]] = f"BraTS20_Training_{number:03d}"
    for person, row in enumerate(rows):
        files = encode_person(person)
        for folder, year in zip(FOLDERS, YEARS, strict=True):
            if row[year] != "NA":
                graded = root / folder / ("" if year == YEARS[2] else row["Grade"])
                write_case(graded / row[year], files)
    (root / FOLDERS[1] / "name_mapping.csv").write_bytes(true_mapping.read_bytes())
    with (root / FOLDERS[2] / "name_mapping.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return Cohorts(root, rows)


def encode_person(person: int) -> dict[str, bytes]:
    """Draw a person's volumes, which are the same in every year."""
    random = np.random.default_rng(person)
    label = np.zeros(SHAPE, np.uint8)
    label[3:6, 2:4, 1:3] = random.choice([0, 1, 2, 4], (3, 2, 2))
    volumes = {"seg": label}
    for name in ("t1", "t1ce", "t2", "flair"):
        image = np.zeros(SHAPE, np.int16)
        image[1:-1, 1:-1] = random.integers(1, 1000, (6, 4, 4))
        volumes[name] = image
    return {name: encode_nifti(voxels, brats_affine(SHAPE)) for name, voxels in volumes.items()}


def write_case(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{folder.name}_{name}.nii.gz").write_bytes(content)


@pytest.fixture(scope="module")
def cases(cohorts) -> tuple[Case, ...]:
    start = time.perf_counter()
    inventory = discover([cohorts.root])
    found = time.perf_counter()
    described = identify(inventory)
    end = time.perf_counter()
    tell(f"989 cases: discover {found - start:.2f} s, identify {end - found:.2f} s")
    return described


def groups(cases: tuple[Case, ...]) -> set[frozenset[str]]:
    """The cases of each person."""
    owned: dict[str, set[str]] = {}
    for case in cases:
        owned.setdefault(case.patient_id, set()).add(case.case_id)
    return {frozenset(own) for own in owned.values()}


def people(cohorts: Cohorts) -> set[frozenset[str]]:
    """The same, as the rows of the mapping say it."""
    return {frozenset({row[year] for year in YEARS} - {"NA"}) for row in cohorts.rows}


def test_989_cases_are_369_people(cases, cohorts):
    assert Counter(case.cohort for case in cases) == {
        "brats2018": 285,
        "brats2019": 335,
        "brats2020": 369,
    }
    assert len(people(cohorts)) == 369
    assert groups(cases) == people(cohorts)


def test_everybody_of_a_year_is_in_the_years_after(cases):
    patients = {
        cohort: {case.patient_id for case in cases if case.cohort == cohort}
        for cohort in ("brats2018", "brats2019", "brats2020")
    }
    assert len(patients["brats2018"] & patients["brats2019"]) == 285
    assert len(patients["brats2018"] & patients["brats2020"]) == 285
    assert len(patients["brats2019"] & patients["brats2020"]) == 335


def test_voxels_tell_the_same_people_where_the_mappings_are_lost(cohorts):
    inventory = replace(discover([cohorts.root]), name_mappings=())
    start = time.perf_counter()
    described = identify(inventory)
    tell(f"without mappings: identify by voxels {time.perf_counter() - start:.2f} s")
    assert groups(described) == people(cohorts)


def test_200_seeds_split_and_deal_989_cases_without_a_leak_or_an_empty_client(cases):
    seconds = [check_seed(cases, seed) for seed in range(NUM_SEEDS)]
    mean = sum(seconds) / len(seconds)
    tell(f"split and partition of 989 cases: {mean:.3f} s a seed, at most {max(seconds):.3f} s")


def check_seed(cases: tuple[Case, ...], seed: int) -> float:
    """Hold one seed against the rules and return the seconds that it took."""
    start = time.perf_counter()
    tested = draw_test_cases(cases, fraction=0.1, protocol="patient", seed=seed)
    training = [case for case in cases if case.case_id not in tested]
    partition = partition_patients(training, num_clients=NUM_CLIENTS, alpha=1.0, seed=seed)
    seconds = time.perf_counter() - start
    # 28.5, 33.5 and 36.9, halves up.
    counts = Counter(case.cohort for case in cases if case.case_id in tested)
    assert counts == {"brats2018": 29, "brats2019": 34, "brats2020": 37}
    trained = {case.patient_id for case in training}
    assert not trained & {case.patient_id for case in cases if case.case_id in tested}
    dealt = [patient for client in partition.patients for patient in client]
    assert len(partition.patients) == NUM_CLIENTS
    assert all(partition.patients)
    assert len(dealt) == len(set(dealt)) == 369 - 37  # who is in any year is in 2020
    assert set(dealt) == trained
    before = Counter({client: len(own) for client, own in enumerate(partition.patients)})
    for move in partition.repairs:
        before[move.source] += 1
        before[move.target] -= 1
    # Before the repair everybody has the drawn share, rounded up or down.
    assert all(abs(before[k] - q * len(dealt)) < 1 for k, q in enumerate(partition.q["all"]))
    return seconds


@pytest.mark.parametrize("seed", range(5))
def test_the_papers_protocol_leaks_as_much_as_a_count_from_the_mapping_says(
    cohorts, small_options, seed
):
    options = {"clients": NUM_CLIENTS, "test_fraction": 0.1, "protocol": "paper", "seed": seed}
    plan = make_plan([cohorts.root], small_options.model_copy(update=options))
    leakage = count_leakage(tuple(records(plan)), "paper")
    tested = {c.case_id for s in plan.shards if s.client is None for c in s.cases}
    everyone = {row[year] for row in cohorts.rows for year in YEARS} - {"NA"}
    assert len(everyone) == 989
    for year, cohort in zip(YEARS, ("brats2018", "brats2019", "brats2020"), strict=True):
        # The people whom this year tests, and those of them of whom any case is trained on.
        rows = [row for row in cohorts.rows if row[year] in tested]
        leaked = [row for row in rows if {row[y] for y in YEARS} & (everyone - tested)]
        assert leakage.cohorts[cohort].test_patients == len(rows)
        assert leakage.cohorts[cohort].also_in_training == len(leaked)
    rows = [row for row in cohorts.rows if {row[y] for y in YEARS} & tested]
    leaked = [row for row in rows if {row[y] for y in YEARS} & (everyone - tested)]
    assert (leakage.test_patients, leakage.also_in_training) == (len(rows), len(leaked))
    assert len(leaked) > 60  # nearly everybody but the newcomers of 2020
    tell(f"protocol paper, seed {seed}: {len(leaked)} of {len(rows)} test patients also train")


def records(plan: Plan) -> Iterator[CaseRecord]:
    """What a manifest would say of the cases of a plan."""
    for shard in plan.shards:
        for case in shard.cases:
            yield CaseRecord(
                case_id=case.case_id,
                patient_id=case.patient_id,
                cohort=case.cohort,
                grade=case.grade,
                site=case.site,
                split="test" if shard.client is None else "train",
                client=shard.client,
                shard=shard.path,
                key="",
                num_slices=1,
                label_voxels=LabelVoxels(NEC=0, ED=0, ET=0),
                present=(True, True, True, True),
                findings=(),
                attributes={},
            )


def prep(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `prep` in a fresh interpreter, as its console script does."""
    return subprocess.run(
        [sys.executable, "-c", "import cli; cli.run_prep()", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_989_cases_go_through_the_real_command(cohorts, cases, tmp_path):
    start = time.perf_counter()
    command = ("partition", cohorts.root, "--clients", NUM_CLIENTS, "--geometry", "any")
    result = prep(*command, cwd=tmp_path)
    prepared = time.perf_counter()
    assert (result.returncode, result.stderr) == (0, "")
    result = prep("verify", "cache", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    tell(f"prep partition {prepared - start:.1f} s, verify {time.perf_counter() - prepared:.1f} s")
    manifest = read_manifest(tmp_path / "cache")
    assert {case.case_id: case.patient_id for case in manifest.cases} == {
        case.case_id: case.patient_id for case in cases
    }
    assert [record.test_cases for record in manifest.cohorts.values()] == [29, 34, 37]
    assert len(manifest.partition.clients) == NUM_CLIENTS
    assert all(client.cases for client in manifest.partition.clients)
    assert manifest.leakage.also_in_training == 0


def test_989_cases_are_scanned(cohorts, tmp_path):
    start = time.perf_counter()
    result = prep("scan", cohorts.root, "--geometry", "any", cwd=tmp_path)
    tell(f"prep scan of 989 cases: {time.perf_counter() - start:.1f} s")
    assert (result.returncode, result.stderr) == (0, "")
    assert "369 patients in all" in result.stdout
    assert "285 patients are in brats2018+brats2019" in result.stdout
    assert "335 patients are in brats2019+brats2020" in result.stdout
