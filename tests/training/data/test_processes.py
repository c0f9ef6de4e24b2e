"""Machines on which processes that read shards cannot work as usual, and what is said of them."""

import stat
import tempfile
from multiprocessing import process, util
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_schema.errors import InputError
from training.data import processes
from training.data.processes import as_example, collate, explain, shorten_sockets
from training.data.slices import Slice
from training.data.volumes import Patch

NO_SHARED_MEMORY = RuntimeError(
    "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"
)


def use_folder(monkeypatch, folder):
    """Let a process that has made no socket yet have a temporary folder."""
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delitem(process.current_process()._config, "tempdir", raising=False)
    monkeypatch.setattr(util, "Finalize", lambda *_, **__: None)  # removes what is gone by then


def test_sockets_have_a_private_folder_elsewhere_if_the_temporary_one_has_too_long_a_name(
    monkeypatch, tmp_path
):
    folder = tmp_path / ("s" * 95)
    use_folder(monkeypatch, folder)
    shorten_sockets()
    sockets = Path(util.get_temp_dir())
    assert len(str(sockets / "listener-12345678")) <= 103
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert tempfile.gettempdir() == str(folder)  # of everything else
    sockets.rmdir()


def test_sockets_stay_in_a_temporary_folder_whose_name_is_short(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        use_folder(monkeypatch, Path(short, "own"))
        shorten_sockets()
        assert Path(util.get_temp_dir()).parent == Path(short, "own")


def test_a_temporary_folder_that_is_too_long_where_no_other_is_says_what_to_set(
    monkeypatch, tmp_path
):
    use_folder(monkeypatch, tmp_path / ("s" * 95))
    monkeypatch.setattr(processes, "SHORT_FOLDER", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^TMPDIR .*shorter name, or give --loader-workers 0$"):
        shorten_sockets()


@pytest.mark.parametrize(
    ("kind", "shape"), [(Slice, (4, 6, 5)), (Patch, (4, 3, 6, 5))], ids=["slices", "patches"]
)
def test_without_shared_memory_examples_come_as_arrays_with_the_same_values(
    kind, shape, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    examples = [
        kind(
            torch.randn(shape, generator=generator).half(),
            torch.randint(0, 5, shape[1:], generator=generator, dtype=torch.uint8),
        )
        for _ in range(3)
    ]
    usual = collate(examples)

    def fail(_):
        raise NO_SHARED_MEMORY

    monkeypatch.setattr(processes, "default_collate", fail)
    sent = collate(examples)
    assert [type(part) for part in sent] == [np.ndarray, np.ndarray]
    received = as_example(sent)
    assert type(received) is type(usual) is kind
    assert all(map(torch.equal, received, usual))
    assert [part.dtype for part in received] == [torch.float16, torch.uint8]


def test_what_else_goes_wrong_in_putting_examples_together_is_not_hidden(monkeypatch):
    def fail(_):
        raise RuntimeError("stack expects each tensor to be equal size")

    monkeypatch.setattr(processes, "default_collate", fail)
    with pytest.raises(RuntimeError, match="equal size"):
        collate([])


def from_process(kind, message):
    """Write an error as PyTorch brings it from a process."""
    return (
        f"Caught {kind} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "worker.py", line 349, in loop\n    data = fetch(index)\n           ^^^^^\n'
        f'  File "fetch.py", line 5, in fetch\n    return read()\n{kind}: {message}\n'
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("AF_UNIX path too long"), ["OSError: AF_UNIX path too long", "TMPDIR"]),
        (
            RuntimeError(from_process("RuntimeError", NO_SHARED_MEMORY)),
            ["RuntimeError: unable to allocate", "--shm-size", "/dev/shm"],
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"
            ),
            ["Bus error", "--shm-size"],
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            ["exited unexpectedly", "memory", "--shm-size"],
        ),
        (OSError(28, "No space left on device"), ["No space left on device", "--shm-size"]),
        (OSError(24, "Too many open files"), ["ulimit -n"]),
        (ConnectionResetError(104, "Connection reset by peer"), ["ConnectionResetError", "memory"]),
        (EOFError(), ["EOFError", "memory"]),
        (MemoryError(from_process("MemoryError", "")), ["MemoryError", "memory"]),
        (
            RuntimeError(
                from_process("torch.AcceleratorError", "of a\nframe #0: c10\nframe #1: c10")
            ),
            ["(AcceleratorError: of a)"],
        ),
    ],
)
def test_whatever_comes_out_of_a_process_is_one_short_line_with_a_way_on(error, told):
    line = str(explain(error))
    assert "\n" not in line
    assert "Traceback" not in line
    assert "File" not in line
    assert len(line) < 300
    for part in (*told, "--loader-workers 0"):
        assert part in line


def test_an_error_of_ours_comes_out_of_a_process_as_it_was_said():
    text = from_process(
        "cache_schema.errors.InputError", "shard-000.h5: damaged; run `prep verify`"
    )
    assert str(explain(InputError(text))) == "shard-000.h5: damaged; run `prep verify`"
