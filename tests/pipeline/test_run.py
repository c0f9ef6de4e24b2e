"""The Dask graph: the same bytes with any number of workers, after any interruption."""

import errno
import fcntl
import gzip
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import dask
import h5py
import hdf5plugin  # noqa: F401  # registers LZ4 with plain h5py
import nibabel as nib
import numpy as np
import pytest
from distributed import Client, LocalCluster

import pipeline.cluster
from cache_schema.errors import InputError
from cache_schema.files import replacing
from cache_schema.manifest import read_manifest, to_json
from cache_schema.verify import verify_cache
from pipeline.cluster import SILENT, connect
from pipeline.cohorts import Case
from pipeline.journal import open_journal
from pipeline.plan import Plan, make_plan
from pipeline.run import inspect_cases, run_plan
from pipeline.scan import inspect_case

DEADLINE_S = 60


class Listener:
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.num_cases = self.num_workers = 0
        self.dashboard = ""
        self.cases: list[str] = []

    def started(self, *, num_cases: int, num_workers: int, dashboard: str) -> None:
        self.num_cases, self.num_workers, self.dashboard = num_cases, num_workers, dashboard

    def case_done(self, case_id: str) -> None:
        self.cases.append(case_id)


def all_bytes(cache: Path) -> dict[str, bytes]:
    """The whole cache without the log, which is the volatile part."""
    return {
        path.relative_to(cache).as_posix(): path.read_bytes()
        for path in cache.rglob("*")
        if path.is_file() and path.name != "prep.log.jsonl"
    }


def events(cache: Path) -> list[dict]:
    return [json.loads(line) for line in (cache / "prep.log.jsonl").read_text().splitlines()]


def with_case(plan: Plan, changed: Case) -> Plan:
    """The same plan with one case's files replaced; it counts as real, as all of the plan."""
    changed = replace(changed, is_synthetic=False)

    def renewed(cases: tuple[Case, ...]) -> tuple[Case, ...]:
        return tuple(changed if case.case_id == changed.case_id else case for case in cases)

    shards = tuple(replace(shard, cases=renewed(shard.cases)) for shard in plan.shards)
    return replace(plan, cases=renewed(plan.cases), shards=shards)


def with_file(case: Case, role: str, path: Path) -> Case:
    return replace(case, files={**case.files, role: path})


