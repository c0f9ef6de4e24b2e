"""HDF5 shards: tables of four-modality slices of whole cases. See docs/format.md.

The only room that knows h5py. A shard is written under a temporary name, synced and renamed, so that
a file with a shard's name is always whole. A reader opens its file in the process that reads: an
HDF5 handle carried over a fork returns wrong data without an error (pytorch issues 11887, 11929).
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import h5py
import hdf5plugin
import numpy as np
from jaxtyping import Float16, Float64, Int, Integer, UInt8, UInt32

from cache_schema.chunk import checksum, compress_chunk, decompress_chunk
from cache_schema.errors import InputError, WriteError
from cache_schema.files import GOES_ON, PARTIAL_SUFFIX, reporting, sync
from cache_schema.reading import open_regular, require_regular
from cache_schema.shard_form import (
    CHUNKED,
    NUMBER_COLUMNS,
    ROW_COLUMNS,
    STRING_COLUMNS,
    require_form,
)
from cache_schema.vocabulary import LABEL_CONVENTION, MODALITIES

SCHEMA_NAME: Final = "fedunetmm-shard"
SCHEMA_VERSION: Final = 1
TEST_CLIENT: Final = -1
"""What a shard of the test set has for its client attribute."""


@dataclass(frozen=True)
class CaseColumns:
    """What the `cases` table of a shard says of a case, besides its rows.

    Attributes:
        case_id: Name of the scan session, such as `Brats18_CBICA_AAB_1`.
        patient_id: Name of the person.
        cohort: One of `vocabulary.COHORTS`.
        grade: `HGG`, `LGG` or `unknown`.
        site: Acquisition site, or `unknown`.
        affine: Voxel indices (i, j, k) of the source volume to millimetres, RAS+.
        shape: The source volume's size (i, j, k); the plane may be padded beyond (i, j).
        mean: Subtracted from each modality, in scanner units; 0 where absent.
        std: Divided by, in scanner units; 1 where absent.
        present: False where the cohort lacks the modality and zeros stand for it.
        key: SHA-256 over the bytes of the source files.
        findings: What is unusual about the case, one sentence a line.
    """

    case_id: str
    patient_id: str
    cohort: str
    grade: str
    site: str
    affine: Float64[np.ndarray, "4 4"]
    shape: tuple[int, int, int]
    mean: Float64[np.ndarray, " 4"]
    std: Float64[np.ndarray, " 4"]
    present: tuple[bool, bool, bool, bool]
    key: str
    findings: str


class Slice(NamedTuple):
    """One slice: normalised intensities with background 0, and BraTS values 0, 1, 2, 4."""

    image: Float16[np.ndarray, "4 height width"]
    label: UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class CaseSlices(CaseColumns):
    """One prepared case, to be written.

    Attributes:
        z: Index of each kept slice in the source volume, ascending.
        slices: The kept slices in that order; made one by one, they need not be in memory together.
    """

    z: Int[np.ndarray, " slice"]
    slices: Iterable[Slice]


@dataclass(frozen=True)
class CaseEntry(CaseColumns):
    """A case that a shard holds.

    Attributes:
        first_row: The case's first slice.
        stop_row: The row after its last slice.
        checksum: Of what the shard's tables say of the case, see docs/format.md.
    """

    first_row: int
    stop_row: int
    checksum: int


@dataclass(frozen=True)
class StoredCase:
    """A case as a shard stores it, slices compressed, found to be what was once written.

    Attributes:
        entry: The case; patient, grade and site may be replaced.
        z: Index of each slice in the source volume.
        label_voxels: Voxels of NEC, ED and ET in each slice.
        checksums: CRC-32 of each slice's two chunks.
        chunks: Image and label of each slice.
    """

    entry: CaseEntry
    z: Int[np.ndarray, " slice"]
    label_voxels: Int[np.ndarray, "slice 3"]
    checksums: UInt32[np.ndarray, "slice 2"]
    chunks: tuple[tuple[bytes, bytes], ...]


def count_label_voxels(label: UInt8[np.ndarray, "height width"]) -> tuple[int, int, int]:
    """Count the voxels of NEC, ED and ET (labels 1, 2, 4) in a slice."""
    if not label.any():  # most slices hold no lesion
        return 0, 0, 0
    nec, ed, et = (int(np.count_nonzero(label == value)) for value in (1, 2, 4))
    return nec, ed, et


class ShardWriter:
    """Writes one shard, case by case, and gives it its name only when it is whole.

    A context manager: leaving it normally syncs and renames the file, leaving it by an exception, or
    without any case, removes what was written.

    Attributes:
        sha256: Of the finished file, in hexadecimal; None before that, or if there is none.
    """

    def __init__(
        self,
        path: Path,
        *,
        plane: tuple[int, int],
        fingerprint: str,
        client: int | None,
    ) -> None:
        """Open a temporary file beside `path`.

        Args:
            path: Where the finished shard goes.
            plane: Height and width of every slice, in voxels.
            fingerprint: Identity of the preprocessing parameters and version.
            client: Client that the cases belong to, or None for the test set.
        """
        self.sha256: str | None = None
        self._path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
        self._entries: list[dict[str, Any]] = []
        try:
            with self._told():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._open(plane, fingerprint, client)
        except WriteError:
            self._discard()
            raise

    def _discard(self) -> None:
        with suppress(OSError):  # a disk that refuses this too has said so
            self._partial.unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Let what the disk refuses be a WriteError; reading a case is not in these blocks."""
        with reporting(self._path, advice=GOES_ON):
            try:
                yield
            except RuntimeError as error:  # what HDF5 also calls a write that failed
                number = re.search(r"errno = (\d+)", str(error))
                if number is None:
                    raise
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error

    def _open(self, plane: tuple[int, int], fingerprint: str, client: int | None) -> None:
        # Without a chunk cache every chunk is written when it is assigned. With one it is written when
        # h5py's dataset object dies, which a sampling profiler such as Dask's can put off: same
        # content, other bytes. No lock: the name is this process's own, and not every file system has them.
        # What a killed process of that number left is removed: a link under the name is not followed.
        self._partial.unlink(missing_ok=True)
        self._file = h5py.File(self._partial, "x", rdcc_nbytes=0, locking=False)
        self._file.attrs.update(
            schema=SCHEMA_NAME,
            schema_version=SCHEMA_VERSION,
            label_convention=LABEL_CONVENTION,
            modalities=list(MODALITIES),
            fingerprint=fingerprint,
            client=TEST_CLIENT if client is None else client,
        )
        self._create_tables(plane)
        self._chunked = {name: self._file[name].id for name in CHUNKED}

    def _create_tables(self, plane: tuple[int, int]) -> None:
        def table(name: str, tail: tuple[int, ...], dtype: type, **options: Any) -> None:  # noqa: ANN401
            self._file.create_dataset(name, (0, *tail), dtype, maxshape=(None, *tail), **options)

        lz4 = hdf5plugin.LZ4()
        table("image", (4, *plane), np.float16, chunks=(1, 4, *plane), compression=lz4)
        table("label", plane, np.uint8, chunks=(1, *plane), compression=lz4)
        for name, (dtype, tail) in ROW_COLUMNS.items():
            table(name, tail, dtype, chunks=(1024, *tail))

    def append(self, case: CaseSlices) -> None:
        """Add the slices of one case below those already there.

        Cases come in ascending order of their ids, and a case's slices in ascending order of z.

        Raises:
            ValueError: If the order is broken, or there are more slices than indices or fewer.
        """
        first = self._make_room(case.case_id, case.z)
        voxels, checksums = [], []
        for row, (image, label) in enumerate(case.slices, start=first):
            chunks = compress_chunk(image), compress_chunk(label)
            self._write_chunks(row, chunks)
            checksums.append([checksum(chunk) for chunk in chunks])
            voxels.append(count_label_voxels(label))
        if len(voxels) != len(case.z):
            raise ValueError(
                f"{case.case_id} has {len(voxels)} slices, but {len(case.z)} indices z"
            )
        self._append_rows(
            case, first, case.z, np.array(voxels, np.int32), np.array(checksums, np.uint32)
        )

    def copy(self, case: StoredCase) -> None:
        """Add a case of another shard below those already there, without decoding its slices.

        Args:
            case: From a shard with the same plane and preprocessing.

        Raises:
            ValueError: If the order of cases is broken; the caller sorts.
        """
        first = self._make_room(case.entry.case_id, case.z)
        for row, chunks in enumerate(case.chunks, start=first):
            self._write_chunks(row, chunks)
        self._append_rows(case.entry, first, case.z, case.label_voxels, case.checksums)

    def _make_room(self, case_id: str, z: Int[np.ndarray, " slice"]) -> int:
        """Lengthen the tables by a case's slices and return the first of its rows."""
        if self._entries and case_id <= self._entries[-1]["case_id"]:
            raise ValueError(f"{case_id} comes after {self._entries[-1]['case_id']}")
        if np.any(np.diff(z) <= 0):
            raise ValueError(f"slices of {case_id} are not in ascending order")
        first = len(self._file["z"])
        with self._told():
            for name in (*ROW_COLUMNS, *CHUNKED):
                self._file[name].resize(first + len(z), axis=0)
        return first

    def _write_chunks(self, row: int, chunks: tuple[bytes, bytes]) -> None:
        """Store a slice's image and label, both compressed."""
        image, label = chunks
        with self._told():
            self._chunked["image"].write_direct_chunk((row, 0, 0, 0), image)
            self._chunked["label"].write_direct_chunk((row, 0, 0), label)

    def _append_rows(
        self,
        case: CaseColumns,
        first: int,
        z: Int[np.ndarray, " slice"],
        label_voxels: Int[np.ndarray, "slice 3"],
        checksums: UInt32[np.ndarray, "slice 2"],
    ) -> None:
        """Write what the tables say of a case."""
        with self._told():
            self._file["case_index"][first:] = len(self._entries)
            self._file["z"][first:] = z
            self._file["label_voxels"][first:] = label_voxels
            self._file["checksum"][first:] = checksums
        own = {name: getattr(case, name, None) for name in (*STRING_COLUMNS, *NUMBER_COLUMNS)}
        rows = {"first_row": first, "stop_row": first + len(z)}
        own_checksum = _checksum_tables(case, (z, label_voxels, checksums))
        self._entries.append({**own, **rows, "checksum": own_checksum})

    def __enter__(self) -> "ShardWriter":
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file and rename it into place, or remove it after an error."""
        try:
            with self._told():
                self._finish(whole=error is None and bool(self._entries))
        except WriteError:
            if error is None:  # else it is the same full disk, and the first error tells more
                raise
        finally:
            self._discard()  # unless it has got its name

    def _finish(self, *, whole: bool) -> None:
        try:
            if whole:
                self._write_cases()
        finally:
            self._file.close()
        if not whole:
            return
        with ThreadPoolExecutor(1) as pool:  # the disk writes while the processor hashes
            synced = pool.submit(sync, self._partial)
            self.sha256 = digest(self._partial)
            synced.result()
        self._partial.replace(self._path)
        sync(self._path.parent)

    def _write_cases(self) -> None:
        group = self._file.create_group("cases")
        for name in STRING_COLUMNS:
            values = [entry[name] for entry in self._entries]
            group.create_dataset(
                name, data=values, dtype=h5py.string_dtype("utf-8"), shape=(len(values),)
            )
        for name, (dtype, tail) in NUMBER_COLUMNS.items():
            numbers: np.ndarray = np.array([entry[name] for entry in self._entries], dtype)
            group.create_dataset(name, data=numbers.reshape(len(self._entries), *tail))


class _Column:
    """The compressed chunks of an open dataset, one a row."""

    def __init__(self, file: Any, name: str) -> None:  # noqa: ANN401
        dataset = file[name]
        self.shape: tuple[int, ...] = dataset.shape[1:]
        self.dtype: np.dtype[Any] = dataset.dtype
        self._name = name
        self._id = dataset.id
        self._checksums = file["checksum"][:, CHUNKED.index(name)].tolist()

    def read_stored(self, row: int) -> bytes:
        """Read a slice as it is stored.

        Raises:
            ValueError: If it is not what was once written.
        """
        _, chunk = self._id.read_direct_chunk((row,) + (0,) * len(self.shape))
        if checksum(chunk) != self._checksums[row]:
            raise ValueError(f"{self._name} of row {row} differs from its checksum")
        stored: bytes = chunk
        return stored


class ShardReader:
    """Reads rows of one shard.

    The file is opened on first use and once in every process: the handle is dropped on pickling and
    not used after a fork. The reader needs no closing at interpreter exit, but is a context manager
    for those who want the file closed at a known moment.
    """

    def __init__(self, path: Path) -> None:
        """Remember the path; nothing is opened yet.

        Args:
            path: A finished shard.
        """
        self.path = path
        self._file: Any = None
        self._columns: dict[str, _Column] = {}
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path only."""
        return {"path": self.path, "_file": None, "_columns": {}, "_pid": -1}

    def __enter__(self) -> "ShardReader":
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close this process's handle; the next read opens the file again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None
        self._columns = {}

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Give this process's handle and turn any HDF5 failure into one line that names the shard."""
        try:
            if self._file is None or self._pid != os.getpid():
                self.close()
                self._file, self._pid = _open(self.path), os.getpid()
                self._columns = {name: _Column(self._file, name) for name in CHUNKED}
            yield self._file
        except InputError:
            raise
        except Exception as error:  # h5py and NumPy raise nearly every kind on damage
            told = getattr(error, "strerror", None) or str(error) or type(error).__name__
            reason = " ".join(told.split())
            raise InputError(
                f"shard {self.path} cannot be read ({reason}); run `prep verify` on the cache, "
                "then `prep partition` again to rebuild what is damaged"
            ) from error

    @property
    def attributes(self) -> dict[str, Any]:
        """The shard's attributes: schema, convention, modalities, fingerprint, client."""
        with self._opened() as file:
            return {name: _plain(value) for name, value in file.attrs.items()}

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width of every slice, in voxels."""
        with self._opened() as file:
            height, width = file["label"].shape[1:]
            return int(height), int(width)

    def __len__(self) -> int:
        """Return the number of slices."""
        with self._opened() as file:
            return len(file["z"])

    def images(self, rows: Sequence[int] | slice) -> Float16[np.ndarray, "row 4 height width"]:
        """Read normalised intensities of the given rows, in the order asked for."""
        images: np.ndarray = self._read("image", rows)
        return images

    def labels(self, rows: Sequence[int] | slice) -> UInt8[np.ndarray, "row height width"]:
        """Read BraTS labels of the given rows, in the order asked for."""
        labels: np.ndarray = self._read("label", rows)
        return labels

    def _read(self, name: str, rows: Sequence[int] | slice) -> Any:  # noqa: ANN401
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self)))
        with self._opened():
            column = self._columns[name]
            values = np.empty((len(rows), *column.shape), column.dtype)
            for row, target in zip(rows, values, strict=True):
                decompress_chunk(column.read_stored(row), target)
            return values

    def column(self, name: str) -> Integer[np.ndarray, "slice ..."]:
        """Read a whole per-slice column: a key of `ROW_COLUMNS`."""
        with self._opened() as file:
            values: np.ndarray = file[name][:]
            return values

    def has_sound_tables(self, entry: CaseEntry) -> bool:
        """Tell whether the tables say of a case what was once written, names and place apart."""
        with self._opened():
            return _checksum_tables(entry, self._rows(entry)) == entry.checksum

    def stored(self, entry: CaseEntry) -> StoredCase:
        """Read a case as it is stored, without decoding it.

        Raises:
            InputError: If a slice or a table is not what was once written.
        """
        z, voxels, checksums = self._rows(entry)
        with self._opened():
            image, label = (self._columns[name] for name in CHUNKED)
            rows = range(entry.first_row, entry.stop_row)
            chunks = tuple((image.read_stored(row), label.read_stored(row)) for row in rows)
        if not self.has_sound_tables(entry):
            raise InputError(f"{self.path}: the tables of {entry.case_id} are damaged")
        return StoredCase(entry, z, voxels, checksums, chunks)

    def _rows(self, entry: CaseEntry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read what the tables say of a case's slices: z, label voxels, checksums."""
        rows = slice(entry.first_row, entry.stop_row)
        z, voxels, checksums = (self.column(n)[rows] for n in ("z", "label_voxels", "checksum"))
        return z, voxels, checksums

    def cases(self) -> tuple[CaseEntry, ...]:
        """Read the table of cases."""
        with self._opened() as file:
            group = file["cases"]
            columns: dict[str, Any] = {name: group[name].asstr()[:] for name in STRING_COLUMNS}
            columns |= {name: group[name][:] for name in NUMBER_COLUMNS}
            rows = zip(*columns.values(), strict=True)
            return tuple(_entry(dict(zip(columns, row, strict=True))) for row in rows)


