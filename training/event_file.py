"""An event file of TensorBoard, written round by round; a full disk costs curves, not the run."""

import io
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from cache_schema.append import AppendedFile
from cache_schema.errors import WriteError
from cache_schema.files import reporting

TENSORBOARD_FOLDER: Final = "tensorboard"
ADVICE: Final = "the log has its rounds all the same; make room for more"

_log = logging.getLogger(__name__)


class TensorBoard:
    """Event files in a run's folder, for TensorBoard.

    PyTorch's own writer has a thread that dies with a traceback on a full disk, and takes the run along.
    This one keeps the rounds that the disk refuses, and tries again with the next.
    """

    def open(self, run: Path) -> None:
        """Begin another event file; TensorBoard shows all of a folder as one."""
        self._path = run / TENSORBOARD_FOLDER / _file_name()
        self._problem: str | None = None
        self._unwritten = _record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write()

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write the scalars of one round, and those that wait."""
        for name, value in scalars.items():
            summary = scalar(name, value)
            self._unwritten += _record(Event(wall_time=time.time(), step=step, summary=summary))
        self._write()

    def close(self, outcome: str) -> str | None:
        """Try once more to write what waits.

        Returns:
            What could not be written and why, or None; a warning says it of a run that has finished.
        """
        self._write()
        if self._problem is not None and outcome == "finished":
            _log.warning(self._problem)
        return self._problem

    def _write(self) -> None:
        try:
            self._append()
        except WriteError as error:
            self._problem = f"TensorBoard lacks rounds: {error}"
        else:
            self._problem, self._unwritten = None, b""

    def _append(self) -> None:
        if not self._unwritten:
            return
        with reporting(self._path, advice=ADVICE):
            self._path.parent.mkdir(exist_ok=True)
        with AppendedFile(self._path, advice=ADVICE) as file:
            file.append(self._unwritten)


def _file_name() -> str:
    """Name a file as TensorBoard expects it, so that it sorts by time and is no other process's."""
    return f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}.0"


def _record(event: Event) -> bytes:
    """Frame an event with its length and checksums."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
