"""Patches of 128 voxels from a shard, against decompressing the slices that they lie in."""

from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from bench.cases import Workbench, sources
from bench.prep import prepare_anew
from bench.timing import in_turn, ratio, seconds
from cache_schema.shard import ShardReader
from pipeline.quality import BRATS_SHAPE
from training.data.volumes import read_patch

SIDE: Final = 128
REPEATS: Final = 15


def measure_patches(bench: Workbench) -> dict[str, object]:
    """Read patches of phantom and of real cases."""
    side = SIDE if bench.shape == BRATS_SHAPE else 16
    figures: dict[str, object] = {}
    for kind, cases in sources(bench).items():
        shard = bench.folder(f"patches-{kind}") / "shard-000.h5"
        prepare_anew(cases, shard, bench.settings)
        figures[kind] = _against_slices(shard, side)
    return figures


def _against_slices(shard: Path, side: int) -> dict[str, object]:
    """Read a patch of each case, and all of the slices in it; the files are in the page cache."""
    with ShardReader(shard) as reader:
        generator = np.random.default_rng(0)
        bounds = [(entry.first_row, entry.stop_row) for entry in reader.cases()]
        starts = [int(generator.integers(max(1, stop - first - side))) for first, stop in bounds]
        corner = [(side_of - side) // 2 for side_of in reader.plane]

        def patches() -> None:
            for (first, stop), start in zip(bounds, starts, strict=True):
                read_patch(reader, first, stop, (start, corner[0], corner[1]), (side,) * 3)

        def slices() -> None:
            for (first, stop), start in zip(bounds, starts, strict=True):
                rows = slice(first + start, min(first + start + side, stop))
                reader.images(rows)
                reader.labels(rows)

        taken = in_turn(
            {"patches": lambda: seconds(patches), "slices": lambda: seconds(slices)}, REPEATS
        )
    return {
        "side": side,
        "repeats": REPEATS,
        "patches_per_second": round(len(bounds) / median(taken["patches"]), 2),
        "ratio_to_slices": ratio(taken["patches"], taken["slices"]),
    }
