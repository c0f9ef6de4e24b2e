"""State dicts that others have made: tensors and nothing else, whatever the file would like to run."""

import io
import warnings
import zipfile
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cache_schema.reading import read_bytes

MAX_BYTES: Final = 2**28
"""Of a file of weights, packed or not; those of ResNet18 have a fifth of it."""


class StateDictError(ValueError):
    """A file is no state dict; the message is one line."""


def read_state_dict(path: Path, *, digest: str | None = None) -> dict[str, Tensor]:
    """Read tensors by name from `.safetensors`, or from a file of torch's own.

    The latter is a pickle, which could run any code: of its contents only tensors are read.

    Args:
        path: Of the file.
        digest: SHA-256 that it has to have, in hexadecimal.

    Raises:
        StateDictError: If it cannot be read, is another file than it should be, or holds anything else.
    """
    try:
        content = read_bytes(path, most=MAX_BYTES)
    except OSError as error:
        raise StateDictError(error.strerror) from error
    if digest is not None and sha256(content).hexdigest() != digest:
        raise StateDictError(f"its SHA-256 is not {digest}")
    try:
        state = load(content) if path.suffix == ".safetensors" else _unpickle(content)
    except UnpicklingError as error:  # torch's text tells how to run what is in there
        raise StateDictError("it holds other things than tensors") from error
    except (StateDictError, RuntimeError, SafetensorError) as error:
        raise StateDictError(str(error).partition("\n")[0]) from error
    except Exception as error:  # foreign bytes make an unpickler raise anything
        raise StateDictError("it is no file of tensors") from error
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise StateDictError("it does not hold tensors by name")
    return state


def _unpickle(content: bytes) -> Any:  # noqa: ANN401 - a pickle holds any value
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise StateDictError(f"it unpacks to more than {MAX_BYTES:,} bytes")
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of pickles that are none of torch's, which are refused anyway
        return torch.load(file, map_location="cpu", weights_only=True)
