"""Shards to tensors: single slices for training, whole volumes for evaluation.

Any other model may read a cache through these two classes, see docs/format.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float64, Int, UInt8
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

    Attributes:
        shows_tumour: For every slice whether it holds a label.
    """

    def __init__(
        self,
        cache: Path,
        *,
        clients: Sequence[int] | None = None,
        slices: Slices = "all",
        manifest: Manifest | None = None,
        known_as: int | None = None,
    ) -> None:
        """List slices; of the shards, only their `label_voxels` columns are read.

        Args:
            cache: A finished cache.
            clients: Whose slices; all clients by default.
            slices: All of them, or those that show tumour.
            manifest: The cache's manifest, if it is at hand already.
            known_as: Number that these clients go by here, if not by their own: a hospital's cache may
                have one client alone, which has another number in a federation.

        Raises:
            InputError: If the cache is unreadable, has no such client, or holds a test shard where a
                client's should be.
        """
        manifest = manifest or read_manifest(cache)
        chosen = range(manifest.options.clients) if clients is None else clients
        self._readers: list[ShardReader] = []
        rows: list[Int[np.ndarray, "slice 3"]] = [np.empty((0, 3), np.int64)]
        tumour: list[Bool[np.ndarray, " slice"]] = [np.empty(0, np.bool_)]
        for client in chosen:
            for path in manifest.client_shards(client):
                reader = _open_training(cache / path)
                shows = _shows_tumour(reader)
                kept = np.flatnonzero(shows) if slices == "tumour" else np.arange(len(shows))
                index = np.empty((len(kept), 3), np.int64)
                index[:, 0] = client if known_as is None else known_as
                index[:, 1], index[:, 2] = len(self._readers), kept
                rows.append(index)
                tumour.append(shows[kept])
                self._readers.append(reader)
        self._index = np.concatenate(rows)
        self.shows_tumour = np.concatenate(tumour)

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._index)

    def rows_of(self, clients: Sequence[int]) -> Int[np.ndarray, " slice"]:
        """Return the indices of some clients' slices."""
        return np.flatnonzero(np.isin(self._index[:, 0], clients))

    def count_slices(self, clients: Sequence[int]) -> int:
        """Count some clients' slices."""
        return int(np.count_nonzero(np.isin(self._index[:, 0], clients)))

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


def _shows_tumour(reader: ShardReader) -> Bool[np.ndarray, " slice"]:
    with reader:
        return np.asarray(reader.column("label_voxels").any(axis=1))


class Pass(NamedTuple):
    """One pass over the slices of some clients together, in an order that a seed decides."""

    clients: tuple[int, ...]
    seed: int


class Passes(Sampler[list[int]]):
    """The batches of one pass after another.

    One sampler, one loader and its processes serve a whole run: `plan` says what comes next, and
    since the loader reads ahead over the end of a pass, nobody waits for the next client's data.
    """

    def __init__(
        self, dataset: SliceDataset, batch_size: int, *, tumour_share: float | None = None
    ) -> None:
        """Start without a plan; make one before iterating.

        Args:
            dataset: Whose indices to give.
            batch_size: Slices; the last batch of a pass may be smaller. A single slice that is left
                over joins the batch before: alone it gives BatchNorm nothing to compute with.
            tumour_share: Draw this share of a pass's slices from those that show tumour, again and
                again if they are fewer, and the rest from the others. By default every slice once.
        """
        self._dataset = dataset
        self._batch_size = batch_size
        self._tumour_share = tumour_share
        self._plan: Sequence[Pass] = ()
        self._skip = 0

    def plan(self, passes: Sequence[Pass], *, skip: int = 0) -> None:
        """Decide on the passes of the next iteration, without the first `skip` batches of all."""
        self._plan, self._skip = passes, skip

    def num_batches(self, clients: Sequence[int]) -> int:
        """Count the batches of a pass."""
        return len(self._starts(self._dataset.count_slices(clients)))

    def __len__(self) -> int:
        """Return the number of batches of all planned passes."""
        return sum(self.num_batches(each.clients) for each in self._plan) - self._skip

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch."""
        return islice(self._all_batches(), self._skip, None)

    def _all_batches(self) -> Iterator[list[int]]:
        for clients, seed in self._plan:
            order = self._order(clients, torch.Generator().manual_seed(seed))
            starts = self._starts(len(order))
            for start, stop in zip(starts, (*starts[1:], len(order)), strict=True):
                yield order[start:stop].tolist()

    def _starts(self, num_slices: int) -> range:
        is_single_left = num_slices > self._batch_size > 1 and num_slices % self._batch_size == 1
        return range(0, num_slices - is_single_left, self._batch_size)

    def _order(
        self, clients: Sequence[int], generator: torch.Generator
    ) -> Int[np.ndarray, " slice"]:
        rows = self._dataset.rows_of(clients)
        if self._tumour_share is None:
            return _shuffled(rows, len(rows), generator)
        shows = self._dataset.shows_tumour[rows]
        wanted = round(self._tumour_share * len(rows)) if shows.any() else 0
        wanted = len(rows) if shows.all() else wanted
        tumour = _shuffled(rows[shows], wanted, generator)
        others = _shuffled(rows[~shows], len(rows) - wanted, generator)
        return _shuffled(np.concatenate([tumour, others]), len(rows), generator)


def _shuffled(
    rows: Int[np.ndarray, " slice"], count: int, generator: torch.Generator
) -> Int[np.ndarray, " count"]:
    """Draw without replacement, starting over with a full set whenever it is used up."""
    num_sets = math.ceil(count / len(rows)) if count else 0
    orders = [torch.randperm(len(rows), generator=generator).numpy() for _ in range(num_sets)]
    order: np.ndarray = np.concatenate([np.empty(0, np.int64), *orders])[:count]
    return np.asarray(rows[order])


def make_loader(
    dataset: SliceDataset, batches: Passes, *, num_workers: int, pin_memory: bool
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


def read_batches(loader: DataLoader[Slice]) -> Iterator[Slice]:
    """Go through a loader once.

    Raises:
        InputError: If a shard is damaged, in one line wherever it was read: from a loader's process
            PyTorch brings the error with a traceback in its message.
    """
    try:
        yield from loader
    except InputError as error:
        line = str(error).strip().splitlines()[-1]
        raise InputError(line.removeprefix(f"{InputError.__module__}.InputError: ")) from error


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
