"""Preparation by one worker against its floor: inflating the files and writing the same slices.

Ours runs in a worker of the cluster that `prep partition` makes, the floor in a process of its own,
whose memory allocator is left alone: what the worker's settings cost is ours to bear. Both sides find
their files in the page cache, sync what they write and leave as many bytes of slices. The floor knows
the answer beforehand: it inflates each file in one call into a buffer of the right size and throws the
voxels away, then hands finished slices to HDF5 in one call.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py
import hdf5plugin
import numpy as np
from isal import isal_zlib

from bench.cases import Workbench, sources
from bench.cluster import Cluster, local_cluster
from bench.identity import measure_identity
from bench.timing import in_turn, per_case, ratio, seconds
from cache_schema.shard import ShardReader
from pipeline.case import Preprocessing
from pipeline.cohorts import Case
from pipeline.plan import ShardPlan
from pipeline.shard_task import make_shard

REPEATS: Final = 9


@dataclass(frozen=True)
class Slices:
    """What a finished shard holds, decoded."""

    image: np.ndarray
    label: np.ndarray


def measure_prep(bench: Workbench) -> dict[str, object]:
    """Compare preparation and floor on phantom and on real cases, and tell what identity costs in all."""
    with local_cluster(1) as cluster:
        found: dict[str, object] = {
            kind: _against_floor(cases, bench, cluster) for kind, cases in sources(bench).items()
        }
    return found | {"identity": measure_identity(bench)}


def prepare_anew(cases: Sequence[Case], shard: Path, settings: Preprocessing) -> float:
    """Prepare cases into one shard, and return the seconds it took."""
    shard.unlink(missing_ok=True)
    plan = ShardPlan(shard.name, 0, tuple(cases))
    start = time.perf_counter()
    outcome = make_shard(plan, shard.parent, settings, ignore)
    taken = time.perf_counter() - start
    if outcome.quarantined:
        raise RuntimeError(f"quarantined: {outcome.quarantined}")
    return taken


def ignore(_: str) -> None:
    """Hear that a case is done."""


def in_worker(
    cluster: Cluster, cases: Sequence[Case], shard: Path, settings: Preprocessing
) -> Callable[[], float]:
    """Give the function that lets a worker prepare cases and returns the seconds it took there."""

    def work() -> float:
        task = cluster.client.submit(prepare_anew, cases, shard, settings, pure=False)
        taken: float = task.result()
        return taken

    return work


def _against_floor(cases: Sequence[Case], bench: Workbench, cluster: Cluster) -> dict[str, float]:
    shard = bench.folder("prep") / "shard-000.h5"
    prepare = in_worker(cluster, cases, shard, bench.settings)
    prepare()
    with ShardReader(shard) as reader:
        slices = Slices(reader.images(slice(None)), reader.labels(slice(None)))
    files = [path for case in cases for path in case.files.values()]
    floor = bench.scratch / "floor.h5"
    taken = in_turn(
        {
            "ours": prepare,
            "inflate": lambda: seconds(lambda: _inflate(files)),
            "write": lambda: seconds(lambda: _write(slices, floor)),
        },
        REPEATS,
    )
    _check_same_bytes(shard, floor)
    floors = [a + b for a, b in zip(taken["inflate"], taken["write"], strict=True)]
    count = len(cases)
    return {
        "cases": count,
        "repeats": REPEATS,
        "seconds_per_case": per_case(taken["ours"], count),
        "floor_seconds_per_case": per_case(floors, count),
        "floor_inflate_seconds_per_case": per_case(taken["inflate"], count),
        "floor_write_seconds_per_case": per_case(taken["write"], count),
        "ratio_to_floor": ratio(taken["ours"], floors),
        "megabytes_per_case": round(shard.stat().st_size / count / 1e6, 2),
    }


def _inflate(files: Sequence[Path]) -> None:
    for path in files:
        content = path.read_bytes()
        size = int.from_bytes(content[-4:], "little")
        isal_zlib.decompress(content, wbits=31, bufsize=size + 1)


def _write(slices: Slices, path: Path) -> None:
    with h5py.File(path, "w", rdcc_nbytes=0) as file:
        for name, values in vars(slices).items():
            chunk = (1, *values.shape[1:])
            file.create_dataset(name, data=values, chunks=chunk, compression=hdf5plugin.LZ4())
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _check_same_bytes(shard: Path, floor: Path) -> None:
    """Make sure that the floor has stored as much as the shard: two builds of LZ4 differ by a hair."""
    with h5py.File(shard) as first, h5py.File(floor) as second:
        ours, theirs = (
            sum(file[name].id.get_storage_size() for name in ("image", "label"))
            for file in (first, second)
        )
    if abs(ours - theirs) > theirs / 500:
        raise RuntimeError(f"{ours} bytes stored, the floor {theirs}")
