"""Places to write to: refused before the work, and left as they were."""

import errno
import fcntl
import os
import re
from pathlib import Path

import pytest

from cache_schema.errors import InputError
from cache_schema.targets import require_writable_file, require_writable_folder, takes_locks

REQUIREMENTS = [require_writable_file, require_writable_folder]


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("require", REQUIREMENTS)
@pytest.mark.parametrize("name", ["new", "new/of/new"])
def test_a_place_that_can_be_made_will_do_and_is_not_made(tmp_path, require, name):
    require(tmp_path / name, "--out")
    assert below(tmp_path) == set()


def test_a_file_that_is_there_keeps_its_content(tmp_path):
    (tmp_path / "report").write_text("mine")
    require_writable_file(tmp_path / "report", "--out")
    assert (tmp_path / "report").read_text() == "mine"
    assert below(tmp_path) == {"report"}


@pytest.mark.parametrize("require", REQUIREMENTS)
def test_a_place_below_a_file_is_refused_by_option(tmp_path, require):
    (tmp_path / "notes").write_text("mine")
    place = tmp_path / "notes" / "deep" / "out"
    refusal = re.escape(f"--json {place} cannot be written (Not a directory); name a f")
    with pytest.raises(InputError, match=refusal):
        require(place, "--json")


def test_a_folder_in_place_of_a_file_is_refused_and_the_other_way_round(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(
        InputError, match=r"--out .* cannot be written \(Is a directory\); name a file"
    ):
        require_writable_file(tmp_path, "--out")
    with pytest.raises(InputError, match=r"--cache .*notes .*\(Not a directory\); name a folder"):
        require_writable_folder(tmp_path / "notes", "--cache")


@pytest.mark.parametrize("require", REQUIREMENTS)
def test_a_loop_of_links_is_refused(tmp_path, require):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match=r"--out .*/a cannot be written"):
        require(tmp_path / "a", "--out")


@pytest.mark.parametrize("require", REQUIREMENTS)
def test_a_name_too_long_is_refused(tmp_path, require):
    with pytest.raises(InputError, match=r"cannot be written \(File name too long\)"):
        require(tmp_path / ("x" * 300), "--out")


@pytest.mark.parametrize("require", REQUIREMENTS)
def test_a_file_system_that_may_not_be_written_is_refused(tmp_path, require, monkeypatch):
    honest = os.open

    def read_only(path, flags, *rest, **options):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return honest(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
        require(tmp_path / "out", "--out")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524])
def test_a_folder_without_locks_is_told_from_one_with_them(tmp_path, monkeypatch, number):
    assert takes_locks(tmp_path / "new")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert not takes_locks(tmp_path / "new")
    assert below(tmp_path) == set()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    require_writable_file(tmp_path / "pipe", "--json")
    require_writable_file(Path("/dev/stdout"), "--json")