@pytest.fixture(scope="module")
def scheduler():
    """Address of a cluster of two workers that runs already."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def run(scheduler):
    """Carries out a plan on the running cluster."""

    def carried_out(plan: Plan, cache: Path, **options: object):
        return run_plan(plan, cache, Listener(), scheduler=scheduler, **options)

    return carried_out


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_does_not_change_a_byte(
    small_plan, small_cache, tmp_path, num_workers
):
    listener = Listener()
    result = run_plan(small_plan, tmp_path / "cache", listener, num_workers=num_workers)
    assert all_bytes(tmp_path / "cache") == all_bytes(small_cache)
    assert result.manifest == read_manifest(small_cache)
    assert (result.num_reused, result.removed) == (0, ())
    assert (listener.num_cases, listener.num_workers) == (16, num_workers)
    assert listener.dashboard.startswith("http://127.0.0.1:")
    told = listener.cases  # the last words may be lost with the connection
    assert set(told) <= {case.case_id for case in small_plan.cases}
    assert len(told) == len(set(told))


def test_the_environment_of_workers_is_not_left_behind(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with connect(1, None) as client:
        assert list(client.run(os.getenv, "OMP_NUM_THREADS").values()) == ["1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_there_are_as_many_workers_as_usable_cores(small_plan, monkeypatch):
    monkeypatch.setattr("pipeline.cluster.usable_cores", lambda: 3)
    listener = Listener()
    inspect_cases(small_plan.cases[:1], "any", listener)
    assert listener.num_workers == 3


def test_a_cluster_that_runs_already_writes_the_same(run, small_plan, small_cache, tmp_path):
    run(small_plan, tmp_path)
    assert all_bytes(tmp_path) == all_bytes(small_cache)
    assert verify_cache(tmp_path, deep=True) == []


def test_a_second_run_keeps_every_shard(run, small_plan, cache_copy):
    before = all_bytes(cache_copy)
    times = {path: path.stat().st_mtime_ns for path in cache_copy.rglob("*.h5")}
    result = run(small_plan, cache_copy)
    assert result.num_reused == len(small_plan.shards)
    assert result.removed == ()
    assert all_bytes(cache_copy) == before
    assert {path: path.stat().st_mtime_ns for path in cache_copy.rglob("*.h5")} == times


def test_one_changed_source_file_redoes_only_its_shard(run, small_plan, cache_copy, tmp_path):
    case = small_plan.shards[1].cases[2]
    image = nib.load(case.files["t1"])
    voxels = np.asarray(image.dataobj) * 2
    (tmp_path / "t1.nii").write_bytes(nib.Nifti1Image(voxels, image.affine).to_bytes())
    before = all_bytes(cache_copy)
    plan = with_case(small_plan, with_file(case, "t1", tmp_path / "t1.nii"))
    result = run(plan, cache_copy)
    after = all_bytes(cache_copy)
    assert result.num_reused == len(small_plan.shards) - 1
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {small_plan.shards[1].path, "manifest.json"}


def test_a_damaged_case_is_quarantined_and_the_rest_go_on(run, small_plan, tmp_path):
    case = small_plan.shards[0].cases[1]
    content = case.files["flair"].read_bytes()
    (tmp_path / "flair.nii.gz").write_bytes(content[: len(content) // 2])
    cache = tmp_path / "cache"
    result = run(with_case(small_plan, with_file(case, "flair", tmp_path / "flair.nii.gz")), cache)
    (entry,) = result.manifest.quarantined
    assert entry.case_id == case.case_id
    assert "flair" in entry.reason
    assert len(result.manifest.cases) == 15
    assert verify_cache(cache, deep=True) == []
    told = [event["case_id"] for event in events(cache) if event["event"] == "quarantined"]
    assert told == [case.case_id]


def test_a_cache_of_quarantined_cases_alone_is_refused(run, small_plan, tmp_path):
    settings = replace(small_plan.preprocessing, geometry="brats")
    with pytest.raises(InputError, match=r"every case was quarantined .*--geometry any"):
        run(replace(small_plan, preprocessing=settings), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_task_that_breaks_quarantines_its_cases_with_the_error(run, small_plan, tmp_path):
    settings = replace(small_plan.preprocessing, normalize="nonsense")
    with pytest.raises(InputError, match="KeyError: 'nonsense'"):
        run(replace(small_plan, preprocessing=settings), tmp_path)
    quarantined = [event for event in events(tmp_path) if event["event"] == "quarantined"]
    assert len(quarantined) == 16
    assert list(tmp_path.rglob("shard-*")) == []


def test_a_cache_that_is_being_written_is_locked(small_plan, cache_copy):
    before = all_bytes(cache_copy)
    with (cache_copy / "prep.log.jsonl").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another `prep partition` writes to"):
            run_plan(small_plan, cache_copy, Listener(), num_workers=1)
    assert all_bytes(cache_copy) == before


def test_stale_shards_of_an_earlier_partition_are_removed_and_named(
    run, small_options, small_tree, small_plan, cache_copy
):
    before = {shard.path for shard in small_plan.shards}
    options = small_options.model_copy(update={"clients": 1, "shard_cases": 16})
    result = run(make_plan([small_tree], options), cache_copy, replace=True)
    kept = {
        "clients/client-00/shard-000.h5",
        *(path for path in before if path.startswith("test/")),
    }
    assert result.removed == tuple(sorted(before - kept))
    assert len(result.removed) >= 2
    assert verify_cache(cache_copy, deep=True) == []
    # The test set is the same: only the training shard is new.
    assert result.num_reused == 3


def without(plan: Plan, case_id: str) -> Plan:
    """The plan of the same options over archives that lack a case."""
    shards = tuple(
        replace(shard, cases=tuple(case for case in shard.cases if case.case_id != case_id))
        for shard in plan.shards
    )
    return replace(plan, cases=tuple(c for c in plan.cases if c.case_id != case_id), shards=shards)


def with_options(plan: Plan, **changed: object) -> Plan:
    return replace(plan, options=plan.options.model_copy(update=changed))


OTHER_REQUESTS = [
    (lambda plan: with_options(plan, alpha=2.0), r"\(--alpha 2\.0 instead of 1\.0\)"),
    (
        lambda plan: with_options(plan, seed=7, bias_correct=True),
        r"\(--seed 7 instead of 0; --bias-correct instead of --no-bias-correct\)",
    ),
    (lambda plan: without(plan, plan.cases[3].case_id), r"\(1 case gone: BraTS19_TCIA02_102_1\)"),
]


@pytest.mark.parametrize(("change", "differences"), OTHER_REQUESTS)
def test_a_finished_cache_is_not_replaced_unasked(small_plan, cache_copy, change, differences):
    before = all_bytes(cache_copy)
    with pytest.raises(InputError, match=rf"{differences}; .*--replace"):
        run_plan(change(small_plan), cache_copy, Listener(), scheduler="tcp://nobody")
    assert all_bytes(cache_copy) == before


@pytest.mark.parametrize(("change", "differences"), OTHER_REQUESTS)
def test_an_interrupted_cache_is_not_replaced_unasked(
    run, small_plan, tmp_path, change, differences
):
    run(small_plan, tmp_path)
    (tmp_path / "manifest.json").unlink()
    before = all_bytes(tmp_path)
    with pytest.raises(InputError, match=differences):
        run_plan(change(small_plan), tmp_path, Listener(), scheduler="tcp://nobody")
    assert all_bytes(tmp_path) == before
    assert run(small_plan, tmp_path).num_reused == len(small_plan.shards)


def test_after_a_replacement_its_command_goes_on_and_the_one_of_before_is_refused(
    run, small_plan, cache_copy
):
    other = without(small_plan, small_plan.cases[3].case_id)
    run(other, cache_copy, replace=True)
    (cache_copy / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"\(1 case new: BraTS19_TCIA02_102_1\)"):
        run(small_plan, cache_copy)
    assert run(other, cache_copy).num_reused == len(other.shards)


def test_a_log_of_an_earlier_release_is_held_to_its_options_alone(small_plan, cache_copy):
    (cache_copy / "manifest.json").unlink()
    old = small_plan.options.model_dump()
    del old["duplicates"]  # an option that came later
    with open_journal(cache_copy) as journal:
        journal.record("started", shards=8, options=old)
        assert journal.last_request().cases is None
    with pytest.raises(InputError, match=r"\(--clients 3 instead of 2\)"):
        run_plan(
            with_options(without(small_plan, small_plan.cases[0].case_id), clients=3),
            cache_copy,
            Listener(),
            scheduler="tcp://nobody",
        )


@pytest.mark.parametrize("damage", ["{", '{"schema_version": 7}'])
def test_a_manifest_that_cannot_be_read_is_not_replaced_unasked(
    run, small_plan, cache_copy, damage
):
    (cache_copy / "manifest.json").write_text(damage)
    with pytest.raises(InputError, match=r"manifest\.json .*--replace"):
        run(small_plan, cache_copy)
    assert (cache_copy / "manifest.json").read_text() == damage
    run(small_plan, cache_copy, replace=True)
    assert verify_cache(cache_copy, deep=True) == []


def test_a_case_that_was_quarantined_and_mended_needs_no_replacement(run, small_plan, tmp_path):
    case = small_plan.shards[0].cases[1]
    (tmp_path / "flair.nii.gz").write_bytes(b"")
    cache = tmp_path / "cache"
    damaged = with_case(small_plan, with_file(case, "flair", tmp_path / "flair.nii.gz"))
    assert len(run(damaged, cache).manifest.quarantined) == 1
    assert run(small_plan, cache).manifest.quarantined == ()


def test_a_run_that_could_read_no_case_does_not_stand_in_the_way(run, small_plan, tmp_path):
    options = small_plan.options.model_copy(update={"geometry": "brats"})
    settings = replace(small_plan.preprocessing, geometry="brats")
    with pytest.raises(InputError, match="every case was quarantined"):
        run(replace(small_plan, options=options, preprocessing=settings), tmp_path)
    assert len(run(small_plan, tmp_path).manifest.cases) == 16


def test_a_cache_that_cannot_be_written_is_refused_by_option(small_plan, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match=r"--cache .*notes/cache cannot be written \(Not a dir"):
        run_plan(small_plan, tmp_path / "notes" / "cache", Listener(), scheduler="tcp://nobody")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524])
def test_a_file_system_without_locks_is_told_of_and_written_to(
    run, small_plan, small_cache, tmp_path, monkeypatch, number
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cache_schema.locks.fcntl.flock", refuse)
    told: list[str] = []
    run(small_plan, tmp_path, warn=told.append)
    (line,) = told
    assert re.fullmatch(rf"{tmp_path} .* nothing keeps a second `prep partition` out", line)
    assert all_bytes(tmp_path) == all_bytes(small_cache)


def test_a_guarded_cache_is_not_remarked_on(run, small_plan, cache_copy):
    told: list[str] = []
    run(small_plan, cache_copy, warn=told.append)
    assert told == []


def test_files_that_are_not_ours_are_left_alone(run, small_plan, cache_copy):
    (cache_copy / "notes.h5").write_text("mine")
    (cache_copy / "clients" / "client-00" / "notes.partial").write_text("mine")
    run(small_plan, cache_copy)
    assert (cache_copy / "notes.h5").read_text() == "mine"
    assert (cache_copy / "clients" / "client-00" / "notes.partial").read_text() == "mine"


@pytest.mark.parametrize("name", ["clients", "test", "clients/client-07", "test/brats2018"])
def test_a_folder_that_leads_out_of_the_cache_is_refused_and_nothing_there_is_removed(
    name, small_plan, cache_copy, tmp_path
):
    outside = tmp_path / "outside"
    for folder in ("", "client-09", "brats2018"):
        (outside / folder).mkdir(exist_ok=True)
        (outside / folder / "shard-999.h5").write_text("mine")
        (outside / folder / "shard-000.h5.1.partial").write_text("mine")
    before = all_bytes(outside)
    if (cache_copy / name).exists():
        (cache_copy / name).rename(tmp_path / "put aside")
    (cache_copy / name).symlink_to(outside)
    with pytest.raises(InputError, match=f"{name} is a link"):
        run_plan(small_plan, cache_copy, Listener(), scheduler="tcp://nobody")
    assert all_bytes(outside) == before


@pytest.mark.parametrize(
    "name", ["manifest.json", "prep.log.jsonl", "clients/client-00/shard-000.h5"]
)
def test_a_file_that_leads_out_of_the_cache_is_refused_and_left_as_it_is(
    name, small_plan, cache_copy, tmp_path
):
    (cache_copy / name).unlink(missing_ok=True)
    (tmp_path / "victim").write_text("mine")
    (cache_copy / name).symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=f"{name} is a link"):
        run_plan(small_plan, cache_copy, Listener(), scheduler="tcp://nobody", replace=True)
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_cache_that_is_itself_a_link_is_the_users_own(run, small_plan, small_cache, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to("disk")
    run(small_plan, tmp_path / "cache")
    assert all_bytes(tmp_path / "disk") == all_bytes(small_cache)


def test_lines_of_the_log_that_are_no_records_are_passed_over_and_told_of_once(
    run, small_plan, small_cache, cache_copy
):
    with open_journal(cache_copy) as journal:
        journal.record("shard", path="a.h5", sha256="a")
    with (cache_copy / "prep.log.jsonl").open("ab") as file:
        file.write(b"\xff\n123\n{}\n")
    told: list[str] = []
    result = run(small_plan, cache_copy, warn=told.append)
    assert result.num_reused == len(small_plan.shards)
    assert all_bytes(cache_copy) == all_bytes(small_cache)
    log = cache_copy / "prep.log.jsonl"
    assert len(told) == 1
    assert told[0].startswith(f"{log} has 3 line(s) that are no records, first line 2")


@pytest.mark.parametrize("kind", ["pipe", "bomb", "sparse"])
def test_a_file_that_no_scan_is_quarantines_its_case_with_a_line(kind, run, small_plan, tmp_path):
    path = tmp_path / "t1.nii.gz"
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).to_bytes()[:352]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "bomb":
        path.write_bytes(gzip.compress(header + bytes(10**8), 1))
    else:
        path.write_bytes(header)
        os.truncate(path, 50 * 10**9)
    case = small_plan.shards[0].cases[1]
    manifest = run(with_case(small_plan, with_file(case, "t1", path)), tmp_path / "cache").manifest
    (lost,) = manifest.quarantined
    expected = {"pipe": "it is a pipe", "bomb": "it holds more than", "sparse": "it is larger than"}
    assert lost.case_id == case.case_id
    assert expected[kind] in lost.reason
    assert not lost.reason.startswith("KilledWorker")


def as_version_1(cache):
    """Makes a cache's manifest that of an earlier release, which did not say what is synthetic."""
    manifest = read_manifest(cache)
    cases = tuple(case.model_copy(update={"synthetic": None}) for case in manifest.cases)
    changed = {"schema_version": 1, "synthetic": None, "cases": cases}
    text = to_json(manifest.model_copy(update=changed))
    (cache / "manifest.json").write_text(text, "utf-8")