def _entry(row: dict[str, Any]) -> CaseEntry:
    plain = {name: str(row[name]) for name in STRING_COLUMNS}
    t1, t1ce, t2, flair = row["present"]
    return CaseEntry(
        **plain,
        first_row=int(row["first_row"]),
        stop_row=int(row["stop_row"]),
        affine=row["affine"],
        shape=(int(row["shape"][0]), int(row["shape"][1]), int(row["shape"][2])),
        mean=row["mean"],
        std=row["std"],
        present=(bool(t1), bool(t1ce), bool(t2), bool(flair)),
        checksum=int(row["checksum"]),
    )


def _checksum_tables(case: CaseColumns, rows: Sequence[np.ndarray]) -> int:
    """Return the CRC-32 of what a shard's tables say of a case, names and place in the shard apart."""
    crc = 0
    for values in rows:
        crc = checksum(values.tobytes(), crc)
    for name in ("affine", "shape", "mean", "std", "present"):
        crc = checksum(np.asarray(getattr(case, name), NUMBER_COLUMNS[name][0]).tobytes(), crc)
    return checksum(f"{case.key}\n{case.findings}".encode(), crc)


def _open(path: Path) -> Any:  # noqa: ANN401
    require_regular(path)
    # A finished shard never changes, and not every file system has locks.
    file = h5py.File(path, "r", rdcc_nbytes=0, locking=False)
    try:
        _require_version(file, path)
        require_form(file)
    except BaseException:
        file.close()
        raise
    return file


def _require_version(file: Any, path: Path) -> None:  # noqa: ANN401
    if file.attrs.get("schema") != SCHEMA_NAME:
        raise InputError(f"{path} is not a shard of this project")
    version = int(file.attrs["schema_version"])
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has shard schema version {version}, this release reads {SCHEMA_VERSION}; "
            "install the release that wrote it or prepare the cache again"
        )
    convention = file.attrs["label_convention"]
    if convention != LABEL_CONVENTION:
        raise InputError(
            f"{path} has labels of convention {convention}, this release reads {LABEL_CONVENTION}"
        )


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def is_whole(path: Path, sha256: str) -> bool:
    """Tell whether a shard is there with the bytes that were recorded when it was written."""
    return path.is_file() and digest(path) == sha256


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
