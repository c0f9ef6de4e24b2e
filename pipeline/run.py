"""The Dask graph of a preparation: one task writes one shard. The only room that knows Dask."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from distributed import Client, LocalCluster, as_completed, get_worker

from cache_schema.errors import InputError
from cache_schema.layout import LOG_NAME, MANIFEST_NAME
from cache_schema.manifest import Manifest, Quarantined, write_manifest
from cache_schema.shard import PARTIAL_SUFFIX
from pipeline.assemble import assemble_manifest
from pipeline.case import Preprocessing
from pipeline.cohorts import Case
from pipeline.journal import Journal, open_journal
from pipeline.plan import Plan, ShardPlan
from pipeline.reuse import Donor, find_donors
from pipeline.scan import CaseReport, inspect_case
from pipeline.shard_task import ShardOutcome, make_shard


@runtime_checkable
class Observer(Protocol):
    """Who is told how a preparation goes, for a progress bar or a test."""

    def started(self, *, num_cases: int, num_workers: int, dashboard: str) -> None:
        """Work begins; the dashboard is a web address."""

    def case_done(self, case_id: str) -> None:
        """One more case is done with."""


@dataclass(frozen=True)
class RunResult:
    """A finished preparation: its manifest, shards kept from before, and files that were stale."""

    manifest: Manifest
    num_reused: int
    removed: tuple[str, ...]


def run_plan(
    plan: Plan,
    cache: Path,
    observer: Observer,
    *,
    num_workers: int | None = None,
    scheduler: str | None = None,
    reuse: Path | None = None,
) -> RunResult:
    """Carry out a plan on a Dask cluster and write the manifest last.

    The bytes of the cache do not depend on the number of workers or on earlier, interrupted runs.

    Args:
        plan: What to write where.
        cache: Folder to write to; shards that are there and current are kept.
        observer: Told about progress.
        num_workers: Processes of a cluster on this machine; all cores by default.
        scheduler: Address of a cluster that runs already and sees the same paths.
        reuse: Another cache of the same cases, whose compressed slices are copied.

    Returns:
        What was done.

    Raises:
        InputError: If another preparation writes to the cache, the scheduler cannot be reached, or
            every case was quarantined.
    """
    donors = find_donors(reuse, plan.preprocessing) if reuse is not None else {}
    cache.mkdir(parents=True, exist_ok=True)
    with open_journal(cache) as journal, _connect(num_workers, scheduler) as client:
        journal.record("started", shards=len(plan.shards), options=plan.options.model_dump())
        outcomes = _make_shards(client, plan, cache.resolve(), journal, observer, donors=donors)
        manifest = assemble_manifest(plan, outcomes)
        if not manifest.cases:
            reasons = "; ".join(f"{q.case_id}: {q.reason}" for q in manifest.quarantined[:3])
            raise InputError(f"every case was quarantined ({reasons}); see {cache / LOG_NAME}")
        removed = _remove_stale(cache, manifest)
        _remove_partials(cache)
        write_manifest(cache, manifest)
        num_reused = sum(outcome.reused for outcome in outcomes)
        journal.record("finished", reused=num_reused, removed=removed)
    return RunResult(manifest, num_reused, removed)


def inspect_cases(
    cases: Sequence[Case], geometry: str, observer: Observer, *, num_workers: int | None = None
) -> list[CaseReport]:
    """Read every voxel of every case on a Dask cluster of this machine, writing nothing.

    Args:
        cases: What to read.
        geometry: See `quality.check_geometry`.
        observer: Told about progress.
        num_workers: Processes; all cores by default.

    Returns:
        A report for each case, in the order of `cases`.
    """
    chunks = [cases[start : start + 8] for start in range(0, len(cases), 8)]
    with _connect(num_workers, None) as client:
        topic = _begin(client, observer, len(cases))
        task = partial(_inspect_on_worker, geometry=geometry, topic=topic)
        futures = client.map(task, chunks, pure=False)
        return [report for reports in client.gather(futures) for report in reports]


@contextmanager
def _connect(num_workers: int | None, scheduler: str | None) -> Iterator[Client]:
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="30s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"--scheduler {scheduler} cannot be reached ({error}); start one with `dask scheduler`"
            ) from error
        with client:
            yield client
        return
    workers = num_workers or len(os.sched_getaffinity(0))
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _make_shards(
    client: Client,
    plan: Plan,
    cache: Path,
    journal: Journal,
    observer: Observer,
    *,
    donors: Mapping[str, Donor],
) -> list[ShardOutcome]:
    recorded = journal.shard_digests()
    (cache / MANIFEST_NAME).unlink(missing_ok=True)
    # Once more for this run: the manifest that knew them is gone, should the run be killed.
    for path, sha256 in recorded.items():
        journal.record("known", path=path, sha256=sha256)
    topic = _begin(client, observer, sum(len(shard.cases) for shard in plan.shards))
    task = partial(_make_shard_on_worker, cache=cache, settings=plan.preprocessing, topic=topic)
    # Large shards first: the last task to finish is then a small one.
    queue = sorted(plan.shards, key=lambda shard: -len(shard.cases))
    futures = {
        client.submit(
            task, shard, recorded=recorded.get(shard.path), donors=_own(donors, shard), pure=False
        ): shard
        for shard in queue
    }
    outcomes = []
    for future in as_completed(futures):
        shard = futures[future]
        outcome = _outcome_of(future, shard)
        outcomes.append(outcome)
        written = outcome.shard.sha256 if outcome.shard else None
        journal.record("shard", path=shard.path, sha256=written, reused=outcome.reused)
        for entry in outcome.quarantined:
            journal.record("quarantined", **entry.model_dump())
    return outcomes


def _begin(client: Client, observer: Observer, num_cases: int) -> str:
    """Announce the work and return the topic on which workers send word of every case."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    observer.started(num_cases=num_cases, num_workers=len(workers), dashboard=client.dashboard_link)
    topic = f"cases-{uuid4()}"  # a scheduler may serve several preparations at once
    client.subscribe_topic(topic, lambda event: observer.case_done(event[1]))
    return topic


