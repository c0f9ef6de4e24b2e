"""Shards to tensors: single slices for training, whole volumes for evaluation.

Any other model may read a cache through these two classes, see docs/format.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Float64, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cache_schema.errors import InputError
from cache_schema.manifest import Manifest, read_manifest
from cache_schema.shard import TEST_CLIENT, ShardReader
from cache_schema.vocabulary import Cohort, Split

Slices = Literal["all", "tumour"]


class Slice(NamedTuple):
    """A slice as stored, or after collation a batch of them.

    Attributes:
        image: Modalities t1, t1ce, t2, flair, z-scored, background 0.
        label: BraTS values 0, 1, 2, 4.
    """

    image: Float16[Tensor, "*batch 4 height width"]
    label: UInt8[Tensor, "*batch height width"]


class SliceDataset(Dataset[Slice]):
    """The training slices of some or all clients of a cache.

    Reads one compressed chunk a slice. Safe to hand to DataLoader workers: files are opened in the
    process that reads. Test shards are never opened.
    """

    def __init__(
        self,
        cache: Path,
        *,
        clients: Sequence[int] | None = None,
        slices: Slices = "all",
        manifest: Manifest | None = None,
    ) -> None:
        """List slices; of the shards, only their `label_voxels` columns are read.

        Args:
            cache: A finished cache.
            clients: Whose slices; all clients by default.
            slices: All of them, or those that show tumour.
            manifest: The cache's manifest, if it is at hand already.

        Raises:
            InputError: If the cache is unreadable, has no such client, or holds a test shard where a
                client's should be.
        """
        manifest = manifest or read_manifest(cache)
        chosen = range(manifest.options.clients) if clients is None else clients
        self._readers: list[ShardReader] = []
        rows: list[Int[np.ndarray, "slice 3"]] = []
        for client in chosen:
            for path in manifest.client_shards(client):
                reader = _open_training(cache / path)
                kept = _select_rows(reader, slices)
                index = np.empty((len(kept), 3), np.int64)
                index[:, 0], index[:, 1], index[:, 2] = client, len(self._readers), kept
                rows.append(index)
                self._readers.append(reader)
        self._index = np.concatenate(rows) if rows else np.empty((0, 3), np.int64)

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._index)

    def rows_of(self, client: int) -> list[int]:
        """Return the indices of one client's slices."""
        return [int(row) for row in np.flatnonzero(self._index[:, 0] == client)]

    def __getitem__(self, index: int) -> Slice:
        """Read one slice.

        Raises:
            InputError: If its shard is damaged.
        """
        _, shard, row = self._index[index].tolist()
        image, label = self._readers[shard].images([row])[0], self._readers[shard].labels([row])[0]
        return Slice(torch.from_numpy(image), torch.from_numpy(label))


def _open_training(path: Path) -> ShardReader:
    reader = ShardReader(path)
    if reader.attributes["client"] == TEST_CLIENT:
        raise InputError(f"{path} is a shard of the test set; training never opens one")
    return reader


def _select_rows(reader: ShardReader, slices: Slices) -> Int[np.ndarray, " slice"]:
    voxels = reader.column("label_voxels")
    kept = voxels.any(axis=1) if slices == "tumour" else np.ones(len(voxels), np.bool_)
    reader.close()
    return np.flatnonzero(kept)


class ClientBatches(Sampler[list[int]]):
    """Batches of one client's slices, each slice once a pass, in an order drawn from a generator.

    One sampler, one loader and its processes serve all clients and rounds of a run: `select` says
    whose slices come next.
    """

    def __init__(self, dataset: SliceDataset, batch_size: int) -> None:
        """Start without a client; `select` one before iterating."""
        self._dataset = dataset
        self._batch_size = batch_size
        self.rows: Sequence[int] = ()
        self._generator = torch.Generator()

    def select(self, client: int, generator: torch.Generator) -> None:
        """Take the next passes from `client`, in orders drawn from `generator`."""
        self.rows = self._dataset.rows_of(client)
        self._generator = generator

    def __len__(self) -> int:
        """Return the number of batches in a pass; the last may be smaller."""
        return math.ceil(len(self.rows) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch of one pass."""
        order = torch.randperm(len(self.rows), generator=self._generator).tolist()
        for start in range(0, len(order), self._batch_size):
            yield [self.rows[place] for place in order[start : start + self._batch_size]]


def make_loader(
    dataset: SliceDataset, batches: ClientBatches, *, num_workers: int, pin_memory: bool
) -> DataLoader[Slice]:
    """Load batches in `num_workers` processes that live as long as the loader.

    Workers are started by a fork server, not forked: a fork would carry HDF5 handles and the locks
    of other threads along.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context="forkserver" if num_workers > 0 else None,
        pin_memory=pin_memory,
        # The loader draws seeds for its workers; from the global generator they would shift dropout.
        generator=torch.Generator(),
    )


@dataclass(frozen=True)
class CaseVolume:
    """The kept slices of one case, in ascending order of z.

    Attributes:
        case_id: Name of the scan session.
        patient_id: Name of the person.
        cohort: Archive that it comes from.
        image: Modalities t1, t1ce, t2, flair, z-scored, background 0.
        label: BraTS values 0, 1, 2, 4.
        z: Index of each slice in the source volume; slices that are not kept hold no brain.
        affine: Voxel indices (i, j, k) of the source volume to millimetres, RAS+.
        shape: Size of the source volume (i, j, k).
    """

    case_id: str
    patient_id: str
    cohort: Cohort
    image: Float16[np.ndarray, "slice 4 height width"]
    label: UInt8[np.ndarray, "slice height width"]
    z: Int[np.ndarray, " slice"]
    affine: Float64[np.ndarray, "4 4"]
    shape: tuple[int, int, int]


class VolumeDataset(Dataset[CaseVolume]):
    """Whole cases of a cache, one at a time: the test set of some cohorts, or training cases."""

    def __init__(
        self, cache: Path, *, split: Split, cohorts: Sequence[Cohort] | None = None
    ) -> None:
        """List cases; no shard is opened yet.

        Args:
            cache: A finished cache.
            split: `test` is for evaluation only.
            cohorts: Whose cases; all cohorts by default.

        Raises:
            InputError: If the cache has no finished manifest.
        """
        manifest = read_manifest(cache)
        self.manifest = manifest
        chosen = manifest.cohorts.keys() if cohorts is None else set(cohorts)
        self.cases = tuple(c for c in manifest.cases if c.split == split and c.cohort in chosen)
        self._readers = {case.shard: ShardReader(cache / case.shard) for case in self.cases}

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> CaseVolume:
        """Read one case.

        Raises:
            IndexError: If there is no such case.
            InputError: If its shard is damaged.
        """
        case = self.cases[index]
        reader = self._readers[case.shard]
        entry = next((e for e in reader.cases() if e.case_id == case.case_id), None)
        if entry is None:
            raise InputError(f"{reader.path} does not hold {case.case_id}; run `prep verify`")
        rows = slice(entry.first_row, entry.stop_row)
        return CaseVolume(
            case_id=entry.case_id,
            patient_id=entry.patient_id,
            cohort=case.cohort,
            image=reader.images(rows),
            label=reader.labels(rows),
            z=reader.column("z")[rows],
            affine=entry.affine,
            shape=entry.shape,
        )
