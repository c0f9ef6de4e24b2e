"""Volumes from shards: whole cases for evaluation, and patches of cases for networks of three dimensions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float64, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cache_schema.admission import open_shard
from cache_schema.manifest import Manifest, read_manifest
from cache_schema.shard import CaseEntry, ShardReader
from cache_schema.vocabulary import Cohort, Split
from training.data.slices import shows_tumour
from training.seeds import derive_seed

Place = tuple[int, int, int]
"""Slice, row and column."""


class Patch(NamedTuple):
    """A part of a volume as stored, or after collation a batch of them.

    Attributes:
        image: Modalities t1, t1ce, t2, flair, z-scored, background 0; depth is the axis of the slices.
        label: BraTS values 0, 1, 2, 4.
    """

    image: Float16[Tensor, "*batch 4 depth height width"]
    label: UInt8[Tensor, "*batch depth height width"]


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
        self._cache = cache
        self._readers: dict[str, ShardReader] = {}

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.cases)

    def __getitem__(self, index: int) -> CaseVolume:
        """Read one case.

        Raises:
            IndexError: If there is no such case.
            InputError: If its shard is damaged, or not the one that the manifest lists.
        """
        reader, entry = self._find(index)
        rows = slice(entry.first_row, entry.stop_row)
        return CaseVolume(
            case_id=entry.case_id,
            patient_id=entry.patient_id,
            cohort=self.cases[index].cohort,
            image=reader.images(rows),
            label=reader.labels(rows),
            z=reader.column("z")[rows],
            affine=entry.affine,
            shape=entry.shape,
        )

    def patch(self, index: int, corner: Place, size: Place) -> Patch:
        """Read a part of one case, and of its slices no more than those in it.

        Args:
            index: Of the case.
            corner: First slice of those that are kept, first row, first column; may lie outside.
            size: Slices, rows, columns; 0 outside the kept slices and their plane.

        Raises:
            IndexError: If there is no such case.
            InputError: If its shard is damaged, or not the one that the manifest lists.
        """
        reader, entry = self._find(index)
        return read_patch(reader, entry.first_row, entry.stop_row, corner, size)

    def _find(self, index: int) -> tuple[ShardReader, CaseEntry]:
        case = self.cases[index]
        if case.shard not in self._readers:
            self._readers[case.shard] = open_shard(self._cache, self.manifest, case.shard)
        reader = self._readers[case.shard]
        return reader, next(e for e in reader.cases() if e.case_id == case.case_id)


def read_patch(
    reader: ShardReader, first_row: int, stop_row: int, corner: Place, size: Place
) -> Patch:
    """Read a part of the case that lies in some rows of a shard; see `VolumeDataset.patch`."""
    image, label = np.zeros((4, *size), np.float16), np.zeros(size, np.uint8)
    bounds = (stop_row - first_row, *reader.plane)
    spans = [
        range(max(start, 0), min(start + side, bound))
        for start, side, bound in zip(corner, size, bounds, strict=True)
    ]
    if all(spans):
        depth, rows, columns = spans
        # Slice by slice: memory for all of them at once would cost more than decompressing them.
        for z in depth:
            row = [first_row + z]
            place = np.s_[
                z - corner[0],
                rows.start - corner[1] : rows.stop - corner[1],
                columns.start - corner[2] : columns.stop - corner[2],
            ]
            cut = np.s_[rows.start : rows.stop, columns.start : columns.stop]
            image[:, *place] = reader.images(row)[0][:, *cut]
            label[place] = reader.labels(row)[0][cut]
    return Patch(torch.from_numpy(image), torch.from_numpy(label))


class PatchKey(NamedTuple):
    """A case, and the seed of the place that is taken from it."""

    case: int
    seed: int


@dataclass(frozen=True)
class PatchSampling:
    """Where patches are taken.

    Attributes:
        size: Slices, rows and columns of a patch.
        rotation_degrees: By which patches will be turned about their middle: so much wider they are
            read, that no corner comes from outside where the volume goes on.
        tumour_share: Probability that a patch is put around a voxel of tumour, where a case has any.
    """

    size: Place
    rotation_degrees: float = 0.0
    tumour_share: float = 0.5

    def reach(self) -> Place:
        """Say how much is read for a patch: as much as its turned square needs, the same on both sides."""
        angle = math.radians(min(self.rotation_degrees, 45.0))
        growth = math.cos(angle) + math.sin(angle) - 1.0
        depth, *sides = self.size
        height, width = (side + 2 * math.ceil(side * growth / 2) for side in sides)
        return depth, height, width


@dataclass(frozen=True)
class _Case:
    client: int
    reader: ShardReader
    first_row: int
    stop_row: int
    tumour_rows: Int[np.ndarray, " row"]


class PatchDataset(Dataset[Patch]):
    """One patch of every training case of some or all clients, at another place in every pass.

    Reads only the slices of a patch. Safe to hand to DataLoader workers, and never opens a test shard,
    like `training.data.SliceDataset`.

    Attributes:
        shows_tumour: For every case whether it holds a label.
    """

    def __init__(
        self,
        cache: Path,
        sampling: PatchSampling,
        *,
        clients: Sequence[int] | None = None,
        manifest: Manifest | None = None,
        known_as: int | None = None,
    ) -> None:
        """List cases; of the shards, only their tables are read.

        Args:
            cache: A finished cache.
            sampling: Where patches are taken.
            clients: Whose cases; all clients by default.
            manifest: The cache's manifest, if it is at hand already.
            known_as: Number that these clients go by here, if not by their own.

        Raises:
            InputError: If the cache is unreadable, has no such client, or a shard is damaged or not the
                one that the manifest lists.
        """
        manifest = manifest or read_manifest(cache)
        self._sampling = sampling
        self._cases: list[_Case] = []
        for client in range(manifest.options.clients) if clients is None else clients:
            for path in manifest.client_shards(client):
                name = client if known_as is None else known_as
                self._cases += _cases_of(name, open_shard(cache, manifest, path))
        self._clients = np.array([case.client for case in self._cases], np.int64)
        self.shows_tumour: Bool[np.ndarray, " case"] = np.array(
            [len(case.tumour_rows) > 0 for case in self._cases], np.bool_
        )

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self._cases)

    def rows_of(self, clients: Sequence[int]) -> Int[np.ndarray, " case"]:
        """Return the indices of some clients' cases."""
        return np.flatnonzero(np.isin(self._clients, clients))

    def count(self, clients: Sequence[int]) -> int:
        """Count some clients' cases."""
        return len(self.rows_of(clients))

    def keys(self, rows: Int[np.ndarray, " row"], seed: int) -> list[PatchKey]:
        """Say what to ask for, to get a patch of each of some cases in a step that has this seed."""
        return [
            PatchKey(case, derive_seed(seed, place)) for place, case in enumerate(rows.tolist())
        ]

    def __getitem__(self, key: PatchKey) -> Patch:
        """Read a patch of one case, wider in the plane than it will be once it is turned.

        Raises:
            InputError: If its shard is damaged.
        """
        case = self._cases[key.case]
        generator = np.random.default_rng(key.seed)
        size, wider = self._sampling.size, self._sampling.reach()
        bounds = (case.stop_row - case.first_row, *case.reader.plane)
        voxel = None
        if generator.random() < self._sampling.tumour_share and len(case.tumour_rows):
            voxel = _tumour_voxel(case, generator)
        z, row, column = draw_corner(generator, bounds, size, voxel)
        corner = z, row - (wider[1] - size[1]) // 2, column - (wider[2] - size[2]) // 2
        return read_patch(case.reader, case.first_row, case.stop_row, corner, wider)


