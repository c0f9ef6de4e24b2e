"""Folders to cases: three layouts, mirrors of them, and what goes wrong in each."""

import gzip
import os
from pathlib import Path

import pytest

from cache_schema.errors import InputError
from pipeline.cohorts import canonical_case_id, discover

SUFFIXES = ("t1", "t1ce", "t2", "flair", "seg")


def write_case(folder: Path, *, extension: str = ".nii.gz", suffixes=SUFFIXES) -> Path:
    """Write a case whose files hold their own suffix instead of an image."""
    folder.mkdir(parents=True)
    for suffix in suffixes:
        (folder / f"{folder.name}_{suffix}{extension}").write_text(suffix)
    return folder


def contents(case) -> dict[str, str]:
    return {role: path.read_text() for role, path in case.files.items()}


def test_the_three_layouts_are_found_at_any_depth(small_tree):
    inventory = discover([small_tree])
    sizes = {"brats2018": 0, "brats2019": 0, "brats2020": 0}
    for case in inventory.cases:
        sizes[case.cohort] += 1
        assert set(case.files) == set(SUFFIXES)
        assert case.absent == case.findings == case.repairs == ()
    assert sizes == {"brats2018": 5, "brats2019": 5, "brats2020": 6}
    assert [path.parent.name for path in inventory.name_mappings] == [
        "MICCAI_BraTS2020_TrainingData",
        "MICCAI_BraTS_2019_Data_Training",
    ]


def test_cases_are_sorted_by_id_wherever_they_lie(small_tree):
    archives = sorted(small_tree.iterdir())
    forward, backward = discover(archives), discover(archives[::-1])
    assert forward.cases == backward.cases
    ids = [case.case_id for case in forward.cases]
    assert ids == sorted(ids)


def test_tables_are_sorted_by_path_in_whatever_order_roots_are_given(small_tree):
    archives = sorted(small_tree.iterdir())
    forward, backward = discover(archives), discover(archives[::-1])
    assert len(forward.name_mappings) == 2
    assert forward.name_mappings == backward.name_mappings


def test_the_grade_is_that_of_the_folder_above(tmp_path):
    write_case(tmp_path / "HGG" / "Brats18_CBICA_AAB_1")
    write_case(tmp_path / "lgg" / "BraTS19_TCIA10_101_1")
    write_case(tmp_path / "BraTS20_Training_001")
    grades = {case.case_id: case.grade for case in discover([tmp_path]).cases}
    assert grades == {
        "Brats18_CBICA_AAB_1": "HGG",
        "BraTS19_TCIA10_101_1": "LGG",
        "BraTS20_Training_001": "unknown",
    }


def test_t1_is_not_t1ce(tmp_path):
    folder = write_case(tmp_path / "Brats18_2013_2_1")
    (case,) = discover([tmp_path]).cases
    assert contents(case) == {suffix: suffix for suffix in SUFFIXES}
    (folder / "Brats18_2013_2_1_t1.nii.gz").unlink()
    (case,) = discover([tmp_path]).cases
    assert case.absent == ("t1",)
    assert contents(case)["t1ce"] == "t1ce"


def test_files_of_a_case_need_not_sort_like_those_of_its_neighbour(tmp_path):
    # With zip(sorted(glob("*_t1*")), sorted(glob("*_seg*"))) every later case gets a foreign mask.
    for number in (1, 2, 3):
        write_case(tmp_path / f"BraTS20_Training_00{number}", suffixes=SUFFIXES)
    (tmp_path / "BraTS20_Training_001" / "BraTS20_Training_001_seg.nii.gz").unlink()
    for case in discover([tmp_path]).cases[1:]:
        assert {path.name.split("_")[2] for path in case.files.values()} == {case.case_id[-3:]}


def test_plain_and_compressed_names_are_both_taken(tmp_path):
    write_case(tmp_path / "BraTS20_Training_001", extension=".nii")
    write_case(tmp_path / "BraTS20_Training_002", extension=".NII.GZ")
    assert all(case.absent == () for case in discover([tmp_path]).cases)


def test_a_mirrors_folder_named_like_a_file_gives_the_file_inside(tmp_path):
    folder = write_case(tmp_path / "Brats18_TCIA01_131_1", suffixes=SUFFIXES[:3])
    mirror = folder / "Brats18_TCIA01_131_1_flair.nii"
    mirror.mkdir()
    (mirror / "Brats17_TCIA_131_1_flair.nii").write_text("flair")
    (case,) = discover([tmp_path]).cases
    assert contents(case)["flair"] == "flair"
    assert case.findings == ()


