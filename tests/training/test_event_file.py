"""Curves on a disk that is full for a while."""

import errno
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cache_schema.append import AppendedFile
from training.event_file import TensorBoard


def fill(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AppendedFile, "_write", refuse)


def points(run: Path) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in reader.Scalars("x")]


def test_rounds_that_a_full_disk_refused_come_with_the_next(tmp_path, monkeypatch, caplog):
    board = TensorBoard()
    board.open(tmp_path)
    board.add({"x": 0.5}, 1)
    with monkeypatch.context() as patch:
        fill(patch)
        board.add({"x": 0.25}, 2)
        assert points(tmp_path) == [(1, 0.5)]
    board.add({"x": 0.125}, 3)
    assert board.close("finished") is None
    assert points(tmp_path) == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert caplog.messages == []


def test_a_board_that_lacks_rounds_says_so_once_and_stops_nothing(tmp_path, monkeypatch, caplog):
    fill(monkeypatch)
    board = TensorBoard()
    board.open(tmp_path)
    board.add({"x": 0.5}, 1)
    problem = board.close("finished")
    assert problem is not None
    assert problem.startswith(f"TensorBoard lacks rounds: {tmp_path / 'tensorboard'}")
    assert "No space left on device" in problem
    assert caplog.messages == [problem]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.read_bytes() == b""


def test_a_run_that_failed_has_its_own_line(tmp_path, monkeypatch, caplog):
    fill(monkeypatch)
    board = TensorBoard()
    board.open(tmp_path)
    assert board.close("failed") is not None
    assert caplog.messages == []
