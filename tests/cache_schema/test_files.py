"""Files are whole or as before, whatever happens while they are written."""

import errno
import os
import threading
from pathlib import Path

import pytest

from cache_schema.errors import InputError
from cache_schema.files import (
    refuse_links,
    remove_partials,
    replacing,
    reporting,
    write_atomically,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def fail(*_):
    raise FULL


def test_bytes_and_text_are_written_as_they_are_and_nothing_else_is_left(tmp_path):
    write_atomically(tmp_path / "new" / "a.bin", b"\x00\r\n")
    write_atomically(tmp_path / "new" / "a.txt", "é\r\nb\n")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\r\n"
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\xc3\xa9\r\nb\n"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"a.bin", "a.txt"}


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "pathlib.Path.write_bytes"])
def test_a_failure_leaves_the_older_file_and_is_one_line(step, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(step, fail)
    with pytest.raises(InputError) as caught:
        write_atomically(path, "new", option="--json", advice="name another")
    expected = f"--json {path} cannot be written (No space left on device); name another"
    assert str(caught.value) == expected
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_without_an_older_file_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=r"a\.txt cannot be written"):
        write_atomically(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_in_a_block_leaves_the_older_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_and_then_its_folder_are_on_the_disk(tmp_path, monkeypatch):
    synced, honest = [], os.fsync

    def fsync(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        honest(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    write_atomically(tmp_path / "a.txt", "new")
    assert [path.name for path in synced] == ["a.txt", tmp_path.name]
    assert synced[0].parent.parent == tmp_path


def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch):
    honest = os.fsync

    def fsync(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        honest(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    write_atomically(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_two_writers_of_one_file_never_share_a_path(tmp_path):
    path, both = tmp_path / "a.bin", threading.Barrier(2)

    def write(content):
        with replacing(path) as partial:
            partial.write_bytes(content[:1])
            both.wait()
            with partial.open("ab") as file:
                file.write(content[1:])

    contents = (b"a" * 1000, b"b" * 999)
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_links_under_names_of_earlier_releases_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("a.txt.partial", "a.partial", ".a.txt.partial", ".a.partial.txt"):
        (tmp_path / name).symlink_to(victim)
    write_atomically(tmp_path / "a.txt", "new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_link_to_an_older_file_stays_a_link(tmp_path):
    (tmp_path / "old.html").write_text("old")
    (tmp_path / "latest.html").symlink_to("old.html")
    write_atomically(tmp_path / "latest.html", "new", option="--html")
    assert (tmp_path / "latest.html").is_symlink()
    assert (tmp_path / "old.html").read_text() == "new"


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", "new", option="--json")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_permissions_are_those_of_any_new_file_or_of_the_older_one(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "new", "")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "private").touch(0o600)
    write_atomically(tmp_path / "private", "new")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_the_longest_name_that_the_disk_takes_can_be_written(tmp_path):
    write_atomically(tmp_path / ("é" * 127), "new")
    assert (tmp_path / ("é" * 127)).read_text() == "new"


@pytest.mark.parametrize("place", ["file/a.txt", "folder"])
def test_a_place_that_cannot_be_is_one_line(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=rf"{place} cannot be written \(.*\); make room or"):
        write_atomically(tmp_path / place, "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_an_error_without_a_number_is_told_by_its_text(tmp_path):
    with (
        pytest.raises(InputError, match=r"a cannot be written \(odd\); try"),
        reporting(Path("a"), advice="try"),
    ):
        raise OSError("odd")


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    killed = replacing(tmp_path / "a.txt")
    killed.__enter__().write_text("half")
    (tmp_path / "notes.partial").write_text("mine")
    (tmp_path / ".notes.partial").write_text("mine")
    (tmp_path / ".Dataset501_BraTS.partial").mkdir()
    assert len(list(tmp_path.iterdir())) == 4
    remove_partials(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes.partial", ".notes.partial", ".Dataset501_BraTS.partial"}


def test_a_link_in_a_folder_of_ours_gives_way_to_the_file_and_leads_nowhere(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "victim").chmod(0o600)
    (tmp_path / "model.bin").symlink_to("victim")
    write_atomically(tmp_path / "model.bin", "new")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "model.bin").is_symlink()
    assert (tmp_path / "model.bin").read_text() == "new"


def test_a_pipe_in_a_folder_of_ours_gives_way_without_waiting_for_its_reader(tmp_path):
    os.mkfifo(tmp_path / "model.bin")
    write_atomically(tmp_path / "model.bin", "new")
    assert (tmp_path / "model.bin").read_text() == "new"


@pytest.mark.parametrize("name", ["clients", "clients/client-00", "clients/client-00/shard-000.h5"])
def test_a_link_at_any_depth_is_refused_by_name(name, tmp_path):
    (tmp_path / "cache" / name).parent.mkdir(parents=True)
    (tmp_path / "cache" / name).symlink_to(tmp_path)
    with pytest.raises(InputError, match=f"{name} is a link"):
        refuse_links(tmp_path / "cache" / "clients")
    refuse_links(tmp_path / "cache" / "test")


def test_a_link_above_the_place_is_the_users_own(tmp_path):
    (tmp_path / "disk" / "clients").mkdir(parents=True)
    (tmp_path / "cache").symlink_to("disk")
    refuse_links(tmp_path / "cache" / "clients")
