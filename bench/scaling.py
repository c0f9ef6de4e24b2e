"""Two workers against one, through the Dask cluster that `prep partition` uses."""

import shutil
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Final

from bench.cases import MANY_PATIENTS, Workbench
from bench.cluster import Cluster, Silence, local_cluster
from bench.timing import in_turn, per_case, ratio, seconds
from pipeline.plan import Plan, make_plan
from pipeline.run import run_plan

REPEATS: Final = 3
WORKERS: Final = (1, 2)


def measure_scaling(bench: Workbench) -> dict[str, object]:
    """Prepare phantom archives with one and with two workers, in turn.

    Two cases a shard: what is measured is the cluster, not how evenly a partition happens to fall.
    The clusters run beforehand; their start is reported apart.
    """
    plan = make_plan([bench.phantoms(MANY_PATIENTS)], bench.options(clients=2, shard_cases=2))
    with ExitStack() as stack:
        clusters = {n: stack.enter_context(local_cluster(n)) for n in WORKERS}
        taken = in_turn(
            {str(n): partial(_prepare, plan, clusters[n], bench) for n in WORKERS}, REPEATS
        )
        starts = [cluster.start_seconds for cluster in clusters.values()]
    count = sum(len(shard.cases) for shard in plan.shards)
    return {
        "cases": count,
        "repeats": REPEATS,
        "cluster_start_seconds": round(median(starts), 2),
        "seconds_per_case_1_worker": per_case(taken["1"], count),
        "seconds_per_case_2_workers": per_case(taken["2"], count),
        "speedup_2_workers": ratio(taken["1"], taken["2"]),
    }


def _prepare(plan: Plan, cluster: Cluster, bench: Workbench) -> float:
    cache = bench.scratch / "scaling"
    shutil.rmtree(cache, ignore_errors=True)
    return seconds(lambda: run_plan(plan, cache, Silence(), scheduler=cluster.address))
