"""Safetensors with a digest of every byte, so that a changed bit is never taken for a weight."""

import json
import logging
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache_schema.documents import reason_of
from cache_schema.errors import InputError
from cache_schema.files import replacing, reporting
from cache_schema.reading import require_regular

_log = logging.getLogger(__name__)

LAYOUT_KEY: Final = "layout"
DIGEST_KEY: Final = "sha256"
NAME_KEY: Final = "name"
SEAL: Final = frozenset({LAYOUT_KEY, DIGEST_KEY, NAME_KEY})
"""Metadata that every file has since digests came; one that has only some of them is damaged."""

LAYOUT: Final = "2"
BLANK: Final = "0" * 64
"""Stands for the digest while it is computed."""

BLOCK_BYTES: Final = 2**24

MAX_BYTES: Final = 2**33
"""Of a file: three times what the largest network and its optimiser keep."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a file of tensors in one step.

    Args:
        path: Of the file, whose name is part of what the digest holds.
        tensors: By name.
        metadata: To be read with them.

    Raises:
        InputError: If the disk is full or cannot be written; the old file is still there.
    """
    parts = _seal(tensors, {**metadata, NAME_KEY: path.name})
    advice = "what was saved before is whole: make room and go on with --resume"
    with (
        reporting(path, advice=advice),
        replacing(path) as partial,
        partial.open("wb") as file,
    ):
        file.writelines(parts)


def read_tensors(
    path: Path, key: str, *, is_sealed: bool, advice: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of tensors and its metadata.

    Args:
        path: Of the file.
        key: Of the metadata that it must have.
        is_sealed: Whether a file without a digest is damaged; those of earlier releases have none.
        advice: What to do if it cannot be used.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        InputError: If the file is not there, no file of tensors, or not as it was written.
    """
    try:
        require_regular(path, most=MAX_BYTES)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _require_whole(path, metadata, key, is_sealed=is_sealed)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); {advice}") from error
    return tensors, metadata


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """Write tensors as safetensors: the header, in one order and with the digest in it, and the rest."""
    content = memoryview(
        save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    )
    stop = 8 + int.from_bytes(content[:8], "little")
    described = json.loads(bytes(content[8:stop]))
    sealed = {**metadata, LAYOUT_KEY: LAYOUT}
    blank = _header(described, {**sealed, DIGEST_KEY: BLANK})
    digest = sha256(blank)
    digest.update(content[stop:])
    return _header(described, {**sealed, DIGEST_KEY: digest.hexdigest()}), content[stop:]


def _header(described: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Write a header, filled with spaces so that the tensors after it are aligned."""
    entries = {"__metadata__": dict(sorted(metadata.items())), **described}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _require_whole(path: Path, metadata: Mapping[str, str], key: str, *, is_sealed: bool) -> None:
    """Hold a file against its digest.

    Raises:
        ValueError: If it differs, is lost, or the file is another one than its name says.
    """
    if key not in metadata:
        raise ValueError(f"its metadata do not tell its {key}")
    if not is_sealed and metadata.keys() == {key}:
        _tell_lack(path)
        return
    if not metadata.keys() >= SEAL:
        raise ValueError("its metadata have lost their digest")
    if metadata[LAYOUT_KEY] != LAYOUT:
        raise ValueError(f"layout {metadata[LAYOUT_KEY][:20]} is that of another release")
    if metadata[NAME_KEY] != path.name:
        raise ValueError(f"it was written as {metadata[NAME_KEY][:200]}")
    if _digest(path, metadata[DIGEST_KEY]) != metadata[DIGEST_KEY]:
        raise ValueError("it has changed since it was written: its digest differs")


@cache
def _tell_lack(path: Path) -> None:
    """Say once that a file cannot be checked."""
    _log.warning("%s is of an earlier release and has no digest: damage would not be noticed", path)


def _digest(path: Path, written: str) -> str:
    """Compute the SHA-256 of a file in which its digest is blank, a block at a time."""
    entry, blank = (f'"{DIGEST_KEY}":"{value}"'.encode() for value in (written, BLANK))
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(int.from_bytes(start, "little"))
        digest = sha256(start + header.replace(entry, blank, 1))
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
