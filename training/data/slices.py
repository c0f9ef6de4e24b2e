"""Slices from shards: training examples for networks of two dimensions.

Any other model may read a cache through `SliceDataset`, and through the datasets of
`training.data.volumes`; see docs/reuse.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from cache_schema.admission import open_shard
from cache_schema.manifest import Manifest, read_manifest
from cache_schema.shard import ShardReader

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
        """List slices; of the shards, only their tables are read.

        Args:
            cache: A finished cache.
            clients: Whose slices; all clients by default.
            slices: All of them, or those that show tumour.
            manifest: The cache's manifest, if it is at hand already.
            known_as: Number that these clients go by here, if not by their own: a hospital's cache may
                have one client alone, which has another number in a federation.

        Raises:
            InputError: If the cache is unreadable, has no such client, or a shard is damaged or not the
                one that the manifest lists.
        """
        manifest = manifest or read_manifest(cache)
        chosen = range(manifest.options.clients) if clients is None else clients
        self._readers: list[ShardReader] = []
        rows: list[Int[np.ndarray, "slice 3"]] = [np.empty((0, 3), np.int64)]
        tumour: list[Bool[np.ndarray, " slice"]] = [np.empty(0, np.bool_)]
        for client in chosen:
            for path in manifest.client_shards(client):
                reader = open_shard(cache, manifest, path)
                with reader:
                    shows = shows_tumour(reader)
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

    def count(self, clients: Sequence[int]) -> int:
        """Count some clients' slices."""
        return len(self.rows_of(clients))

    def keys(self, rows: Int[np.ndarray, " row"], seed: int) -> list[int]:  # noqa: ARG002 - nothing is random
        """Say what to ask for, to get slices: their indices."""
        indices: list[int] = rows.tolist()
        return indices

    def __getitem__(self, index: int) -> Slice:
        """Read one slice.

        Raises:
            InputError: If its shard is damaged.
        """
        _, shard, row = self._index[index].tolist()
        image, label = self._readers[shard].images([row])[0], self._readers[shard].labels([row])[0]
        return Slice(torch.from_numpy(image), torch.from_numpy(label))


def shows_tumour(reader: ShardReader) -> Bool[np.ndarray, " slice"]:
    """Tell of every slice of a shard whether it holds a label."""
    return np.asarray(reader.column("label_voxels").any(axis=1))
