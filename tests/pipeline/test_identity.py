"""Cases to patients: whoever is in three archives under three names is one person."""

import csv
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cache_schema.vocabulary import SYNTHETIC_MARK
from pipeline import voxel_identity
from pipeline.cohorts import Case, Inventory, discover
from pipeline.identity import identify

MAPPING_2020 = """\
Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID
HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_005
LGG,Brats17_TCIA_101_1,Brats18_TCIA10_101_1,TCGA-DU-5855,BraTS19_TCIA10_101_1,BraTS20_Training_002
HGG,NA,NA,NA,BraTS19_TMC_06290_1,BraTS20_Training_001
HGG,NA,NA,NA,NA,BraTS20_Training_003
"""


@pytest.fixture
def describe(tmp_path):
    """Identifies cases by their ids alone, given the texts of name mappings."""

    def identified(*case_ids: str, mappings=()) -> dict[str, Case]:
        paths = []
        for number, text in enumerate(mappings):
            paths.append(tmp_path / f"name_mapping_{number}.csv")
            paths[-1].write_text(text, encoding="utf-8")
        cohorts = {"Brats18": "brats2018", "BraTS19": "brats2019", "BraTS20": "brats2020"}
        cases = tuple(Case(name, cohorts[name[:7]], Path(name), {}) for name in case_ids)
        return {case.case_id: case for case in identify(Inventory(cases, tuple(paths)))}

    return identified


def test_2018_and_2019_ids_that_differ_in_the_year_alone_are_one_patient(describe):
    cases = describe("Brats18_CBICA_AAB_1", "BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAG_1")
    assert [case.patient_id for case in cases.values()] == ["CBICA_AAB_1"] * 2 + ["CBICA_AAG_1"]


def test_2020_is_joined_by_the_mapping_and_gets_grade_and_site_from_it(describe):
    cases = describe("BraTS20_Training_005", "BraTS20_Training_002", mappings=[MAPPING_2020])
    described = {name: (c.patient_id, c.grade, c.site) for name, c in cases.items()}
    assert described == {
        "BraTS20_Training_005": ("CBICA_AAB_1", "HGG", "CBICA"),
        # Not TCIA_101_1, the id of 2017, whose site says less.
        "BraTS20_Training_002": ("TCIA10_101_1", "LGG", "TCIA10"),
    }


def test_2020_alone_and_without_mapping_is_a_patient_of_its_own(describe):
    cases = describe("BraTS20_Training_003", "BraTS20_Training_005")
    assert {c.patient_id for c in cases.values()} == {
        "BraTS20_Training_003",
        "BraTS20_Training_005",
    }
    assert {(c.grade, c.site) for c in cases.values()} == {("unknown", "unknown")}


def test_na_joins_nobody(describe):
    cases = describe("BraTS20_Training_001", "BraTS20_Training_003", mappings=[MAPPING_2020])
    assert cases["BraTS20_Training_001"].patient_id == "TMC_06290_1"
    assert cases["BraTS20_Training_003"].patient_id == "BraTS20_Training_003"
    assert cases["BraTS20_Training_003"].grade == "HGG"


def test_a_patients_id_does_not_depend_on_the_years_at_hand(describe):
    names = ("Brats18_TCIA10_101_1", "BraTS19_TCIA10_101_1", "BraTS20_Training_002")
    together = describe(*names, mappings=[MAPPING_2020])
    alone = [describe(name, mappings=[MAPPING_2020])[name] for name in names]
    assert [case.patient_id for case in alone] == ["TCIA10_101_1"] * 3
    assert [case.patient_id for case in together.values()] == ["TCIA10_101_1"] * 3
    assert describe(names[0])[names[0]].patient_id == "TCIA10_101_1"


def test_a_tcga_id_joins_rows_of_different_mappings(describe):
    first = "Grade,BraTS_2019_subject_ID,TCGA_TCIA_subject_ID\nLGG,BraTS19_TCIA10_101_1,TCGA-DU-1\n"
    second = "TCGA_TCIA_subject_ID,BraTS_2020_subject_ID\nTCGA-DU-1,BraTS20_Training_009\n"
    for mappings in ([first, second], [second, first]):
        cases = describe("BraTS20_Training_009", mappings=mappings)
        case = cases["BraTS20_Training_009"]
        assert (case.patient_id, case.site) == ("TCIA10_101_1", "TCIA10")


