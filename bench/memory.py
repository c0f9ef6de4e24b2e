"""Peak memory of a Dask worker over a few cases and over ten times as many."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.cases import MANY_PATIENTS, Workbench, usable_cases
from bench.cluster import local_cluster
from bench.prep import ignore
from pipeline.case import Preprocessing
from pipeline.cohorts import Case
from pipeline.plan import ShardPlan
from pipeline.shard_task import make_shard
from training.process import own_bytes

REPEATS: Final = 3
FEW, MANY = 4, 40


def measure_memory(bench: Workbench) -> dict[str, object]:
    """Compare a worker's peak after 4 cases with another's after 40, each a fresh process."""
    cases = usable_cases(bench.phantoms(MANY_PATIENTS))
    shard_cases = bench.options().shard_cases
    peaks: dict[int, list[int]] = {FEW: [], MANY: []}
    for _ in range(REPEATS):
        for count, found in peaks.items():
            plans = _cut(cases[:count], shard_cases)
            found.append(_peak_bytes(plans, bench.folder("memory"), bench.settings))
    few, many = (sorted(peaks[count])[REPEATS // 2] for count in (FEW, MANY))
    return {
        "cases": [FEW, len(cases[:MANY])],
        "cases_per_shard": shard_cases,
        "repeats": REPEATS,
        "peak_megabytes_4_cases": round(few / 1e6, 1),
        "peak_megabytes_40_cases": round(many / 1e6, 1),
        "ratio_40_to_4": round(many / few, 3),
    }


def _cut(cases: Sequence[Case], size: int) -> list[ShardPlan]:
    starts = range(0, len(cases), size)
    return [ShardPlan(f"shard-{s:03}.h5", 0, tuple(cases[s : s + size])) for s in starts]


def _peak_bytes(plans: Sequence[ShardPlan], cache: Path, settings: Preprocessing) -> int:
    with local_cluster(1) as cluster:
        for plan in plans:
            cluster.client.submit(make_shard, plan, cache, settings, ignore, pure=False).result()
        peaks: dict[str, int] = cluster.client.run(own_bytes, "VmHWM")
        return max(peaks.values())
