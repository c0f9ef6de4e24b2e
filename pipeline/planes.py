"""A scan plane by plane, read from the beginning of its file and no further than is asked for."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Final

import numpy as np
from isal import isal_zlib
from jaxtyping import Float32, Num

from cache_schema.reading import open_regular
from pipeline.volume import Header, VolumeError, open_inflated, read_header

MAX_PLANE_BYTES: Final = 2**28
"""A larger plane comes from a damaged header: 4096 x 4096 double-precision numbers are half of it."""


@dataclass(frozen=True)
class PlaneStream:
    """An open scan.

    Attributes:
        header: Of its file.
        planes: Values of one stored plane after another as a reader sees them, axes (j, i); to be gone
            through once.
    """

    header: Header
    planes: Iterator[Float32[np.ndarray, "j i"]]


@contextmanager
def open_planes(path: Path) -> Iterator[PlaneStream]:
    """Open a NIfTI file, compressed or not, for as long as the block lasts.

    Raises:
        VolumeError: If the file is damaged as far as it is read, or no volume of three axes.
        OSError: If it cannot be read.
    """
    with open_regular(path) as raw:
        header = read_header(raw)
        if len(header.shape) != 3:
            raise VolumeError(f"has {len(header.shape)} axes, not 3")
        if raw.seek(0, os.SEEK_END) > header.most_bytes:
            raise VolumeError(
                f"is larger than the {header.most_bytes:,} bytes that its header tells of"
            )
        file = open_inflated(raw)
        with _damage_named():
            file.seek(header.offset)
        yield PlaneStream(header, _planes(file, header))


def as_float32(values: Num[np.ndarray, "*grid"], header: Header) -> Float32[np.ndarray, "*grid"]:
    """Give stored values as a reader sees them: scaled, in single precision, with one zero and one NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        if (header.slope, header.inter) != (1.0, 0.0):
            values = values.astype(np.float64) * header.slope + header.inter
        seen: np.ndarray = values.astype(np.float32)
    seen += np.float32(0)  # -0 + 0 is 0
    if header.dtype.kind == "f":
        seen[np.isnan(seen)] = np.nan
    return seen


def _planes(file: BufferedIOBase, header: Header) -> Iterator[Float32[np.ndarray, "j i"]]:
    columns, rows, depth = header.shape
    size = rows * columns * header.dtype.itemsize
    if not 0 <= size <= MAX_PLANE_BYTES:
        raise VolumeError(f"has planes of {size} bytes")
    for _ in range(depth):
        with _damage_named():
            stored = file.read(size)
        if len(stored) < size:
            raise VolumeError("is cut short")
        yield as_float32(np.frombuffer(stored, header.dtype).reshape(rows, columns), header)


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn what a damaged stream raises into our own error."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]  # its stub takes the class for an instance
        raise VolumeError(f"is damaged ({error})") from error
