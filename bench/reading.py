"""Random slices from a shard against the same HDF5 file uncompressed, in one process."""

import shutil
import time
from pathlib import Path
from statistics import median

import h5py
import numpy as np

from cache_schema.shard import ShardReader

REPEATS = 5


def measure_reading(shard: Path, scratch: Path) -> dict[str, float]:
    """Read every image of a shard once in random order, and of an uncompressed copy, in turn.

    Returns:
        Slices a second of both, and their ratio; the files are in the page cache.
    """
    plain = scratch / "plain.h5"
    _copy_uncompressed(shard, plain)
    rates: list[tuple[float, float]] = []
    for repeat in range(REPEATS):
        order = np.random.default_rng(repeat).permutation(len(ShardReader(shard))).tolist()
        rates.append((_rate(shard, order), _rate(plain, order)))
    return {
        "slices_per_second": round(median(rate for rate, _ in rates)),
        "uncompressed_slices_per_second": round(median(rate for _, rate in rates)),
        "ratio_to_uncompressed": round(median(a / b for a, b in rates), 3),
    }


def _copy_uncompressed(shard: Path, plain: Path) -> None:
    shutil.copy(shard, plain)
    with h5py.File(plain, "r+") as file:
        images = file["image"][:]
        del file["image"]
        file.create_dataset("image", data=images, chunks=(1, *images.shape[1:]))


def _rate(path: Path, order: list[int]) -> float:
    with ShardReader(path) as reader:
        reader.images([0])
        start = time.perf_counter()
        for row in order:
            reader.images([row])
        return len(order) / (time.perf_counter() - start)
