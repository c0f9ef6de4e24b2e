"""What the processes that read shards need of a machine, and what is said when it does not have it."""

import tempfile
from collections.abc import Sequence
from multiprocessing import util
from typing import Final

import numpy as np
import torch
from torch.utils.data import default_collate

from cache_schema.errors import InputError
from training.data.slices import Slice
from training.data.volumes import Patch

LONGEST_FOLDER: Final = 71
"""Characters of a temporary folder: a socket's name has 103 on every system, and 32 are added to it."""

SHORT_FOLDER: Final = "/tmp"  # noqa: S108 - a private folder is made in it
"""Where sockets go if the temporary folder has too long a name."""

ADVICE: Final[dict[str, str]] = {
    "AF_UNIX path too long": "set TMPDIR to a folder with a shorter name",
    "Too many open files": "raise `ulimit -n`",
    "received 0 items of ancdata": "raise `ulimit -n`",
    "shared memory": "make /dev/shm larger, in docker with --shm-size 1g",
    "Bus error": "make /dev/shm larger, in docker with --shm-size 1g",
    "No space left on device": "make room in /dev/shm, in docker with --shm-size 1g, and in TMPDIR",
    "": "it may lack memory, or room in /dev/shm (docker: --shm-size)",
}
"""By a part of an error's message: what helps. The first that fits is given, the last fits all."""


def shorten_sockets() -> None:
    """Let this process and those that it starts put their sockets where names are short enough.

    They meet at sockets in a private folder, which lies in TMPDIR. SLURM and workflow managers give
    one whose name is too long for a socket's; only then the folder is made elsewhere.

    Raises:
        InputError: If there is no place for it.
    """
    usual, folder = tempfile.tempdir, tempfile.gettempdir()
    if len(folder) > LONGEST_FOLDER:
        tempfile.tempdir = SHORT_FOLDER
    try:
        util.get_temp_dir()  # is made once, and handed on to processes
    except OSError as error:
        raise InputError(
            f"TMPDIR {folder}: no sockets can be made there or in {SHORT_FOLDER} ({error.strerror}); set "
            "TMPDIR to a folder with a shorter name, or give --loader-workers 0"
        ) from error
    finally:
        tempfile.tempdir = usual


def collate(examples: Sequence[Slice | Patch]) -> Slice | Patch | tuple[np.ndarray, ...]:
    """Put examples together in shared memory, or in plain arrays where there is too little of it.

    Arrays go through a pipe: slower, but docker gives /dev/shm no more than 64 MB.
    """
    try:
        batch: Slice | Patch = default_collate(list(examples))
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        return tuple(np.stack(list(map(np.asarray, part))) for part in zip(*examples, strict=True))
    return batch


def as_example(batch: Slice | Patch | Sequence[np.ndarray]) -> Slice | Patch:
    """Give what `collate` has put together as tensors, whichever way it came."""
    if isinstance(batch, Slice | Patch):
        return batch
    image, label = map(torch.from_numpy, batch)
    return Slice(image, label) if image.ndim == 4 else Patch(image, label)


def explain(error: Exception) -> InputError:
    """Say in one line why a process that reads shards could not start or go on, and what helps.

    PyTorch brings an error from a process with a traceback in its message.

    Args:
        error: As a loader raises it.
    """
    kind, line = type(error).__name__, str(error)
    if "Traceback (most recent call last)" in line:
        kind, _, line = _last_message(line).partition(": ")
        kind = kind.rpartition(".")[2]
    line = " ".join(line.partition("\n")[0].split())
    if kind == InputError.__name__:
        return InputError(line)
    advice = next(advice for part, advice in ADVICE.items() if part in line)
    return InputError(
        f"a process that reads shards failed ({kind}: {line}): {advice}, or give --loader-workers 0 to "
        "read in the training process"
    )


def _last_message(text: str) -> str:
    """Take the message below the last traceback of a text; its own further lines do not count."""
    below = text.rpartition('\n  File "')[2].splitlines()[1:]
    return next((line for line in below if line and not line[0].isspace()), text.splitlines()[-1])