def test_shards_of_a_cache_of_version_1_are_kept_and_its_manifest_becomes_version_2(
    run, small_plan, cache_copy
):
    before = all_bytes(cache_copy)
    as_version_1(cache_copy)
    assert '"synthetic"' not in (cache_copy / "manifest.json").read_text("utf-8")
    assert verify_cache(cache_copy) == []
    killed = replacing(cache_copy / "manifest.json")
    killed.__enter__().write_text("half")
    warnings: list[str] = []
    result = run(small_plan, cache_copy, warn=warnings.append)
    assert result.num_reused == len(small_plan.shards)
    assert all_bytes(cache_copy) == before
    (warning,) = warnings
    assert "of an earlier version and is written anew; runs that were trained on" in warning


def test_slices_of_a_cache_of_version_1_are_reused(run, small_plan, cache_copy, tmp_path):
    as_version_1(cache_copy)
    result = run(small_plan, tmp_path / "new", reuse=cache_copy)
    assert result.manifest.schema_version == 2
    assert verify_cache(tmp_path / "new", deep=True) == []


def test_an_interrupted_run_is_completed_to_the_same_bytes(run, small_plan, cache_copy):
    before = all_bytes(cache_copy)
    with open_journal(cache_copy) as journal:
        for entry in read_manifest(cache_copy).shards:
            journal.record("shard", path=entry.path, sha256=entry.sha256)
    (cache_copy / "manifest.json").unlink()
    first, second = (cache_copy / shard.path for shard in small_plan.shards[:2])
    first.rename(first.with_name("shard-000.h5.4711.partial"))
    second.unlink()
    result = run(small_plan, cache_copy)
    assert all_bytes(cache_copy) == before
    assert result.num_reused == len(small_plan.shards) - 2


