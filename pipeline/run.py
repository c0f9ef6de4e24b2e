"""The Dask graph of a preparation: one task writes one shard."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from dataclasses import replace as with_fields
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable
from uuid import uuid4

from distributed import Client, KilledWorker, get_worker, wait

from cache_schema.errors import InputError, WriteError
from cache_schema.files import GOES_ON, PARTIAL_SUFFIX, refuse_links, remove_partials, reporting
from cache_schema.layout import LOG_NAME, MANIFEST_NAME, SHARD_FOLDERS
from cache_schema.manifest import Manifest, Quarantined, write_manifest
from cache_schema.targets import require_writable_folder
from pipeline.assemble import assemble_manifest
from pipeline.case import Preprocessing, prepare_case, read_sources
from pipeline.cluster import connect
from pipeline.cohorts import Case
from pipeline.journal import Journal, open_journal
from pipeline.plan import Plan, ShardPlan
from pipeline.quality import CaseError
from pipeline.request import Request, request_of_plan, require_same_request
from pipeline.reuse import find_donors
from pipeline.scan import CaseReport, inspect_case
from pipeline.shard_task import ShardOutcome, make_shard

_log = logging.getLogger(__name__)

MAX_FAILURES: Final = 3
"""How often a shard is tried again after its workers died without a single case to blame."""

CHECK_S: Final = 5.0
"""How often it is looked whether there are workers while nothing is finished."""
WITHOUT_WORKERS_S: Final = 120.0
"""After that nobody will start one again; a worker that died is back in seconds."""


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

    @property
    def short_clients(self) -> dict[int, int]:
        """Cases of each client that has fewer than it should: some of its cases were quarantined."""
        records = self.manifest.partition.clients
        least = self.manifest.options.min_cases
        return {record.client: record.cases for record in records if record.cases < least}


def run_plan(
    plan: Plan,
    cache: Path,
    observer: Observer,
    *,
    num_workers: int | None = None,
    scheduler: str | None = None,
    reuse: Path | None = None,
    replace: bool = False,
    warn: Callable[[str], None] = _log.warning,
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
        replace: Make a cache of other options or cases anew; without it, it is left as it is.
        warn: Told in one sentence what the user should know before the work begins.

    Returns:
        What was done.

    Raises:
        InputError: If the folder cannot be written, holds links or a cache of other options or cases, or is
            being written by another preparation, the scheduler cannot be reached, or every case was
            quarantined.
    """
    require_writable_folder(cache, "--cache")
    donors = find_donors(reuse, plan.preprocessing) if reuse is not None else {}
    with reporting(cache, option="--cache", advice=GOES_ON):
        cache.mkdir(parents=True, exist_ok=True)
    _refuse_links(cache)
    with open_journal(cache) as journal:
        request = request_of_plan(plan)
        if not replace:
            _refuse_replacing(cache, journal, request)
        for warning in _warnings(cache, journal):
            warn(warning)
        with connect(num_workers, scheduler, cache.resolve()) as client:
            journal.record("started", shards=len(plan.shards), **asdict(request))
            outcomes = _make_shards(client, plan, cache.resolve(), journal, observer, donors=donors)
        manifest = assemble_manifest(plan, outcomes)
        if not manifest.cases:
            reasons = "; ".join(f"{q.case_id}: {q.reason}" for q in manifest.quarantined[:3])
            journal.record("refused", reason="every case was quarantined")
            raise InputError(f"every case was quarantined ({reasons}); see {cache / LOG_NAME}")
        _refuse_links(cache)
        removed = _remove_stale(cache, manifest)
        _remove_partials(cache)
        write_manifest(cache, manifest)
        num_reused = sum(outcome.reused for outcome in outcomes)
        journal.record("finished", reused=num_reused, removed=removed)
    return RunResult(manifest, num_reused, removed)


def _refuse_links(cache: Path) -> None:
    """Make sure that nothing outside a cache is written or removed through a link inside it."""
    for name in (LOG_NAME, MANIFEST_NAME, *SHARD_FOLDERS):
        refuse_links(cache / name)


