"""Nothing that looks like a case is passed over without a word."""

from pathlib import Path

import pytest

from cache_schema.errors import InputError
from pipeline.cohorts import discover
from pipeline.overlooked import Overlooked, describe_overlooked

READ = "BraTS20_Training_001"


@pytest.fixture
def tree(tmp_path) -> Path:
    """An archive of one case as it should be, with what usually lies beside it."""
    archive = tmp_path / "BraTS2020_TrainingData" / "MICCAI_BraTS2020_TrainingData"
    write_scans(archive / READ)
    (archive / "name_mapping.csv").write_text("BraTS_2020_subject_ID\n")
    (archive / "README.txt").write_text("x")
    (tmp_path / "results" / "2020-01-01").mkdir(parents=True)
    return tmp_path


def write_scans(folder: Path, separator: str = "_") -> None:
    folder.mkdir(parents=True)
    for role in ("t1", "t1ce", "t2", "flair", "seg"):
        (folder / f"{folder.name}{separator}{role}.nii.gz").write_text(role)


def overlooked(tree: Path) -> dict[str, str]:
    found = discover([tree])
    assert [case.case_id for case in found.cases] == [READ]
    return {str(each.path.relative_to(tree)): each.reason for each in found.overlooked}


def test_a_tree_as_it_should_be_has_nothing_overlooked(tree):
    assert overlooked(tree) == {}


@pytest.mark.parametrize(
    "name",
    [
        "BraTS2021_00000",
        "BraTS-GLI-00000-000",
        "Brats17_CBICA_AAB_1",
        "FeTS2022_01341",
        "BraTS20_Training_1x",
        "BraTS2021\n00000",
        "Brats18_CBICA",
        "patient 7",
    ],
)
def test_a_folder_of_scans_under_another_name_is_named(name, tree):
    write_scans(tree / "more" / name)
    assert overlooked(tree) == {
        f"more/{name}": "5 scans, but it is not named like a case of BraTS 2018 to 2020"
    }


@pytest.mark.parametrize("mark", [" (1)", "(2)", " - Copy", " copy", " - Copy (3)", "_copy2"])
def test_a_second_copy_is_named_as_such(mark, tree):
    write_scans(tree / f"{READ}{mark}")
    assert overlooked(tree) == {
        f"{READ}{mark}": f"by its name a second copy of {READ}: remove or rename it"
    }


@pytest.mark.parametrize(
    "name",
    [
        "MICCAI_BraTS_2019_Data_Training.zip",
        "BraTS2021.tar",
        "x.tar.gz",
        "x.TGZ",
        "data.7z",
        "data.tar.xz",
        "archive.zip.001",
        "archive.zip.part",
        "archive.zip.crdownload",
        "two\nlines.zip",
    ],
)
def test_an_archive_that_is_still_packed_is_named(name, tree):
    (tree / "data").mkdir()
    (tree / "data" / name).write_bytes(b"PK\3\4")
    assert overlooked(tree) == {f"data/{name}": "still packed: unpack it"}


def test_a_folder_named_like_a_case_of_another_year_is_named_though_it_is_empty(tree):
    (tree / "BraTS2021_00495").mkdir()
    (tree / "BraTS2021_00496").mkdir()
    (tree / "BraTS2021_00496" / "readme.txt").write_text("x")
    assert overlooked(tree) == {
        "BraTS2021_00495": "an empty folder",
        "BraTS2021_00496": "a folder without scans",
    }


def test_scans_that_lie_loose_are_named_by_their_folder(tree):
    (tree / "results" / "mask.nii.gz").write_text("x")
    assert overlooked(tree) == {
        "results": "1 scan, but it is not named like a case of BraTS 2018 to 2020"
    }


def test_a_link_that_leads_nowhere_is_named_wherever_it_lies(tree):
    (tree / "HGG").symlink_to("/mnt/disk/HGG")
    assert overlooked(tree) == {
        "HGG": "is a link that leads nowhere, to /mnt/disk/HGG (No such file or directory)"
    }


def test_tables_in_a_form_that_is_not_read_are_named(tree):
    (tree / "name_mapping.xlsx").write_bytes(b"PK")
    (tree / "survival_info.csv").write_text("Who,Age\nme,60\n")
    found = overlooked(tree)
    assert found["name_mapping.xlsx"] == "not read in this form: save it as CSV"
    assert "no column of case ids" in found["survival_info.csv"]


def test_what_programs_keep_for_themselves_is_left_alone(tree):
    write_scans(tree / ".git" / "annex" / "objects" / "x")
    (tree / "__MACOSX").mkdir()
    (tree / "__MACOSX" / "._x.nii").write_text("x")
    assert overlooked(tree) == {}


def test_where_no_case_is_found_the_first_of_those_overlooked_is_named(tmp_path):
    write_scans(tmp_path / "data" / "BraTS2021_00000")
    write_scans(tmp_path / "data" / "BraTS2021_00002")
    with pytest.raises(InputError, match="no BraTS case under") as caught:
        discover([tmp_path / "data"])
    assert "2 files or folders look like cases or archives and are not read, first" in str(
        caught.value
    )
    assert "BraTS2021_00000 (5 scans" in str(caught.value)


def test_one_is_counted_in_the_singular():
    one = Overlooked(Path("x.zip"), "still packed: unpack it")
    assert (
        describe_overlooked([one])
        == "1 file or folder looks like cases or archives and is not read"
    )


def test_the_real_archives_of_other_years_are_named(brats):
    found = discover([brats])
    assert len(found.cases) == 17  # sixteen of 2018 and BraTS20_Training_001
    named = {each.path.name for each in found.overlooked}
    assert {"BraTS2021_01476", "BraTS2021_01477", "BraTS2021_01479", "BraTS2021_01482"} <= named
    assert "BraTS-GLI-00000-000" in named


@pytest.mark.parametrize("home", [".cache", ".local/share", "here"])
def test_only_what_is_hidden_below_a_root_is_left_alone(home, tmp_path, monkeypatch):
    write_scans(tmp_path / home / "data" / READ)
    write_scans(tmp_path / home / "data" / "BraTS2021_00000")
    (tmp_path / "here" / "results").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / "here" / "results")
    for root in (tmp_path / home / "data", Path("../..") / home / "data"):
        assert [each.path.name for each in discover([root]).overlooked] == ["BraTS2021_00000"]


def test_what_lies_inside_the_folder_of_a_case_is_named_too(tree):
    write_scans(tree / "HGG" / READ.replace("001", "002") / "BraTS20_Training_003")
    (tree / "HGG" / "BraTS20_Training_002" / "BraTS20_Training_002_t1.nii.zip").write_bytes(b"PK")
    found = {each.path.name: each.reason for each in discover([tree]).overlooked}
    assert found == {
        "BraTS20_Training_002_t1.nii.zip": "still packed: unpack it",
        "BraTS20_Training_003": "a case inside the folder of a case: move it out",
    }


def test_what_a_system_leaves_everywhere_is_not_named(tree):
    for name in ("._x.zip", ".x.zip.swp", "Thumbs.db", "desktop.ini"):
        (tree / name).write_text("x")
    assert overlooked(tree) == {}