def test_a_mirrors_folder_with_two_files_is_unreadable_and_not_a_guess(tmp_path):
    folder = write_case(tmp_path / "Brats18_TCIA01_131_1", suffixes=("t1",))
    mirror = folder / "Brats18_TCIA01_131_1_flair.nii"
    mirror.mkdir()
    (mirror / "a.nii").write_text("a")
    (mirror / "b.nii").write_text("b")
    (case,) = discover([tmp_path]).cases
    assert case.unreadable == {"flair": f"{mirror.name} is a folder of 2 files instead of one"}
    assert case.absent == ("t1ce", "t2")


def test_the_misnamed_segmentation_of_case_355_is_repaired(tmp_path):
    folder = write_case(tmp_path / "BraTS20_Training_355", suffixes=SUFFIXES[:4])
    (folder / "W39_1998.09.19_Segm.nii").write_text("seg")
    (case,) = discover([tmp_path]).cases
    assert contents(case)["seg"] == "seg"
    assert case.repairs == ("W39_1998.09.19_Segm.nii taken as seg",)
    assert case.findings == ()


def test_that_name_is_not_a_segmentation_in_any_other_case(tmp_path):
    folder = write_case(tmp_path / "BraTS20_Training_356", suffixes=SUFFIXES[:4])
    (folder / "W39_1998.09.19_Segm.nii").write_text("seg")
    (case,) = discover([tmp_path]).cases
    assert "seg" not in case.files
    assert case.repairs == ()
    assert case.findings == ("W39_1998.09.19_Segm.nii ignored: not a file of this case",)


def test_ids_are_spelled_as_in_the_archive_whatever_the_mirror_did(tmp_path):
    write_case(tmp_path / "brats18_cbica_aab_1")
    write_case(tmp_path / "BRATS19_TMC_06290_1")
    write_case(tmp_path / "brats20_training_007")
    cases = discover([tmp_path]).cases
    assert [case.case_id for case in cases] == [
        "BraTS19_TMC_06290_1",
        "BraTS20_Training_007",
        "Brats18_CBICA_AAB_1",
    ]
    assert all(case.absent == () for case in cases)


def test_a_stray_file_is_a_finding(tmp_path):
    folder = write_case(tmp_path / "BraTS20_Training_001")
    (folder / "BraTS20_Training_002_t1.nii.gz").write_text("of another case")
    (case,) = discover([tmp_path]).cases
    assert contents(case)["t1"] == "t1"
    assert case.findings == ("BraTS20_Training_002_t1.nii.gz ignored: not a file of this case",)


def test_a_modality_that_is_there_twice_is_a_finding(tmp_path):
    folder = write_case(tmp_path / "BraTS20_Training_001")
    (folder / "BraTS20_Training_001_t2.nii").write_text("again")
    (case,) = discover([tmp_path]).cases
    assert contents(case)["t2"] == "again"  # `.nii` sorts before `.nii.gz`
    assert case.findings == (
        "BraTS20_Training_001_t2.nii.gz ignored: BraTS20_Training_001_t2.nii was taken as t2",
    )


def test_a_case_in_two_places_is_refused_naming_both(tmp_path):
    one = write_case(tmp_path / "a" / "BraTS20_Training_001")
    other = write_case(tmp_path / "b" / "brats20_training_001")
    with pytest.raises(InputError, match="BraTS20_Training_001 lies both in") as caught:
        discover([tmp_path])
    assert str(one) in str(caught.value)
    assert str(other) in str(caught.value)


def test_the_same_folder_reached_twice_is_one_case(tmp_path):
    write_case(tmp_path / "data" / "BraTS20_Training_001")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(discover([tmp_path / "data", tmp_path, tmp_path / "link"]).cases) == 1


def test_a_tree_without_cases_is_refused(tmp_path):
    write_case(tmp_path / "BraTS-GLI-00000-000")  # 2023
    with pytest.raises(InputError, match="no BraTS case under"):
        discover([tmp_path])


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="data is not a folder"):
        discover([tmp_path / "data"])


def test_survival_tables_become_attributes_of_their_cases(tmp_path):
    write_case(tmp_path / "HGG" / "Brats18_TCIA08_167_1")
    write_case(tmp_path / "BraTS20_Training_001")
    write_case(tmp_path / "BraTS20_Training_002")
    (tmp_path / "survival_data.csv").write_text(
        "Brats18ID,Age,Survival,ResectionStatus\nBrats18_TCIA08_167_1,74.9,153,NA\n"
    )
    (tmp_path / "survival_info.csv").write_text(
        "Brats20ID,Age,Survival_days,Extent_of_Resection\nBraTS20_Training_001,60.4,289,GTR\n"
    )
    first, second, third = discover([tmp_path]).cases
    assert first.attributes == {
        "Age": "60.4",
        "Survival_days": "289",
        "Extent_of_Resection": "GTR",
    }
    assert second.attributes == {}
    assert third.attributes == {"Age": "74.9", "Survival": "153", "ResectionStatus": "NA"}