def test_names_join_in_many_steps(describe):
    # A-B, C-D, then B-C: a union that does not follow representatives leaves two groups.
    mapping = (
        "BraTS_2018_subject_ID,BraTS_2019_subject_ID\n"
        "Brats18_Z_4_1,BraTS19_Y_3_1\n"
        "Brats18_X_2_1,BraTS19_W_1_1\n"
        "Brats18_X_2_1,BraTS19_Y_3_1\n"
    )
    names = ("Brats18_Z_4_1", "BraTS19_Y_3_1", "Brats18_X_2_1", "BraTS19_W_1_1")
    cases = describe(*names, mappings=[mapping])
    assert {case.patient_id for case in cases.values()} == {"W_1_1"}


def test_the_folders_grade_goes_before_the_mappings(tmp_path):
    path = tmp_path / "name_mapping.csv"
    path.write_text(MAPPING_2020)
    case = Case("Brats18_CBICA_AAB_1", "brats2018", tmp_path, {}, grade="LGG")
    (found,) = identify(Inventory((case,), (path,)))
    assert found.grade == "LGG"


def test_the_site_is_read_from_the_id(describe):
    cases = describe("Brats18_2013_2_1", "BraTS19_TCIA01_131_1")
    assert [case.site for case in cases.values()] == ["2013", "TCIA01"]


def test_a_mapping_with_a_byte_order_mark_and_other_columns_is_read(describe):
    mapping = (
        "\ufeffBraTS_2020_subject_ID,Comment,BraTS_2019_subject_ID\n"
        "BraTS20_Training_004,x,BraTS19_A_1_1\n"
    )
    case = describe("BraTS20_Training_004", mappings=[mapping])["BraTS20_Training_004"]
    assert (case.patient_id, case.grade) == ("A_1_1", "unknown")


def test_a_mapping_of_semicolons_and_ids_in_lower_case_joins_as_any_other(describe):
    mapping = "brats2020;brats2019;grade\nbrats20_training_004;brats19_tcia10_1_1;lgg\n"
    case = describe("BraTS20_Training_004", mappings=[mapping])["BraTS20_Training_004"]
    assert (case.patient_id, case.grade, case.site) == ("TCIA10_1_1", "LGG", "TCIA10")


