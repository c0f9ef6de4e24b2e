"""Random slices from a shard in one process, against the same file uncompressed and against MONAI."""

import random
import shutil
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

import h5py
import numpy as np

from bench.cases import Workbench, sources
from bench.peers import fill_monai
from bench.prep import prepare_anew
from bench.timing import in_turn, ratio, seconds
from cache_schema.shard import ShardReader
from cache_schema.vocabulary import MODALITIES
from pipeline.cohorts import Case

REPEATS: Final = 9
MONAI_SLICES: Final = 12
"""Enough of a shuffled epoch: every access takes about as long as any other."""


def measure_reading(bench: Workbench) -> dict[str, object]:
    """Read shards of phantom and of real cases; compare the phantom ones with MONAI's cache."""
    found = sources(bench)
    figures: dict[str, Any] = {}
    for kind, cases in found.items():
        shard = bench.folder(f"reading-{kind}") / "shard-000.h5"
        prepare_anew(cases, shard, bench.settings)
        figures[kind] = _against_uncompressed(shard, bench.scratch / "plain.h5")
        figures[kind]["megabytes_per_case"] = round(shard.stat().st_size / len(cases) / 1e6, 2)
    if find_spec("monai") is None:
        print("monai is not installed: skipped")
        return figures
    rate = _monai_rate(found["phantom"], bench.folder("reading-monai"))
    figures["monai_slices_per_second"] = round(rate, 2)
    figures["times_faster_than_monai"] = round(figures["phantom"]["slices_per_second"] / rate)
    return figures


def _against_uncompressed(shard: Path, plain: Path) -> dict[str, float]:
    """Read every image once in random order; the files are in the page cache."""
    _copy_uncompressed(shard, plain)
    order = np.random.default_rng(0).permutation(len(ShardReader(shard))).tolist()
    taken = in_turn(
        {"ours": lambda: _read(shard, order), "plain": lambda: _read(plain, order)}, REPEATS
    )
    return {
        "slices": len(order),
        "repeats": REPEATS,
        "slices_per_second": round(len(order) / median(taken["ours"])),
        "uncompressed_slices_per_second": round(len(order) / median(taken["plain"])),
        "ratio_to_uncompressed": ratio(taken["plain"], taken["ours"]),
    }


def _copy_uncompressed(shard: Path, plain: Path) -> None:
    shutil.copy(shard, plain)
    with h5py.File(plain, "r+") as file:
        images = file["image"][:]
        del file["image"]
        file.create_dataset("image", data=images, chunks=(1, *images.shape[1:]))


def _read(path: Path, order: Sequence[int]) -> float:
    with ShardReader(path) as reader:
        reader.images([0])
        return seconds(lambda: [reader.images([row]) for row in order])


def _monai_rate(cases: Sequence[Case], folder: Path) -> float:
    """Take random slices from MONAI's finished cache; it loads a whole case for each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = fill_monai(cases, folder)
        depth = dataset[0][MODALITIES[0]].shape[-1]
        epoch = [(case, z) for case in range(len(cases)) for z in range(depth)]
        picked = random.Random(0).sample(epoch, MONAI_SLICES)
        taken = [seconds(partial(_monai_slice, dataset, *at)) for at in picked]
    return 1 / median(taken)


def _monai_slice(dataset: Any, case: int, z: int) -> np.ndarray:  # noqa: ANN401
    volumes = dataset[case]
    return np.stack([volumes[name][0, :, :, z].numpy() for name in MODALITIES])