def test_the_manifest_of_before_is_gone_while_shards_change(scheduler, small_plan, cache_copy):
    class Watch(Listener):
        had_manifest = True

        def started(self, **fields) -> None:
            super().started(**fields)
            Watch.had_manifest = (cache_copy / "manifest.json").exists()

    run_plan(small_plan, cache_copy, Watch(), scheduler=scheduler)
    assert not Watch.had_manifest
    assert (cache_copy / "manifest.json").exists()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class HeldPath(type(Path())):
    """The path of a file that nobody gets to read before another one with `.go` behind its name is there."""

    def stat(self, **options):
        Path(f"{self}.asked").touch()
        while not os.path.exists(f"{self}.go"):  # noqa: PTH110  # a path would ask itself
            time.sleep(0.01)
        return os.stat(self, **options)  # noqa: PTH116


HeldPath.__module__ = "__main__"  # so that it is sent whole to workers, which lack this file


@pytest.fixture(scope="module")
def after_kill(small_plan, scheduler, tmp_path_factory):
    """A cache whose first worker was killed in the middle of its first shard."""
    folder = tmp_path_factory.mktemp("killed")
    cache, held = folder / "cache", HeldPath(folder / "t1.nii.gz")
    case = small_plan.shards[0].cases[2]
    shutil.copy(case.files["t1"], held)
    plan = with_case(small_plan, with_file(case, "t1", held))
    with ThreadPoolExecutor(1) as pool:
        preparation = pool.submit(run_plan, plan, cache, Listener(), scheduler=scheduler)
        wait_until(Path(f"{held}.asked").exists)
        (partial,) = (cache / small_plan.shards[0].path).parent.glob("shard-000.h5.*.partial")
        os.kill(int(partial.name.split(".")[2]), signal.SIGKILL)
        Path(f"{held}.go").touch()
        preparation.result(DEADLINE_S)
    return cache


