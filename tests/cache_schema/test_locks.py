"""One writer at a time, in this process or another."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from cache_schema.errors import InputError
from cache_schema.locks import holding

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from cache_schema.locks import holding
with holding(Path(sys.argv[1]), "held"):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_refused_and_a_later_one_is_not(tmp_path):
    path = tmp_path / "lock"
    path.write_bytes(b"mine")
    with holding(path, "somebody holds it") as is_guarded:
        assert is_guarded
        with (
            pytest.raises(InputError, match=r"^somebody holds it$"),
            holding(path, "somebody holds it"),
        ):
            pass
    with holding(path, "somebody holds it") as is_guarded:
        assert is_guarded
    assert path.read_bytes() == b"mine"


def test_a_lock_ends_with_its_process_however_that_does(tmp_path):
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "holds\n"
        with pytest.raises(InputError, match="held"), holding(path, "held"):
            pass
        process.kill()
        process.wait()
        with holding(path, "held") as is_guarded:
            assert is_guarded


def test_where_there_are_no_locks_one_goes_on_and_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with holding(tmp_path / "lock", "held") as is_guarded:
        assert not is_guarded


def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(InputError, match=r"lock cannot be written \(Is a directory\)"),
        holding(tmp_path / "lock", "held"),
    ):
        pass