def _cases_of(client: int, reader: ShardReader) -> list[_Case]:
    with reader:
        shows = shows_tumour(reader)
        return [
            _Case(
                client,
                reader,
                entry.first_row,
                entry.stop_row,
                np.flatnonzero(shows[entry.first_row : entry.stop_row]),
            )
            for entry in reader.cases()
        ]


def _tumour_voxel(case: _Case, generator: np.random.Generator) -> Place:
    row = int(generator.choice(case.tumour_rows))
    (label,) = case.reader.labels([case.first_row + row])
    heights, widths = np.nonzero(label)
    chosen = int(generator.integers(len(heights)))
    return row, int(heights[chosen]), int(widths[chosen])


def draw_corner(
    generator: np.random.Generator, bounds: Place, size: Place, voxel: Place | None
) -> Place:
    """Draw where a patch begins: inside a volume, or around it in the middle where the volume is smaller.

    Args:
        generator: Random numbers.
        bounds: Of the volume.
        size: Of the patch.
        voxel: Lies in the inner half of the patch, unless that reaches over the volume's edge; without
            one every place is as likely as another.
    """
    corner = []
    for axis, (bound, side) in enumerate(zip(bounds, size, strict=True)):
        last = bound - side
        if last <= 0:
            start = last // 2
        elif voxel is None:
            start = int(generator.integers(last + 1))
        else:
            before = int(generator.integers(side // 4, side - side // 4))
            start = min(max(voxel[axis] - before, 0), last)
        corner.append(start)
    return corner[0], corner[1], corner[2]
