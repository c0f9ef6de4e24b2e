"""Another partition of prepared cases: copying compressed slices against preparing anew."""

import shutil
from pathlib import Path
from typing import Final

from bench.cases import MANY_PATIENTS, Workbench
from bench.cluster import Cluster, Silence, local_cluster
from bench.timing import in_turn, per_case, ratio, seconds
from pipeline.plan import Plan, make_plan
from pipeline.run import run_plan

REPEATS: Final = 5


def measure_reuse(bench: Workbench) -> dict[str, object]:
    """Prepare phantom archives for another alpha, with and without `--reuse`, in turn.

    Two clients fill their shards as twenty do with the real archives.
    """
    roots = [bench.phantoms(MANY_PATIENTS)]
    first = make_plan(roots, bench.options(clients=2, alpha=1.0))
    second = make_plan(roots, bench.options(clients=2, alpha=0.5, seed=1))
    donor = bench.scratch / "donor"
    with local_cluster(1) as cluster:
        run_plan(first, donor, Silence(), scheduler=cluster.address)
        taken = in_turn(
            {
                "anew": lambda: _prepare(second, cluster, bench, None),
                "reuse": lambda: _prepare(second, cluster, bench, donor),
            },
            REPEATS,
        )
    count = sum(len(shard.cases) for shard in second.shards)
    return {
        "cases": count,
        "repeats": REPEATS,
        "seconds_per_case_anew": per_case(taken["anew"], count),
        "seconds_per_case_reuse": per_case(taken["reuse"], count),
        "times_faster": ratio(taken["anew"], taken["reuse"]),
    }


def _prepare(plan: Plan, cluster: Cluster, bench: Workbench, reuse: Path | None) -> float:
    cache = bench.scratch / "reuse"
    shutil.rmtree(cache, ignore_errors=True)
    return seconds(lambda: run_plan(plan, cache, Silence(), scheduler=cluster.address, reuse=reuse))
