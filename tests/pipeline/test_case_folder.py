"""Files that are there and cannot be read are not absent."""

import os
import socket
from pathlib import Path

import pytest

from cache_schema.errors import InputError
from pipeline.case_folder import list_folder, read_case_folder, why_unreadable
from pipeline.cohorts import WHOLE_FOLDER, discover

NAME = "BraTS20_Training_001"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A case with every file but FLAIR."""
    path = tmp_path / NAME
    path.mkdir()
    for role in ("t1", "t1ce", "t2", "seg"):
        (path / f"{NAME}_{role}.nii.gz").write_text(role)
    return path


def lay_dead_link(path: Path) -> None:
    path.symlink_to("../.git/annex/objects/aB/cD/MD5E-s2.nii.gz")


def lay_loop(path: Path) -> None:
    path.symlink_to(path.name)


def lay_socket(path: Path) -> None:
    cwd = Path.cwd()
    os.chdir(path.parent)  # the whole path is too long for a socket
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(cwd)


def lay_empty_folder(path: Path) -> None:
    path.mkdir()


def lay_folder_of_two(path: Path) -> None:
    path.mkdir()
    (path / "a.nii").write_text("a")
    (path / "b.nii").write_text("b")


def lay_folder_with_dead_link(path: Path) -> None:
    path.mkdir()
    (path / "inner.nii").symlink_to("/nowhere/inner.nii")


KINDS = {
    "dead link": (lay_dead_link, "is a link that leads nowhere, to ../.git/annex/objects/"),
    "loop": (lay_loop, "is a link that leads nowhere"),
    "socket": (lay_socket, "is a socket, not a file"),
    "pipe": (os.mkfifo, "is a pipe, not a file"),
    "empty folder": (lay_empty_folder, "is a folder of 0 files instead of one"),
    "folder of two": (lay_folder_of_two, "is a folder of 2 files instead of one"),
    "dead link inside": (lay_folder_with_dead_link, "inner.nii is a link that leads nowhere"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_opened_is_unreadable_and_not_absent(kind, folder):
    lay, reason = KINDS[kind]
    lay(folder / f"{NAME}_flair.nii.gz")
    (case,) = discover([folder.parent]).cases
    assert set(case.files) == {"t1", "t1ce", "t2", "seg"}
    assert case.absent == ()
    assert set(case.unreadable) == {"flair"}
    assert reason in case.unreadable["flair"]
    assert case.faults == (f"flair is there but cannot be read: {case.unreadable['flair']}",)


def test_a_file_that_may_not_be_read_is_unreadable(folder, monkeypatch):
    forbidden = folder / f"{NAME}_t2.nii.gz"
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != forbidden and real(path, mode))
    found = read_case_folder(folder, NAME)
    assert found.unreadable == {"t2": f"{forbidden.name} may not be read (Permission denied)"}


def test_an_unreadable_segmentation_is_not_said_to_be_missing(folder):
    seg = folder / f"{NAME}_seg.nii.gz"
    seg.unlink()
    lay_dead_link(seg)
    (case,) = discover([folder.parent]).cases
    assert len(case.faults) == 1
    assert case.faults[0].startswith("seg is there but cannot be read")
    assert case.absent == ("flair",)


def test_of_two_files_for_a_modality_the_one_that_can_be_opened_is_taken(folder):
    lay_dead_link(folder / f"{NAME}_t1.nii")  # sorts before the whole one
    (case,) = discover([folder.parent]).cases
    assert case.files["t1"].name == f"{NAME}_t1.nii.gz"
    assert case.unreadable == {}
    assert case.findings[0].startswith(f"{NAME}_t1.nii ignored: is a link that leads nowhere")


def test_a_case_folder_that_is_a_dead_link_is_a_case_with_a_fault(folder):
    (folder.parent / "BraTS20_Training_002").symlink_to("/nowhere/BraTS20_Training_002")
    whole, dead = discover([folder.parent]).cases
    assert (whole.faults, whole.absent) == ((), ("flair",))
    assert dead.case_id == "BraTS20_Training_002"
    assert set(dead.unreadable) == {WHOLE_FOLDER}
    assert dead.absent == ()
    (fault,) = dead.faults
    assert fault == (
        "folder is there but cannot be read: BraTS20_Training_002 is a link that leads nowhere, to "
        "/nowhere/BraTS20_Training_002 (No such file or directory)"
    )


@pytest.mark.parametrize(
    "hidden", ["data/HGG", f"data/HGG/{NAME}", f"data/HGG/{NAME}/{NAME}_t1.nii"]
)
def test_a_folder_that_may_not_be_listed_is_an_error_that_names_it(hidden, tmp_path, monkeypatch):
    case = tmp_path / "data" / "HGG" / NAME
    (case / f"{NAME}_t1.nii").mkdir(parents=True)
    real = os.scandir

    def scandir(path="."):
        if Path(path) == tmp_path / hidden:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="cannot be listed \\(Permission denied\\)") as caught:
        discover([tmp_path / "data"])
    assert str(tmp_path / hidden) in str(caught.value)


def test_a_list_is_sorted(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).touch()
    assert [path.name for path in list_folder(tmp_path)] == ["a", "b", "c"]


def test_a_file_is_readable_and_so_is_a_link_to_one(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("a")
    assert why_unreadable(tmp_path / "a") is None
    assert why_unreadable(tmp_path / "b") is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Läsion.txt", "Läsion.txt"),
        ("two\nlines.txt", "two\\nlines.txt"),
        (os.fsdecode(b"L\xe4sion.txt"), "L\\xe4sion.txt"),
    ],
)
def test_a_name_of_any_bytes_is_spelled_in_a_line_of_utf8(name, said, folder):
    (folder / name).write_text("x")
    (folder / f"{NAME}_flair.nii.gz").symlink_to(f"/nowhere/{name}")
    found = read_case_folder(folder, NAME)
    assert found.findings == [f"{said} ignored: not a file of this case"]
    assert f"to /nowhere/{said} (" in found.unreadable["flair"]
    assert found.unreadable["flair"].encode().decode().isprintable()