def test_a_killed_workers_shard_is_done_again_elsewhere(after_kill, small_cache):
    expected = all_bytes(small_cache)
    found = all_bytes(after_kill)
    assert {path: found.get(path) for path in expected} == expected


def test_a_killed_worker_leaves_no_temporary_file(after_kill):
    assert verify_cache(after_kill) == []


def test_a_worker_that_dies_after_its_shards_were_told_of_has_none_made_again(
    scheduler, small_plan, tmp_path
):
    cache, held = tmp_path / "cache", HeldPath(tmp_path / "t1.nii.gz")
    last = max(small_plan.shards, key=lambda shard: len(shard.cases))
    case = last.cases[-1]
    shutil.copy(case.files["t1"], held)
    plan = with_case(small_plan, with_file(case, "t1", held))
    others = {cache / shard.path for shard in small_plan.shards if shard.path != last.path}
    with ThreadPoolExecutor(1) as pool, Client(scheduler) as client:
        preparation = pool.submit(run_plan, plan, cache, Listener(), scheduler=scheduler)
        wait_until(Path(f"{held}.asked").exists)
        wait_until(lambda: len(events(cache)) == 1 + len(others))
        (partial,) = cache.rglob("shard-*.partial")
        written = {path: path.stat().st_mtime_ns for path in others}
        (victim,) = set(client.run(os.getpid).values()) - {int(partial.name.split(".")[2])}
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in client.run(os.getpid, on_error="return").values())
        client.wait_for_workers(2, timeout=DEADLINE_S)
        # What the dead worker had to do again would come before this.
        client.submit(os.getpid, pure=False).result(DEADLINE_S)
        Path(f"{held}.go").touch()
        preparation.result(DEADLINE_S)
    assert {path: path.stat().st_mtime_ns for path in others} == written
    assert verify_cache(cache, deep=True) == []


