"""An inventory that says of every case what `prep partition` would say."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.case import prepare_case, read_sources
from pipeline.cohorts import Case
from pipeline.overlooked import Overlooked
from pipeline.quality import CaseError
from pipeline.scan import CaseReport, inspect_case, summarise


def truncated(case: Case, role: str, folder: Path) -> Case:
    path = folder / case.files[role].name
    path.write_bytes(case.files[role].read_bytes()[:100])
    return replace(case, files={**case.files, role: path})


def test_a_sound_case_has_no_fault(small_plan):
    for case in small_plan.cases:
        report = inspect_case(case, "any")
        assert report.case_id == case.case_id
        assert report.faults == ()


def test_findings_of_folder_and_voxels_come_together(small_plan):
    without_et = next(c for c in small_plan.cases if "no ET" in inspect_case(c, "any").findings)
    case = replace(without_et, findings=("notes.txt ignored",))
    assert inspect_case(case, "any").findings[:2] == ("notes.txt ignored", "no ET")


def test_another_geometry_is_a_fault_unless_any_is_allowed(small_plan):
    (fault,) = inspect_case(small_plan.cases[0], "brats").faults
    assert fault == "shape (24, 20, 17) is not (240, 240, 155); see --geometry any"


@pytest.mark.parametrize(
    "role",
    [
        "t1ce",
        "seg",
    ],
)
def test_the_fault_is_the_reason_for_which_partition_would_quarantine(small_plan, tmp_path, role):
    case = truncated(small_plan.cases[0], role, tmp_path)
    with pytest.raises(CaseError) as caught:
        prepare_case(case, read_sources(case), small_plan.preprocessing)
    assert inspect_case(case, "any").faults == (str(caught.value),)


def stored_anew(case: Case, role: str, folder: Path, codes: str = "LPS", origin=None) -> Case:
    """A case one of whose files has other axes, and another origin if one is given."""
    image = nib.load(case.files[role])
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    affine = turned.affine.copy()
    if origin is not None:
        affine[:3, 3] = origin
    path = folder / case.files[role].name
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), affine), path)
    return replace(case, files={**case.files, role: path})


def test_files_in_other_axes_are_no_fault(small_plan, tmp_path):
    case = small_plan.cases[0]
    plain = inspect_case(case, "any")
    for role in ("seg", "t1", "t2"):
        case = stored_anew(case, role, tmp_path, "PIR")
    assert inspect_case(case, "any") == plain


def test_a_repaired_origin_is_listed_among_repairs_alone(small_plan, tmp_path):
    case = replace(small_plan.cases[0], repairs=("W39.nii taken as seg",))
    moved = stored_anew(case, "seg", tmp_path, origin=(5.0, 6.0, 7.0))
    report = summarise([moved], [inspect_case(moved, "any")])
    named, inside = report.repairs[case.case_id]
    assert named == "W39.nii taken as seg"
    assert inside.startswith("origin (5, 6, 7) of seg taken as (")
    assert not any("origin" in f for f in report.findings.get(case.case_id, ()))
    assert report.faults == {}


def test_no_segmentation_is_a_fault(small_plan):
    files = {role: path for role, path in small_plan.cases[0].files.items() if role != "seg"}
    case = replace(small_plan.cases[0], files=files)
    assert inspect_case(case, "any").faults == ("no segmentation file",)


def test_all_faults_of_a_case_are_told_at_once(small_plan, tmp_path):
    case = truncated(small_plan.cases[0], "t1", tmp_path)
    flair = nib.load(case.files["flair"])
    volumes = {
        "t1ce": np.zeros(flair.shape, np.int16),
        "t2": np.arange(60, dtype=np.int16).reshape(3, 4, 5),
        "seg": np.full(flair.shape, 3, np.uint8),
    }
    files = dict(case.files)
    for role, voxels in volumes.items():
        files[role] = tmp_path / f"new_{role}.nii"
        nib.save(nib.Nifti1Image(voxels, flair.affine), files[role])
    faults = inspect_case(replace(case, files=files), "any").faults
    assert len(faults) == 4
    for beginning in (
        "t1 is not a readable NIfTI file",
        "t1ce is empty",
        "t2 has shape (3, 4, 5)",
        "segmentation has labels [3]",
    ):
        assert any(fault.startswith(beginning) for fault in faults), beginning


def test_files_that_cannot_be_opened_are_faults_beside_those_of_the_others(small_plan, tmp_path):
    case = truncated(small_plan.cases[0], "t2", tmp_path)
    files = {role: path for role, path in case.files.items() if role not in {"flair", "seg"}}
    blocked = replace(
        case, files=files, unreadable={"flair": "x_flair.nii is a socket, not a file"}
    )
    first, second, third = inspect_case(blocked, "any").faults
    assert first == "flair is there but cannot be read: x_flair.nii is a socket, not a file"
    assert second == "no segmentation file"
    assert third.startswith("t2 is not a readable NIfTI file")
    assert blocked.absent == ()


def case(case_id: str, cohort: str, patient: str, grade: str, **changes) -> Case:
    files = {role: Path(role) for role in ("t1", "t1ce", "t2", "flair", "seg")}
    return Case(case_id, cohort, Path(), files, patient, grade, patient[:1], **changes)


CASES = (
    case("Brats18_A_1", "brats2018", "A1", "HGG"),
    case("Brats18_A_2", "brats2018", "A2", "HGG"),
    case("Brats18_B_1", "brats2018", "B1", "LGG"),
    replace(
        case("BraTS20_Training_001", "brats2020", "A1", "HGG"), files={"t2": Path(), "seg": Path()}
    ),
    case("BraTS20_Training_002", "brats2020", "C1", "LGG", repairs=("x taken as seg",)),
)
REPORTS = (
    CaseReport("BraTS20_Training_001", ("t2 is empty", "seg is cut short"), ()),
    CaseReport("Brats18_A_1", (), ("no ET",)),
    CaseReport("Brats18_B_1", (), ()),
)


def test_cohorts_grades_sites_and_overlaps_are_counted():
    report = summarise(CASES, REPORTS)
    assert report.patients == 4  # A1 is in two years
    assert report.overlaps == {"brats2018+brats2020": 1}
    first, second = report.cohorts["brats2018"], report.cohorts["brats2020"]
    assert (first.cases, first.patients, first.grades, first.sites) == (
        3,
        3,
        {"HGG": 2, "LGG": 1},
        {"A": 2, "B": 1},
    )
    assert (second.cases, second.grades) == (2, {"HGG": 1, "LGG": 1})
    assert "brats2019" not in report.cohorts


def test_only_what_is_worth_a_look_is_listed():
    report = summarise(CASES, REPORTS)
    assert report.absent == {"BraTS20_Training_001": ("t1", "t1ce", "flair")}
    assert report.repairs == {"BraTS20_Training_002": ("x taken as seg",)}
    assert report.faults == {"BraTS20_Training_001": ("t2 is empty", "seg is cut short")}
    assert report.findings == {"Brats18_A_1": ("no ET",)}


def test_what_is_not_read_and_what_is_made_up_is_listed():
    overlooked = (Overlooked(Path("data/a.zip"), "still packed: unpack it"),)
    made_up = (replace(CASES[0], is_synthetic=True), *CASES[1:])
    report = summarise(made_up, REPORTS, overlooked)
    assert report.overlooked == {"data/a.zip": "still packed: unpack it"}
    assert report.synthetic == ("Brats18_A_1",)


def test_the_report_is_json():
    document = summarise(CASES, REPORTS).document()
    assert json.loads(json.dumps(document))["cohorts"]["brats2018"]["grades"] == {
        "HGG": 2,
        "LGG": 1,
    }