def _refuse_replacing(cache: Path, journal: Journal, request: Request) -> None:
    """Make sure that a cache of something else is not replaced unasked.

    Raises:
        InputError: If the folder holds one, or a manifest that cannot be read.
    """
    try:
        made = journal.last_request()
    except InputError as error:
        raise InputError(f"{error}; --replace replaces it whatever it is") from error
    if made is not None:
        require_same_request(cache, made, request)


def _warnings(cache: Path, journal: Journal) -> Iterator[str]:
    """Yield what the user should know before a cache is written to."""
    if not journal.is_guarded:
        yield f"{cache} is on a file system without locks: nothing keeps a second `prep partition` out"
    if found := journal.foreign_lines():
        yield (
            f"{cache / LOG_NAME} has {len(found)} line(s) that are no records, first line {found[0]}; "
            "they are passed over"
        )
    if journal.has_older_manifest():
        yield (
            f"the manifest of {cache} is of an earlier version and is written anew; runs that were "
            "trained on this cache before are not scored on it any more"
        )


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
    with connect(num_workers, None) as client:
        topic = _begin(client, observer, len(cases))
        task = partial(_inspect_on_worker, geometry=geometry, topic=topic)
        futures = client.map(task, chunks, pure=False)
        return [report for reports in client.gather(futures) for report in reports]


def _make_shards(
    client: Client,
    plan: Plan,
    cache: Path,
    journal: Journal,
    observer: Observer,
    *,
    donors: Mapping[str, Path],
) -> list[ShardOutcome]:
    recorded, faults = journal.shard_digests(), journal.faults()
    (cache / MANIFEST_NAME).unlink(missing_ok=True)
    # Once more for this run: the manifest that knew them is gone, should the run be killed.
    for path, sha256 in recorded.items():
        journal.record("known", path=path, sha256=sha256)
    for fault in faults.values():
        journal.record("quarantined", **fault.model_dump())
    topic = _begin(client, observer, sum(len(shard.cases) for shard in plan.shards))
    task = partial(_make_shard_on_worker, cache=cache, settings=plan.preprocessing, topic=topic)

    def submit(shard: ShardPlan) -> Any:  # noqa: ANN401
        own = partial(_own, shard=shard)
        known = {"recorded": recorded.get(shard.path), "faults": own(faults), "donors": own(donors)}
        return client.submit(task, shard, **known, pure=False)

    # Large shards first: the last task to finish is then a small one.
    futures = {submit(s): s for s in sorted(plan.shards, key=lambda shard: -len(shard.cases))}
    outcomes: list[ShardOutcome] = []
    failures: Counter[str] = Counter()
    while futures:
        future = _next_finished(client, futures)
        shard = futures.pop(future)
        if future.exception() is None:
            outcomes.append(future.result())
            future.release()  # else Dask makes the shard again if this worker dies later on
            _log_outcome(journal, shard, outcomes[-1])
            continue
        if isinstance(future.exception(), WriteError):
            raise future.exception()
        failures[shard.path] += 1
        if failures[shard.path] > MAX_FAILURES:
            raise InputError(
                f"{shard.path}: its workers keep dying ({_one_line(future.exception())}); leave each "
                "of them more memory with fewer --workers"
            )
        rest, culprits = _find_culprits(client, shard, plan.preprocessing, future.exception())
        outcomes.append(ShardOutcome(None, (), culprits, reused=False))
        _log_outcome(journal, shard, outcomes[-1])
        if rest.cases:
            futures[submit(rest)] = rest
    return outcomes