def test_without_workers_a_preparation_ends_with_a_line_and_goes_on_when_there_are_some(
    small_plan, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.run.CHECK_S", 0.2)
    monkeypatch.setattr("pipeline.run.WITHOUT_WORKERS_S", 1.0)
    cluster = LocalCluster(
        n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster.scheduler_address) as client:
        monkeypatch.setattr("pipeline.run.connect", lambda *_: nullcontext(client))
        with pytest.raises(InputError, match=r"no worker has been there for 1 s; .*same command"):
            run_plan(small_plan, tmp_path, Listener())
        cluster.scale(1)
        client.wait_for_workers(1, timeout=DEADLINE_S)
        run_plan(small_plan, tmp_path, Listener())
    assert verify_cache(tmp_path, deep=True) == []


@contextmanager
def unforgiving_cluster(**options: object) -> Iterator[str]:
    """The address of a cluster of one worker, which gives a task up once the worker has died of it."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            **options,
        ) as cluster,
    ):
        yield cluster.scheduler_address


class DeadlyPath(type(Path())):
    """Kills every process that is sent it, but this one, which schedules."""

    def __reduce__(self):
        here = f"__import__('os').getpid() == {os.getpid()}"
        same = f"__import__('sys').modules[{__name__!r}].DeadlyPath({str(self)!r})"
        return eval, (f"{same} if {here} else __import__('os').kill(__import__('os').getpid(), 9)",)


@pytest.fixture(scope="module")
def deadly_run(small_plan, tmp_path_factory):
    """A run with a case that kills every worker which gets it, on a cluster that forgives no death."""
    folder = tmp_path_factory.mktemp("deadly")
    case = small_plan.shards[0].cases[2]
    plan = with_case(small_plan, with_file(case, "t1", DeadlyPath(folder / "t1.nii.gz")))
    with unforgiving_cluster() as address:
        result = run_plan(plan, folder / "cache", Listener(), scheduler=address)
    return case, result, folder / "cache"


def test_a_case_that_kills_its_worker_is_quarantined_alone(deadly_run, small_plan):
    case, result, cache = deadly_run
    (lost,) = result.manifest.quarantined
    assert lost.case_id == case.case_id
    assert lost.reason.startswith("KilledWorker")
    planned = {c.case_id for shard in small_plan.shards for c in shard.cases}
    assert {c.case_id for c in result.manifest.cases} == planned - {case.case_id}
    assert verify_cache(cache, deep=True) == []


def test_a_case_that_bursts_the_memory_of_a_worker_is_quarantined_alone(small_plan, tmp_path):
    # As large as a scan may be: 0.6 MB on disk, 1.3 GB in memory; the nanny of the worker ends it.
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4))
    image.header.set_data_shape((512, 512, 512))
    image.header.set_slope_inter(2.0, 1.0)
    with gzip.open(tmp_path / "t1.nii.gz", "wb", 1) as file:
        file.write(image.header.binaryblock + bytes(4))
        for _ in range(512):
            file.write(bytes(2 * 512 * 512))
    case = small_plan.shards[0].cases[1]
    plan = with_case(small_plan, with_file(case, "t1", tmp_path / "t1.nii.gz"))
    with unforgiving_cluster(memory_limit="700MB", silence_logs=SILENT) as address:
        result = run_plan(plan, tmp_path / "cache", Listener(), scheduler=address)
    (lost,) = result.manifest.quarantined
    assert lost.case_id == case.case_id
    assert lost.reason.startswith("KilledWorker")
    assert verify_cache(tmp_path / "cache", deep=True) == []


def test_a_scheduler_without_workers_is_refused(small_plan, tmp_path, monkeypatch):
    honest = Client.wait_for_workers
    monkeypatch.setattr(
        Client, "wait_for_workers", lambda client, count, **_: honest(client, count, timeout=1)
    )
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(InputError, match=r"has no workers; start some with `dask worker tcp://127"),
    ):
        run_plan(small_plan, tmp_path, Listener(), scheduler=cluster.scheduler_address)


def test_workers_of_another_release_are_refused(scheduler, small_plan, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.cluster, "PREPROCESSING_VERSION", 99)
    with pytest.raises(InputError, match=r"tcp://127\.0\.0\.1:\d+ has another release"):
        run_plan(small_plan, tmp_path, Listener(), scheduler=scheduler)
    assert list(tmp_path.glob("**/*.h5")) == []


def test_workers_that_cannot_import_the_package_are_refused(
    scheduler, small_plan, tmp_path, monkeypatch
):
    def fail(*_: object) -> None:
        raise Exception("No module named 'pipeline'")  # noqa: TRY002  # as Dask does

    monkeypatch.setattr(Client, "run", fail)
    with pytest.raises(InputError, match=r"cannot run this package \(No module named 'pipeline'\)"):
        run_plan(small_plan, tmp_path, Listener(), scheduler=scheduler)


def test_workers_that_do_not_see_the_cache_are_refused(scheduler, tmp_path):
    with (
        pytest.raises(InputError, match=f"does not see {tmp_path / 'elsewhere'}; its workers"),
        connect(None, scheduler, tmp_path / "elsewhere"),
    ):
        pass


def test_an_address_that_is_none_is_refused_by_option(small_plan, tmp_path):
    with pytest.raises(InputError, match="--scheduler nonsense://here cannot be reached"):
        run_plan(small_plan, tmp_path, Listener(), scheduler="nonsense://here")


def test_the_log_tells_what_happened_when(run, small_plan, tmp_path):
    run(small_plan, tmp_path)
    run(small_plan, tmp_path)
    log = events(tmp_path)
    names = [event["event"] for event in log if event["event"] != "known"]
    once = ["started", *["shard"] * len(small_plan.shards), "finished"]
    assert names == once * 2
    assert log[-1]["reused"] == len(small_plan.shards)
    assert {event["path"] for event in log if event["event"] == "shard"} == {
        shard.path for shard in small_plan.shards
    }
    times = [event["time"] for event in log]
    assert times == sorted(times)


def test_a_scan_on_a_cluster_says_what_reading_says_and_in_the_order_of_cases(small_plan, tmp_path):
    case = small_plan.cases[9]
    (tmp_path / "t2.nii.gz").write_bytes(case.files["t2"].read_bytes()[:99])
    cases = [*small_plan.cases[:9], with_file(case, "t2", tmp_path / "t2.nii.gz")]
    cases += small_plan.cases[10:]
    listener = Listener()
    reports = inspect_cases(cases[::-1], "any", listener, num_workers=1)
    assert reports == [inspect_case(case, "any") for case in cases[::-1]]
    assert reports[6].faults[0].startswith("t2 is not a readable")
    assert (listener.num_cases, listener.num_workers) == (16, 1)


@pytest.fixture(scope="module")
def real_cache(real_data, small_options, scheduler, tmp_path_factory):
    """The six real scans on three clients, which lack T1CE and T2."""
    options = small_options.model_copy(
        update={"clients": 3, "missing": "zero", "geometry": "brats", "test_fraction": 0.2}
    )
    plan = make_plan([real_data], options)
    cache = tmp_path_factory.mktemp("real")
    return plan, cache, run_plan(plan, cache, Listener(), scheduler=scheduler).manifest


def test_real_scans_are_stored_as_plain_zscores(real_cache):
    plan, cache, manifest = real_cache
    assert (len(manifest.cases), manifest.plane) == (6, (240, 240))
    assert manifest.quarantined == ()
    files = {case.case_id: case.files for case in plan.cases}
    for shard in manifest.shards:
        with h5py.File(cache / shard.path) as file:
            for number, case_id in enumerate(file["cases/case_id"].asstr()[:]):
                rows = slice(file["cases/first_row"][number], file["cases/stop_row"][number])
                check_real_case(file, rows, file["cases/affine"][number], files[case_id])


def check_real_case(file, rows: slice, affine: np.ndarray, files: dict) -> None:
    """Hold one stored case against what nibabel and numpy make of its files."""
    planes = file["z"][rows]
    seg = nib.load(files["seg"])
    np.testing.assert_array_equal(affine, seg.affine)
    labels = np.asarray(seg.dataobj)
    np.testing.assert_array_equal(file["label"][rows].transpose(1, 2, 0), labels[:, :, planes])
    assert not np.delete(labels, planes, axis=2).any()
    images = file["image"][rows]
    for channel, name in ((0, "t1"), (3, "flair")):
        image = np.asarray(nib.load(files[name]).dataobj, np.float64)
        brain = image != 0
        image[brain] = (image[brain] - image[brain].mean()) / image[brain].std()
        stored = images[:, channel].transpose(1, 2, 0)
        assert not np.delete(brain, planes, axis=2).any()
        assert not stored[~brain[:, :, planes]].any()
        np.testing.assert_array_equal(stored, image[:, :, planes].astype(np.float16))
    assert not images[:, 1:3].any()


def test_real_scans_lack_two_modalities_and_that_is_recorded(real_cache):
    _, cache, manifest = real_cache
    assert {case.present for case in manifest.cases} == {(True, False, False, True)}
    assert {case.site for case in manifest.cases} == {"DVN"}
    assert verify_cache(cache, deep=True) == []
