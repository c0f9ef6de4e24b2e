"""A file that grows by whole pieces, such as a log: a piece is in it, or the file is as it was."""

import os
from pathlib import Path
from types import TracebackType

from cache_schema.files import ADVICE, reporting
from cache_schema.reading import open_regular, open_to_append


class AppendedFile:
    """A file open for appending; a context manager.

    Nothing waits in a buffer: what could not be written is neither lost unseen nor tried again when the
    file is closed.
    """

    def __init__(self, path: Path, *, advice: str = ADVICE) -> None:
        """Open a file, or make it.

        Args:
            path: Of the file, in a folder that exists.
            advice: What to do when the disk refuses it.

        Raises:
            WriteError: If it cannot be written.
        """
        self._path = path
        self._advice = advice
        with reporting(path, advice=advice):
            self._file = open_to_append(path)

    def append(self, content: bytes) -> None:
        """Write a piece whole, or not at all.

        Raises:
            WriteError: If the disk refuses it; the file is as it was.
        """
        size = os.fstat(self._file.fileno()).st_size
        with reporting(self._path, advice=self._advice, num_bytes=len(content)):
            try:
                self._write(content)
            except OSError:
                os.ftruncate(self._file.fileno(), size)
                raise

    def end_line(self) -> None:
        """Let the next piece begin a line, whatever a kill has left of the last one.

        Raises:
            WriteError: If the disk refuses it.
        """
        with open_regular(self._path) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
            is_cut_short = file.read(1) not in {b"", b"\n"}
        if is_cut_short:
            self.append(b"\n")

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:  # a disk that is nearly full takes a part first
            rest = rest[self._file.write(rest) :]

    def fileno(self) -> int:
        """Give the descriptor, to lock the file."""
        return self._file.fileno()

    def sync(self) -> None:
        """Wait until the file is on the disk.

        Raises:
            WriteError: If the disk refuses it.
        """
        with reporting(self._path, advice=self._advice):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, and give up its lock."""
        self._file.close()

    def __enter__(self) -> "AppendedFile":
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()