def _next_finished(client: Client, futures: Mapping[Any, ShardPlan]) -> Any:  # noqa: ANN401
    """Wait for one of some tasks.

    Raises:
        InputError: If all workers are gone and none comes back: Dask would wait for ever.
    """
    without_workers_s = 0.0
    while without_workers_s < WITHOUT_WORKERS_S:
        try:
            finished = wait(list(futures), timeout=CHECK_S, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            has_workers = bool(client.scheduler_info(n_workers=-1)["workers"])
            without_workers_s = 0.0 if has_workers else without_workers_s + CHECK_S
        else:
            return next(future for future in futures if future in finished)
    raise InputError(
        f"no worker has been there for {WITHOUT_WORKERS_S:.0f} s; give the same command again, it goes on "
        "from what is finished"
    )


def _log_outcome(journal: Journal, shard: ShardPlan, outcome: ShardOutcome) -> None:
    written = outcome.shard.sha256 if outcome.shard else None
    journal.record("shard", path=shard.path, sha256=written, reused=outcome.reused)
    for entry in outcome.quarantined:
        journal.record("quarantined", **entry.model_dump())


def _find_culprits(
    client: Client, shard: ShardPlan, settings: Preprocessing, error: BaseException
) -> tuple[ShardPlan, tuple[Quarantined, ...]]:
    """Find the cases that break a shard's task or kill its worker, by preparing each one alone.

    Returns:
        The shard without them, and the cases to quarantine.

    Raises:
        InputError: If every case alone is sound and no worker died: then it is the writing that
            fails, as on a full disk, and no case is to blame.
    """
    # One after another: a worker that dies takes those along that wait for it.
    found = [
        client.submit(_probe_on_worker, case, settings, pure=False).exception()
        for case in shard.cases
    ]
    if not any(found) and not isinstance(error, KilledWorker):
        raise InputError(f"{shard.path} cannot be written ({_one_line(error)})")
    tried = list(zip(shard.cases, found, strict=True))
    rest = with_fields(shard, cases=tuple(case for case, fault in tried if fault is None))
    # Without a key: what kills a worker is better not read here, and may go well another time.
    culprits = tuple(
        Quarantined(case_id=c.case_id, cohort=c.cohort, reason=_one_line(fault), key=None)
        for c, fault in tried
        if fault is not None
    )
    return rest, culprits


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _probe_on_worker(case: Case, settings: Preprocessing) -> None:
    with suppress(CaseError):  # that would have been quarantined where it belongs
        for _ in prepare_case(case, read_sources(case), settings).slices:
            pass


def _begin(client: Client, observer: Observer, num_cases: int) -> str:
    """Announce the work and return the topic on which workers send word of every case."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    observer.started(num_cases=num_cases, num_workers=len(workers), dashboard=client.dashboard_link)
    topic = f"cases-{uuid4()}"  # a scheduler may serve several preparations at once
    client.subscribe_topic(topic, lambda event: observer.case_done(event[1]))
    return topic


def _own(entries: Mapping[str, Any], shard: ShardPlan) -> dict[str, Any]:
    """Pick what concerns one shard, by case id: a task carries no more than it needs."""
    ids = (case.case_id for case in shard.cases)
    return {case_id: entries[case_id] for case_id in ids if case_id in entries}


def _make_shard_on_worker(
    plan: ShardPlan,
    *,
    recorded: str | None,
    faults: Mapping[str, Quarantined],
    donors: Mapping[str, Path],
    cache: Path,
    settings: Preprocessing,
    topic: str,
) -> ShardOutcome:
    tell = partial(get_worker().log_event, topic)
    return make_shard(plan, cache, settings, tell, recorded=recorded, faults=faults, donors=donors)


def _inspect_on_worker(cases: Sequence[Case], geometry: str, topic: str) -> list[CaseReport]:
    reports = []
    for case in cases:
        reports.append(inspect_case(case, geometry))
        get_worker().log_event(topic, case.case_id)
    return reports


def _remove_partials(cache: Path) -> None:
    """Remove what killed workers left behind."""
    for folder in SHARD_FOLDERS:
        for leftover in (cache / folder).rglob(f"shard-*{PARTIAL_SUFFIX}"):
            leftover.unlink()
    remove_partials(cache)


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
