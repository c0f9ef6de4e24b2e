"""Preparation by one worker against its floor: inflating the files and writing the same shard."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from isal import igzip

from cache_schema.shard import CaseSlices, ShardWriter
from pipeline.case import Preprocessing, prepare_case, read_sources
from pipeline.cohorts import Case
from pipeline.plan import ShardPlan
from pipeline.shard_task import make_shard

REPEATS = 5
SETTINGS = Preprocessing("zscore", bias_correct=False, geometry="brats", plane=(240, 240))


def measure_prep(cases: Sequence[Case], scratch: Path) -> tuple[Path, dict[str, float]]:
    """Prepare cases into one shard and compare with the floor, in turn.

    Returns:
        The shard, and seconds a case, their ratio, and megabytes a case.
    """
    plan = ShardPlan("shard-000.h5", 0, tuple(cases))
    prepared = [prepare_case(case, read_sources(case), SETTINGS) for case in cases]
    shard = scratch / plan.path
    ours, floors = [], []
    for _ in range(REPEATS):
        shard.unlink(missing_ok=True)
        ours.append(_seconds(lambda: make_shard(plan, scratch, SETTINGS, lambda _: None)))
        floors.append(_seconds(lambda: _floor(cases, prepared, scratch / "floor.h5")))
    ratios = [a / b for a, b in zip(ours, floors, strict=True)]
    return shard, {
        "seconds_per_case": round(median(ours) / len(cases), 4),
        "floor_seconds_per_case": round(median(floors) / len(cases), 4),
        "ratio_to_floor": round(median(ratios), 3),
        "megabytes_per_case": round(shard.stat().st_size / len(cases) / 1e6, 2),
    }


def _floor(cases: Sequence[Case], prepared: Sequence[CaseSlices], path: Path) -> None:
    """Do what cannot be avoided: inflate every file, compress and write every slice."""
    for case in cases:
        for source in case.files.values():
            igzip.decompress(source.read_bytes())
    with ShardWriter(path, plane=(240, 240), fingerprint="floor", client=0) as writer:
        for slices in prepared:
            writer.append(slices)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