def test_the_phantoms_people_are_found_again(small_tree):
    cases = identify(discover([small_tree]))
    with (small_tree / "MICCAI_BraTS2020_TrainingData" / "name_mapping.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(cases) == 16
    assert len({case.patient_id for case in cases}) == len(rows) == 6
    people = [
        {value for name, value in row.items() if name.startswith("BraTS_") and value != "NA"}
        for row in rows
    ]
    for case in cases:
        row = next(names for names in people if case.case_id in names)
        same = {other.case_id for other in cases if other.patient_id == case.patient_id}
        assert same <= row


def write_t1(root, name, value, descrip):
    """Write a case of one modality; `descrip` makes the files differ where the voxels do not."""
    (root / name).mkdir()
    image = nib.Nifti1Image(np.full((2, 3, 4), value, np.int16), np.eye(4))
    image.header["descrip"] = descrip
    nib.save(image, root / name / f"{name}_t1.nii.gz")


def test_equal_voxels_under_unrelated_names_are_one_patient(tmp_path):
    write_t1(tmp_path, "Brats18_CBICA_AAB_1", 7, "of 2018")
    write_t1(tmp_path, "BraTS20_Training_001", 7, "of 2020")
    write_t1(tmp_path, "BraTS20_Training_002", 8, "of 2020")
    found = identify(discover([tmp_path]))
    patients = {case.case_id: case.patient_id for case in found}
    assert patients == {
        "Brats18_CBICA_AAB_1": "CBICA_AAB_1",
        "BraTS20_Training_001": "CBICA_AAB_1",
        "BraTS20_Training_002": "BraTS20_Training_002",
    }
    assert {c.site for c in found if c.patient_id == "CBICA_AAB_1"} == {"CBICA"}


def test_whole_scans_are_read_only_where_that_tells_something_new(small_tree, monkeypatch):
    read = []
    digests = voxel_identity._digests

    def note(scan):
        read.append((scan.case.case_id, scan.modality))
        return digests(scan)

    monkeypatch.setattr(voxel_identity, "_digests", note)
    inventory = discover([small_tree])
    identify(inventory)
    assert read == []  # the mapping of 2020 says already who is equal to whom
    identify(replace(inventory, name_mappings=()))
    # One scan of every case of the five people in all years; nobody of 2020 alone
    assert Counter(modality for _, modality in read) == {"t1": 15}


def test_a_lost_mapping_changes_no_patient_but_the_names_of_those_in_2020_alone(small_tree):
    inventory = discover([small_tree])
    mapped = identify(inventory)
    lost = identify(replace(inventory, name_mappings=()))
    assert [case.patient_id for case in lost] == [case.patient_id for case in mapped]


def test_a_mapping_that_contradicts_the_voxels_is_overruled_and_that_is_a_finding(tmp_path):
    write_t1(tmp_path, "Brats18_CBICA_AAB_1", 7, "of 2018")
    write_t1(tmp_path, "BraTS20_Training_001", 7, "of 2020")
    write_t1(tmp_path, "BraTS20_Training_005", 8, "of 2020")
    (tmp_path / "name_mapping.csv").write_text(MAPPING_2020)
    found = {case.case_id: case for case in identify(discover([tmp_path]))}
    assert {case.patient_id for case in found.values()} == {"CBICA_AAB_1"}
    said = "t1 has the same voxels as t1 of {}, which a name mapping takes for another patient"
    assert found["Brats18_CBICA_AAB_1"].findings == (
        f"{said.format('BraTS20_Training_001')}: taken for one",
    )
    assert found["BraTS20_Training_001"].findings == (
        f"{said.format('Brats18_CBICA_AAB_1')}: taken for one",
    )
    assert found["BraTS20_Training_005"].findings == ()


def test_two_names_that_a_mapping_exchanged_are_findings_of_all_four_cases(tmp_path):
    for number, name in enumerate(("Brats18_CBICA_AAB_1", "Brats18_CBICA_AAC_1")):
        for twin in (name, f"BraTS20_Training_00{number + 1}"):
            write_t1(tmp_path, twin, 7 + number, "")
            shutil.copy(
                tmp_path / twin / f"{twin}_t1.nii.gz", tmp_path / twin / f"{twin}_t2.nii.gz"
            )
    (tmp_path / "name_mapping.csv").write_text(
        "BraTS_2018_subject_ID,BraTS_2020_subject_ID\n"
        "Brats18_CBICA_AAB_1,BraTS20_Training_002\nBrats18_CBICA_AAC_1,BraTS20_Training_001\n"
    )
    found = {case.case_id: case.findings for case in identify(discover([tmp_path]))}
    for name, twin in (
        ("Brats18_CBICA_AAB_1", "BraTS20_Training_001"),
        ("Brats18_CBICA_AAC_1", "BraTS20_Training_002"),
    ):
        for one, other in ((name, twin), (twin, name)):
            said = (
                f"t1 has the same voxels as t1 of {other}, which a name mapping takes for another"
            )
            assert sum(finding.startswith(said) for finding in found[one]) == 1


def test_a_mapping_that_knows_one_of_two_equal_cases_only_is_not_contradicted(tmp_path):
    write_t1(tmp_path, "Brats18_CBICA_AAB_1", 7, "of 2018")
    write_t1(tmp_path, "BraTS20_Training_001", 7, "of 2020")
    (tmp_path / "name_mapping.csv").write_text(
        "Grade,BraTS_2018_subject_ID,BraTS_2019_subject_ID\nHGG,Brats18_CBICA_AAB_1,NA\n"
    )
    found = identify(discover([tmp_path]))
    assert {case.patient_id for case in found} == {"CBICA_AAB_1"}
    assert [case.findings for case in found] == [(), ()]


def test_a_mapping_that_has_another_name_for_one_of_two_equal_cases_is_contradicted(tmp_path):
    write_t1(tmp_path, "Brats18_CBICA_AAB_1", 7, "of 2018")
    write_t1(tmp_path, "BraTS20_Training_077", 7, "no row of the mapping has it")
    (tmp_path / "name_mapping.csv").write_text(MAPPING_2020)  # AAB_1 is BraTS20_Training_005
    found = identify(discover([tmp_path]))
    assert {case.patient_id for case in found} == {"CBICA_AAB_1"}
    assert all("which a name mapping takes for another" in case.findings[0] for case in found)


def test_equal_scans_within_a_cohort_are_one_patient_and_a_finding_of_each(tmp_path):
    for name, value in {"CBICA_AAB_1": 7, "TCIA01_131_1": 7, "TMC_06290_1": 8}.items():
        write_t1(tmp_path, f"BraTS19_{name}", value, name)
    first, second, third = identify(discover([tmp_path]))
    assert (first.patient_id, second.patient_id) == ("CBICA_AAB_1", "CBICA_AAB_1")
    assert first.findings == (
        "t1 has the same voxels as t1 of BraTS19_TCIA01_131_1: taken for one patient",
    )
    assert second.findings == (
        "t1 has the same voxels as t1 of BraTS19_CBICA_AAB_1: taken for one patient",
    )
    assert (third.patient_id, third.findings) == ("TMC_06290_1", ())


def test_a_modality_that_is_another_one_of_the_same_case_is_a_finding(tmp_path):
    write_t1(tmp_path, "BraTS20_Training_001", 7, "")
    folder = tmp_path / "BraTS20_Training_001"
    shutil.copy(folder / f"{folder.name}_t1.nii.gz", folder / f"{folder.name}_t2.nii.gz")
    (case,) = identify(discover([tmp_path]))
    assert case.findings == (
        "t1 has the same voxels as its t2",
        "t2 has the same voxels as its t1",
    )


def test_a_scan_of_one_person_under_another_modality_of_another_name_is_recognised(tmp_path):
    write_t1(tmp_path, "Brats18_CBICA_AAB_1", 7, "")
    write_t1(tmp_path, "BraTS20_Training_001", 7, "")
    path = tmp_path / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii.gz"
    path.rename(path.with_name("BraTS20_Training_001_flair.nii.gz"))
    assert {case.patient_id for case in identify(discover([tmp_path]))} == {"CBICA_AAB_1"}


def test_the_three_years_of_the_sixteen_real_patients_are_sixteen_people(brats, tmp_path):
    subprocess.run(
        [sys.executable, brats / "alias_years.py", tmp_path, "--type", "float32"], check=True
    )
    mapped = identify(discover([tmp_path]))
    for path in tmp_path.rglob("*mapping*.csv"):
        path.unlink()
    unmapped = identify(discover([tmp_path]))
    for cases in (mapped, unmapped):
        years: defaultdict[str, set[str]] = defaultdict(set)
        for case in cases:
            years[case.patient_id].add(case.cohort)
        assert len(cases) == 48
        assert sorted(map(len, years.values())) == [3] * 16
        assert all(case.findings == () for case in cases)


def test_the_true_mapping_of_2019_names_335_people(real_data):
    path = real_data / "metadata" / "name_mapping_2019.csv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    years = {"BraTS_2018_subject_ID": "brats2018", "BraTS_2019_subject_ID": "brats2019"}
    cases = tuple(
        Case(row[column], cohort, Path(), {})
        for column, cohort in years.items()
        for row in rows
        if row[column] != "NA"
    )
    found = identify(Inventory(cases, (path,)))
    in_2019 = [case for case in found if case.cohort == "brats2019"]
    assert Counter(case.cohort for case in found) == {"brats2018": 285, "brats2019": 335}
    assert len({case.patient_id for case in found}) == 335
    assert {c.patient_id for c in found if c.cohort == "brats2018"} < {
        c.patient_id for c in in_2019
    }
    assert Counter(case.grade for case in in_2019) == {"HGG": 259, "LGG": 76}
    sites = Counter(case.site for case in in_2019)
    assert (sites["CBICA"], sites["2013"], sites["TMC"], sites["TCIA10"]) == (129, 30, 9, 35)
    assert len(sites) == 14
    # The ids of 2018 and 2019 alone tell as much as the mapping does.
    assert [case.patient_id for case in identify(Inventory(cases, ()))] == [
        case.patient_id for case in found
    ]


def only_case(root: Path) -> Case:
    (case,) = identify(discover([root]))
    return case


def test_a_phantoms_case_is_known_by_its_headers_wherever_it_is_copied(small_tree, tmp_path):
    folder = small_tree / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_001"
    shutil.copytree(folder, tmp_path / "data" / folder.name)
    assert only_case(tmp_path / "data").is_synthetic
    (tmp_path / "other").mkdir()
    write_t1(tmp_path / "other", "BraTS20_Training_002", 7, "synthetic contrast agent")
    assert not only_case(tmp_path / "other").is_synthetic


def test_a_phantoms_case_is_known_by_its_archive_whatever_was_done_to_its_files(tmp_path):
    archive = tmp_path / "data" / "MICCAI_BraTS2020_TrainingData"
    archive.mkdir(parents=True)
    write_t1(archive, "BraTS20_Training_001", 7, "header rewritten")
    assert not only_case(archive).is_synthetic
    (archive / SYNTHETIC_MARK).write_text("made up\n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "BraTS20_Training_001").symlink_to(archive / "BraTS20_Training_001")
    for root in (archive, tmp_path / "data", archive / "BraTS20_Training_001", tmp_path / "linked"):
        assert only_case(root).is_synthetic


def test_scans_that_are_equal_in_the_axes_of_their_files_and_in_others_are_one_finding(tmp_path):
    voxels = np.random.default_rng(0).integers(1, 900, (12, 12, 12)).astype(np.int16)
    for name in ("BraTS19_CBICA_AAB_1", "BraTS19_TCIA01_131_1"):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name / f"{name}_t1.nii.gz")
    for case in identify(discover([tmp_path])):
        assert len(case.findings) == 1