def _own(donors: Mapping[str, Donor], shard: ShardPlan) -> dict[str, Donor]:
    """Pick the donors of one shard: a task carries no more than it needs."""
    ids = (case.case_id for case in shard.cases)
    return {case_id: donors[case_id] for case_id in ids if case_id in donors}


def _make_shard_on_worker(
    plan: ShardPlan,
    *,
    recorded: str | None,
    donors: Mapping[str, Donor],
    cache: Path,
    settings: Preprocessing,
    topic: str,
) -> ShardOutcome:
    tell = partial(get_worker().log_event, topic)
    return make_shard(plan, cache, settings, tell, recorded=recorded, donors=donors)


def _inspect_on_worker(cases: Sequence[Case], geometry: str, topic: str) -> list[CaseReport]:
    reports = []
    for case in cases:
        reports.append(inspect_case(case, geometry))
        get_worker().log_event(topic, case.case_id)
    return reports


def _outcome_of(future: Any, shard: ShardPlan) -> ShardOutcome:  # noqa: ANN401
    """Take a task's result; if it broke its worker again and again, its cases are quarantined."""
    error = future.exception()
    if error is None:
        result: ShardOutcome = future.result()
        return result
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    quarantined = tuple(
        Quarantined(case_id=case.case_id, cohort=case.cohort, reason=reason) for case in shard.cases
    )
    return ShardOutcome(None, (), quarantined, reused=False)


def _remove_partials(cache: Path) -> None:
    """Remove what killed workers left behind."""
    for leftover in cache.rglob(f"shard-*{PARTIAL_SUFFIX}"):
        leftover.unlink()


def _remove_stale(cache: Path, manifest: Manifest) -> tuple[str, ...]:
    """Remove shards of an earlier partition, which a reader of a client's folder would take for his."""
    current = {shard.path for shard in manifest.shards}
    stale = []
    for pattern in ("clients/client-*/shard-*.h5", "test/*/shard-*.h5"):
        for path in sorted(cache.glob(pattern)):
            relative = path.relative_to(cache).as_posix()
            if relative not in current:
                path.unlink()
                stale.append(relative)
    return tuple(stale)