def test_a_survival_table_that_begins_with_a_blank_line_is_no_crash(tmp_path):
    write_case(tmp_path / "BraTS20_Training_001")
    (tmp_path / "survival_info.csv").write_text("\nBrats20ID,Age\nBraTS20_Training_001,60\n")
    discover([tmp_path])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("brats18_cbica_aab_1", "Brats18_CBICA_AAB_1"),
        ("BraTS20_Validation_012", "BraTS20_Validation_012"),
        ("BraTS20_Training_001_t1", None),
        ("Brats17_CBICA_AAB_1", None),
        ("BraTS20_Training_", None),
    ],
)
def test_only_a_case_id_is_a_case_id(text, expected):
    assert canonical_case_id(text) == expected


def test_files_with_a_wrong_extension_are_kept_for_the_reader_to_judge(tmp_path):
    folder = write_case(tmp_path / "BraTS20_Training_001", suffixes=SUFFIXES[1:])
    (folder / "BraTS20_Training_001_t1.nii").write_bytes(gzip.compress(b"t1"))
    (case,) = discover([tmp_path]).cases
    assert gzip.decompress(case.files["t1"].read_bytes()) == b"t1"


@pytest.mark.parametrize("root", [".", "..", "../Brats18_CBICA_AAB_1"])
def test_a_root_may_be_a_case_under_whatever_name(root, tmp_path, monkeypatch):
    folder = write_case(tmp_path / "Brats18_CBICA_AAB_1")
    (folder / "notes").mkdir()
    monkeypatch.chdir(folder / "notes" if root == ".." else folder)
    (case,) = discover([Path(root)]).cases
    assert (case.case_id, set(case.files)) == ("Brats18_CBICA_AAB_1", set(SUFFIXES))


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", "desktop.ini", "._BraTS20_Training_001_t1.nii.gz", "@eaDir"]
)
def test_what_a_system_leaves_beside_files_is_no_finding(name, tmp_path):
    folder = write_case(tmp_path / "BraTS20_Training_001")
    (folder / name).write_text("x")
    assert discover([tmp_path]).cases[0].findings == ()


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db"])
def test_a_case_nested_in_its_own_name_is_found_whatever_a_system_left_there(name, tmp_path):
    write_case(tmp_path / "BraTS20_Training_001" / "BraTS20_Training_001")
    (tmp_path / "BraTS20_Training_001" / name).write_text("x")
    (case,) = discover([tmp_path]).cases
    assert set(case.files) == set(SUFFIXES)


def test_a_link_under_the_name_of_another_case_hides_nobody(tmp_path):
    write_case(tmp_path / "BraTS20_Training_002")
    (tmp_path / "BraTS20_Training_001").symlink_to("BraTS20_Training_002")
    first, second = discover([tmp_path]).cases
    assert (first.case_id, first.files) == ("BraTS20_Training_001", {})
    assert (second.case_id, set(second.files)) == ("BraTS20_Training_002", set(SUFFIXES))


def test_a_file_named_like_a_case_is_a_case_that_cannot_be_read(tmp_path):
    write_case(tmp_path / "BraTS20_Training_001")
    # What a checkout on Windows makes of a link.
    (tmp_path / "BraTS20_Training_002").write_text("../annex/BraTS20_Training_002")
    _, case = discover([tmp_path]).cases
    assert case.absent == ()
    assert case.faults == (
        "folder is there but cannot be read: BraTS20_Training_002 is a file, not a folder",
    )


def test_a_root_that_may_not_be_looked_at_is_named(tmp_path, monkeypatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(InputError, match=r"data cannot be listed \(Permission denied\)"):
        discover([tmp_path / "data"])


def test_a_root_that_is_a_link_to_nowhere_is_called_so(tmp_path):
    (tmp_path / "data").symlink_to("/mnt/disk/data")
    with pytest.raises(InputError, match=r"data is a link that leads nowhere, to /mnt/disk/data"):
        discover([tmp_path / "data"])


def test_names_that_are_no_utf8_are_findings_that_can_be_stored(tmp_path):
    folder = write_case(tmp_path / "Brats18_CBICA_AAB_1", suffixes=("t1", "t2"))
    (folder / os.fsdecode(b"caf\xe9.nii.gz")).write_text("")
    (folder / f"{folder.name}_flair.nii.gz").symlink_to(os.fsdecode(b"caf\xe9"))
    (case,) = discover([tmp_path]).cases
    assert case.findings == ("caf\\xe9.nii.gz ignored: not a file of this case",)
    assert r"leads nowhere, to caf\xe9 " in case.unreadable["flair"]
