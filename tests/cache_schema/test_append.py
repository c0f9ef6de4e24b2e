"""A file that grows by whole pieces."""

import errno
import os
from pathlib import Path

import pytest

from cache_schema.append import AppendedFile
from cache_schema.errors import WriteError


class NearlyFull:
    """A file that takes three bytes, and then no more."""

    def __init__(self, file):
        self._file = file
        self._left = 3

    def write(self, content):
        if not self._left:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, self._left = min(self._left, len(content)), 0
        return self._file.write(content[:taken])

    def fileno(self):
        return self._file.fileno()

    def close(self):
        self._file.close()


def test_pieces_come_below_what_is_there(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    with AppendedFile(path) as file:
        file.append(b"two\n")
        assert path.read_bytes() == b"one\ntwo\n"  # nothing waits


def test_a_piece_that_fits_in_part_is_taken_back_and_refused_in_one_line(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    file = AppendedFile(path, advice="go away")
    file._file = NearlyFull(file._file)
    with pytest.raises(WriteError) as caught:
        file.append(b"twenty\n")
    assert str(caught.value) == f"{path} cannot be written (No space left on device); go away"
    file.close()  # tries nothing again
    assert path.read_bytes() == b"one\n"


def test_a_disk_that_takes_little_at_a_time_gets_all(tmp_path):
    path = tmp_path / "log"
    with AppendedFile(path) as file:
        honest = file._file
        file._file = type(
            "Slow", (), {"write": lambda _, rest: honest.write(rest[:2]), "fileno": honest.fileno}
        )()
        file.append(b"seven b")
        file._file = honest
    assert path.read_bytes() == b"seven b"


@pytest.mark.parametrize(
    "number", [errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOSPC]
)
def test_what_a_disk_answers_is_said_in_the_words_of_the_system(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, "Can't close file (file write failed: time = ...")

    with AppendedFile(tmp_path / "log") as file:
        monkeypatch.setattr("os.fsync", refuse)
        with pytest.raises(WriteError) as caught:
            file.sync()
    reason = os.strerror(number)
    assert str(caught.value).startswith(f"{tmp_path / 'log'} cannot be written ({reason}); ")


def test_a_folder_is_no_file_to_append_to(tmp_path):
    with pytest.raises(WriteError, match=r"cannot be written \(Is a directory\)"):
        AppendedFile(Path(tmp_path))
