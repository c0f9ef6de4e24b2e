"""The real command, killed, interrupted and repeated: the finished cache is always the same bytes.

Moments to kill at are drawn from a seed and counted in progress, not in seconds, so that they mean the
same on a slow machine. `FEDUNETMM_SLOW=1` tries ten of them instead of four.
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest

from pipeline.phantom.archives import write_phantom

ROOT = Path(__file__).parents[2]
SHAPE = (24, 20, 16)
DEADLINE_S = 60
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
PREP = (sys.executable, "-c", "import cli; cli.run_prep()")
NUM_MOMENTS = 10 if os.environ.get("FEDUNETMM_SLOW") else 4


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    """Ten people in 8, 9 and 10 cases."""
    root = tmp_path_factory.mktemp("archives") / "data"
    write_phantom(root, num_patients=10, shape=SHAPE)
    return root


def partition(archives: Path, cache: Path, *options: object) -> list[str]:
    """The command whose repetition must always give the same cache: one shard a case."""
    size = ("--clients", 3, "--geometry", "any", "--shard-cases", 1, "--workers", 2)
    return [*PREP, *map(str, ("partition", archives, "--cache", cache, *size, *options))]


def finish(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * DEADLINE_S,
    )


@pytest.fixture(scope="module")
def undisturbed(archives, tmp_path_factory) -> Path:
    """A cache that was made in peace; never written to again."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    result = finish(partition(archives, cache))
    assert (result.returncode, result.stderr) == (0, "")
    assert len(shards(cache)) == 27
    return cache


def slowly(archives: Path, cache: Path, *options: object) -> list[str]:
    """The command for one cohort of eight cases that take a third of a second each.

    What must happen before the end then happens before the end.
    """
    (cohort,) = archives.glob("*2018*")
    return partition(cohort, cache, "--bias-correct", *options)


@pytest.fixture(scope="module")
def undisturbed_slowly(archives, tmp_path_factory) -> Path:
    cache = tmp_path_factory.mktemp("slowly") / "cache"
    assert finish(slowly(archives, cache)).returncode == 0
    assert len(shards(cache)) == 8
    return cache


@pytest.fixture
def cache_copy(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "cache"))


def contents(cache: Path) -> dict[str, bytes]:
    """The whole cache without the log, which is the volatile part."""
    return {
        path.relative_to(cache).as_posix(): path.read_bytes()
        for path in cache.rglob("*")
        if path.is_file() and path.name != "prep.log.jsonl"
    }


def shards(cache: Path) -> dict[str, tuple[int, int]]:
    """Tell every shard from one that was written again: inode, which may be used anew, and time."""
    return {
        path.relative_to(cache).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in cache.rglob("*.h5")
    }


