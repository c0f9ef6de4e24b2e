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
from cache_schema.shard import ShardReader, digest
from cache_schema.vocabulary import MODALITIES
from pipeline.cohorts import Case

REPEATS: Final = 9
PASSES: Final = 90
"""Over every slice in a run of `train fed` with its own numbers: 30 rounds of 3."""
TRAINING_SECONDS_PER_SLICE: Final = 0.021 / 8
"""On the fastest device that was measured, an H200: see `results/train-gpu.json`. Elsewhere it is more."""
MONAI_SLICES, OUR_SLICES = 20, 100
"""Enough of a shuffled epoch: every access takes about as long as any other."""


def measure_reading(bench: Workbench) -> dict[str, object]:
    """Read shards of phantom and of real cases; compare the phantom ones with MONAI's cache."""
    found = sources(bench)
    figures: dict[str, Any] = {}
    for kind, cases in found.items():
        shard = bench.folder(f"reading-{kind}") / "shard-000.h5"
        prepare_anew(cases, shard, bench.settings)
        figures[kind] = _against_uncompressed(shard, bench.scratch / "plain.h5")
        figures[kind] |= _checking(shard, len(cases))
        figures[kind]["megabytes_per_case"] = round(shard.stat().st_size / len(cases) / 1e6, 2)
    if find_spec("monai") is None:
        print("monai is not installed: skipped")
        return figures
    figures |= _against_monai(
        bench.folder("reading-phantom") / "shard-000.h5",
        found["phantom"],
        bench.folder("reading-monai"),
    )
    return figures


def _against_uncompressed(shard: Path, plain: Path) -> dict[str, float]:
    """Read every image once in random order; the files are in the page cache."""
    _copy_uncompressed(shard, plain)
    order = np.random.default_rng(0).permutation(len(ShardReader(shard))).tolist()
    taken = in_turn(
        {"ours": lambda: _read(shard, order), "plain": lambda: _read_plain(plain, order)}, REPEATS
    )
    return {
        "slices": len(order),
        "repeats": REPEATS,
        "slices_per_second": round(len(order) / median(taken["ours"])),
        "uncompressed_slices_per_second": round(len(order) / median(taken["plain"])),
        "ratio_to_uncompressed": ratio(taken["plain"], taken["ours"]),
    }


def _checking(shard: Path, num_cases: int) -> dict[str, float]:
    """Hash a shard and look at its tables, once, against training on its slices as often as a run does."""
    with ShardReader(shard) as reader:
        num_slices = len(reader)
    taken = in_turn(
        {
            "hash": lambda: seconds(partial(digest, shard)),
            "open": lambda: seconds(partial(_check_tables, shard)),
        },
        REPEATS,
    )
    hashing, opening = (median(taken[name]) for name in ("hash", "open"))
    training = PASSES * num_slices * TRAINING_SECONDS_PER_SLICE
    return {
        "hashed_megabytes_per_second": round(shard.stat().st_size / hashing / 1e6),
        "checking_milliseconds_per_case": round(1e3 * (hashing + opening) / num_cases, 2),
        "checking_percent_of_a_run": round(100 * (hashing + opening) / training, 3),
    }


def _check_tables(path: Path) -> None:
    """Do what opening a shard of a cache does, but for the comparison with the manifest's fields."""
    with ShardReader(path) as reader:
        for entry in reader.cases():
            reader.has_sound_tables(entry)


def _copy_uncompressed(shard: Path, plain: Path) -> None:
    shutil.copy(shard, plain)
    with h5py.File(plain, "r+") as file:
        images = file["image"][:]
        del file["image"]
        file.create_dataset("image", data=images, chunks=(1, *images.shape[1:]))


def _read(path: Path, order: Sequence[int]) -> float:
    with ShardReader(path) as reader:
        reader.images([0])
        return seconds(lambda: _read_and_drop(reader, order))


def _read_plain(path: Path, order: Sequence[int]) -> float:
    with h5py.File(path) as file:
        images = file["image"]
        return seconds(lambda: _index_and_drop(images, order))


def _index_and_drop(images: h5py.Dataset, order: Sequence[int]) -> None:
    for row in order:
        images[row]


def _read_and_drop(reader: ShardReader, order: Sequence[int]) -> None:
    """Read slice after slice as training does, keeping none: kept ones cost new memory each."""
    for row in order:
        reader.images([row])


def _against_monai(shard: Path, cases: Sequence[Case], folder: Path) -> dict[str, float]:
    """Take random slices from MONAI's finished cache, which loads a whole case for each."""
    order = np.random.default_rng(1).permutation(len(ShardReader(shard))).tolist()[:OUR_SLICES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = fill_monai(cases, folder)
        depth = dataset[0][MODALITIES[0]].shape[-1]
        epoch = [(case, z) for case in range(len(cases)) for z in range(depth)]
        picked = iter(random.Random(0).sample(epoch, MONAI_SLICES + 1))
        taken = in_turn(
            {
                "ours": lambda: _read(shard, order) / len(order),
                "monai": lambda: seconds(partial(_monai_slice, dataset, *next(picked))),
            },
            MONAI_SLICES,
        )
    return {
        "monai_slices_per_second": round(1 / median(taken["monai"]), 2),
        "times_faster_than_monai": round(ratio(taken["monai"], taken["ours"])),
    }


def _monai_slice(dataset: Any, case: int, z: int) -> np.ndarray:  # noqa: ANN401
    volumes = dataset[case]
    return np.stack([volumes[name][0, :, :, z].numpy() for name in MODALITIES])
