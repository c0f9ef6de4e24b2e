"""Files that others may have made: what is no file is refused at once, what is too large unread."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cache_schema.reading import (
    open_regular,
    open_to_append,
    read_bytes,
    read_text,
    require_regular,
)


@pytest.mark.parametrize("read", [read_bytes, read_text, open_regular, require_regular])
def test_a_pipe_is_refused_without_waiting_for_its_writer(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe, not a file") as caught:
        read(tmp_path / "pipe")
    assert caught.value.strerror == "it is a pipe, not a file"


@pytest.mark.parametrize("read", [read_bytes, open_regular, require_regular])
def test_a_device_a_socket_and_a_folder_are_refused(read, tmp_path):
    with pytest.raises(OSError, match="a device, not a file"):
        read(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as place:
        place.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="a socket, not a file"):
            read(tmp_path / "s")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_a_pipe_at_the_end_of_a_link_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.txt").symlink_to("pipe")
    with pytest.raises(OSError, match="a pipe, not a file"):
        read_bytes(tmp_path / "a.txt")


def test_a_file_is_read_to_its_last_byte_and_refused_from_one_more_on(tmp_path):
    (tmp_path / "a.txt").write_text("äbc")
    assert read_bytes(tmp_path / "a.txt", most=4) == b"\xc3\xa4bc"
    assert read_text(tmp_path / "a.txt") == "äbc"
    with pytest.raises(OSError, match="larger than 3 bytes"):
        read_bytes(tmp_path / "a.txt", most=3)


def test_a_file_of_50_gb_is_refused_within_200_mb(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(50 * 10**9)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from cache_schema.reading import read_bytes\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 10**8, 2 * 10**8))\n"
        "try: read_bytes(Path(sys.argv[1]))\n"
        "except OSError as error: print(error.strerror)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "large"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "it is larger than 67,108,864 bytes\n"


def test_a_log_is_made_and_gone_on_with_and_a_link_in_its_place_is_not_followed(tmp_path):
    for line in (b"a\n", b"b\n"):
        with open_to_append(tmp_path / "log") as file:
            file.write(line)
    assert (tmp_path / "log").read_text() == "a\nb\n"
    (tmp_path / "victim").write_text("mine\n")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError, match="a link, not a file"):
        open_to_append(tmp_path / "link")
    assert (tmp_path / "victim").read_text() == "mine\n"


def test_a_pipe_in_the_place_of_a_log_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="a pipe, not a file"):
        open_to_append(tmp_path / "log")