def events(cache: Path) -> list[dict[str, Any]]:
    """What the log tells so far; a line that is being written is not told yet."""
    try:
        lines = (cache / "prep.log.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def num_shards_done(cache: Path) -> int:
    return sum(event["event"] == "shard" for event in events(cache))


def is_alive(process: psutil.Process) -> bool:
    # A process whose parent was killed may stay a zombie where nobody collects orphans.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], *, pause_s: float = 0.001) -> bool:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


class Preparation:
    """A `prep partition` that runs, with everything that it started."""

    def __init__(self, command: list[str], output: Path) -> None:
        self.stdout, self.stderr = output / "stdout.txt", output / "stderr.txt"
        with self.stdout.open("w") as out, self.stderr.open("w") as err:
            # A session of its own: what a terminal would signal is then this preparation alone.
            # Where the tests themselves run in a shell's background, Ctrl-C would be ignored.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            self.main = psutil.Popen(
                command, env=ENVIRONMENT, stdout=out, stderr=err, start_new_session=True
            )
            signal.signal(signal.SIGINT, before)
        self.children: set[psutil.Process] = set()

    def is_running(self) -> bool:
        return self.main.poll() is None

    def look_for_children(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self.children.update(self.main.children(recursive=True))

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes; multiprocessing's resource tracker is none."""
        self.look_for_children()
        return sorted((c for c in self.children if is_worker(c)), key=lambda c: c.pid)

    def kill(self) -> None:
        self.look_for_children()
        self.main.kill()
        self.main.wait(DEADLINE_S)

    def wait(self) -> int:
        return int(self.main.wait(5 * DEADLINE_S))


def is_worker(process: psutil.Process) -> bool:
    try:
        return is_alive(process) and "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@contextmanager
def started(command: list[str], output: Path) -> Iterator[Preparation]:
    """Start a preparation and leave nothing of it behind, whatever happens."""
    preparation = Preparation(command, output)
    try:
        yield preparation
    finally:
        preparation.look_for_children()
        for process in (preparation.main, *preparation.children):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        preparation.main.wait(DEADLINE_S)


def draw_moment(number: int) -> tuple[str, int, float]:
    """Draw when to kill: what has been reached, how often, and a moment of delay after it.

    A third of the moments lie where nothing is written yet or a shard is half written; the others
    are spread over the shards.
    """
    random = np.random.default_rng([2020, number])
    sight = ("partial", "shard", "shard", "begin")[number % 4]
    count = 1 + int(random.integers(18)) if sight == "shard" else 1
    return sight, count, float(random.uniform(0, 0.03))


def reached(cache: Path, sight: str, count: int) -> bool:
    if sight == "shard":
        return num_shards_done(cache) >= count
    if sight == "partial":
        return any(cache.rglob("shard-*.partial"))
    return (cache / "prep.log.jsonl").exists()  # workers are only being started


@pytest.mark.parametrize("number", range(NUM_MOMENTS))
def test_a_main_process_killed_at_any_moment_leaves_what_the_same_command_completes(
    number, archives, undisturbed, tmp_path
):
    sight, count, delay_s = draw_moment(number)
    cache = tmp_path / "cache"
    with started(partition(archives, cache), tmp_path) as preparation:
        assert wait_until(lambda: reached(cache, sight, count) or not preparation.is_running()), (
            preparation.stderr.read_text()
        )
        time.sleep(delay_s)
        preparation.kill()
        assert preparation.main.returncode == -signal.SIGKILL, "it was done before it was killed"
        assert not (cache / "manifest.json").exists()
        orphans = preparation.children
        assert wait_until(lambda: not any(map(is_alive, orphans)), pause_s=0.05)
    finished = num_shards_done(cache)
    result = finish(partition(archives, cache))
    assert (result.returncode, result.stderr) == (0, "")
    assert contents(cache) == contents(undisturbed)
    assert events(cache)[-1]["reused"] == finished >= (count if sight == "shard" else 0)


def test_a_command_that_is_killed_again_and_again_gets_done(archives, undisturbed, tmp_path):
    cache = tmp_path / "cache"
    random = np.random.default_rng(355)
    for _ in range(2):
        goal = int(random.integers(3, 9))
        seen = len(events(cache))
        with started(partition(archives, cache), tmp_path) as preparation:
            wait_until(
                lambda seen=seen, goal=goal, running=preparation.is_running: (
                    sum(event["event"] == "shard" for event in events(cache)[seen:]) >= goal
                    or not running()
                )
            )
            preparation.kill()
            assert preparation.main.returncode == -signal.SIGKILL
    # Nobody waits here for orphans: the command may follow at once.
    result = finish(partition(archives, cache))
    assert (result.returncode, result.stderr) == (0, "")
    assert contents(cache) == contents(undisturbed)


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process takes connections."""
    with suppress(psutil.NoSuchProcess):
        return {
            connection.laddr.ip
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
    return set()


@pytest.mark.parametrize("number", range(NUM_MOMENTS // 2))
def test_a_worker_killed_at_any_moment_changes_nothing(number, archives, undisturbed, tmp_path):
    random = np.random.default_rng([335, number])
    goal = int(random.integers(1, 15))
    cache = tmp_path / "cache"
    with started(partition(archives, cache), tmp_path) as preparation:
        assert wait_until(lambda: num_shards_done(cache) >= goal or not preparation.is_running())
        workers = preparation.workers
        addresses = set().union(*map(listening, (preparation.main, *workers)))
        workers[int(random.integers(len(workers)))].kill()
        assert preparation.wait() == 0, preparation.stderr.read_text()
    assert addresses == {"127.0.0.1"}
    assert contents(cache) == contents(undisturbed)


def interrupt_main(preparation: Preparation) -> None:
    preparation.main.send_signal(signal.SIGINT)


def interrupt_all(preparation: Preparation) -> None:
    """Do what a terminal does on Ctrl-C: signal the workers too."""
    os.killpg(preparation.main.pid, signal.SIGINT)


@pytest.mark.parametrize("interrupt", [interrupt_main, interrupt_all])
def test_ctrl_c_exits_with_1_and_one_line_and_the_next_run_goes_on(
    interrupt, archives, undisturbed_slowly, tmp_path
):
    cache = tmp_path / "cache"
    with started(slowly(archives, cache), tmp_path) as preparation:
        assert wait_until(lambda: num_shards_done(cache) >= 3 or not preparation.is_running())
        preparation.look_for_children()
        interrupt(preparation)
        assert preparation.wait() == 1
        told = preparation.stderr.read_text()
        # On a busy machine a library may still get a word in; a traceback it must never be.
        assert told.endswith("interrupted; the same command goes on from what is finished\n")
        assert "Traceback" not in told
        orphans = preparation.children
        assert wait_until(lambda: not any(map(is_alive, orphans)), pause_s=0.05)
    assert not (cache / "manifest.json").exists()
    finished = num_shards_done(cache)
    result = finish(slowly(archives, cache))
    assert (result.returncode, result.stderr) == (0, "")
    assert events(cache)[-1]["reused"] == finished >= 3
    assert contents(cache) == contents(undisturbed_slowly)


def brighten(path: Path) -> None:
    image = nib.load(path)
    voxels = np.asarray(image.dataobj) * 2
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, image.affine).to_bytes()))


def test_one_changed_source_file_redoes_one_shard(archives, cache_copy, tmp_path):
    moved = Path(shutil.copytree(archives, tmp_path / "elsewhere"))
    (path,) = moved.rglob("BraTS20_Training_004_t2.nii.gz")
    brighten(path)
    before, kept = contents(cache_copy), shards(cache_copy)
    cases = json.loads(before["manifest.json"])["cases"]
    (concerned,) = (case["shard"] for case in cases if case["case_id"] == "BraTS20_Training_004")
    result = finish(partition(moved, cache_copy))
    assert (result.returncode, result.stderr) == (0, "")
    assert "27 shards" in result.stdout
    assert "26 of them kept" in result.stdout
    after = contents(cache_copy)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {concerned, "manifest.json"}
    assert {name for name, file in shards(cache_copy).items() if file != kept[name]} == {concerned}


def cases_by_shard(cache: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for case in json.loads((cache / "manifest.json").read_text())["cases"]:
        found.setdefault(case["shard"], []).append(case["case_id"])
    return found


def test_another_alpha_redoes_only_shards_whose_cases_changed(archives, cache_copy, tmp_path):
    before, old = cases_by_shard(cache_copy), shards(cache_copy)
    result = finish(partition(archives, cache_copy, "--alpha", 2.0, "--replace"))
    assert (result.returncode, result.stderr) == (0, "")
    after = cases_by_shard(cache_copy)
    same = {name for name in after if after[name] == before.get(name)}
    assert any(name.startswith("clients/") for name in same)
    assert same < after.keys()
    assert same >= {name for name in before if name.startswith("test/")}
    assert shards(cache_copy).keys() == after.keys()
    assert {name for name, file in shards(cache_copy).items() if file == old.get(name)} == same
    other = tmp_path / "other"
    assert finish(partition(archives, other, "--alpha", 2.0)).returncode == 0
    assert contents(cache_copy) == contents(other)


@contextmanager
def service(module: str, *arguments: object, cwd: Path) -> Iterator[psutil.Popen]:
    """Run a Dask command until the block ends."""
    with (cwd / f"{module}.log").open("a") as log:
        process = psutil.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *map(str, arguments)],
            cwd=cwd,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        children = process.children(recursive=True)
        process.terminate()
        try:
            process.wait(10)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(DEADLINE_S)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


@contextmanager
def two_workers(folder: Path) -> Iterator[tuple[str, psutil.Popen, list[psutil.Popen]]]:
    """A `dask scheduler` and two `dask worker` processes, as somebody else would have started them."""
    local = ("--host", "127.0.0.1", "--no-dashboard")
    contact = folder / "scheduler.json"
    with service(
        "dask_scheduler", *local, "--port", 0, "--scheduler-file", contact, cwd=folder
    ) as scheduler:
        assert wait_until(lambda: contact.exists() and bool(contact.read_text()), pause_s=0.05)
        address = json.loads(contact.read_text())["address"]
        worker = ("dask_worker", address, *local, "--nthreads", 1, "--local-directory", folder)
        with service(*worker, cwd=folder) as first, service(*worker, cwd=folder) as second:
            log = folder / "dask_scheduler.log"
            assert wait_until(
                lambda: log.read_text().count("Register worker") >= 2, pause_s=0.05
            ), (folder / "dask_worker.log").read_text()
            yield address, scheduler, [first, second]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[tuple[str, list[psutil.Popen]]]:
    with two_workers(tmp_path_factory.mktemp("cluster")) as (address, _, nannies):
        yield address, nannies


def test_a_cluster_that_runs_already_writes_the_same(cluster, archives, undisturbed, tmp_path):
    address, _ = cluster
    assert address.startswith("tcp://127.0.0.1:")
    result = finish(partition(archives, tmp_path / "cache", "--scheduler", address))
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 workers" in result.stdout
    assert contents(tmp_path / "cache") == contents(undisturbed)


def test_a_worker_of_a_running_cluster_may_be_killed(cluster, archives, undisturbed, tmp_path):
    address, nannies = cluster
    cache = tmp_path / "cache"
    (worker,) = filter(is_worker, nannies[1].children(recursive=True))
    with started(partition(archives, cache, "--scheduler", address), tmp_path) as preparation:
        assert wait_until(lambda: num_shards_done(cache) >= 5 or not preparation.is_running())
        worker.kill()
        assert preparation.wait() == 0, preparation.stderr.read_text()
    assert contents(cache) == contents(undisturbed)


def test_a_lost_scheduler_exits_with_1_and_one_line_and_the_next_run_goes_on(
    archives, undisturbed_slowly, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    with two_workers(tmp_path) as (address, scheduler, _):
        monkeypatch.setitem(ENVIRONMENT, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "2s")
        command = slowly(archives, cache, "--scheduler", address)
        with started(command, tmp_path) as preparation:
            assert wait_until(lambda: num_shards_done(cache) >= 3 or not preparation.is_running())
            scheduler.kill()
            assert preparation.wait() == 1
            message = preparation.stderr.read_text()
    assert message.count("\n") == 1
    assert f"--scheduler {address} was lost" in message
    assert not (cache / "manifest.json").exists()
    assert finish(slowly(archives, cache)).returncode == 0
    assert contents(cache) == contents(undisturbed_slowly)
