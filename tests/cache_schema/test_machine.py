"""Cores: those that a process may run on and its container may use. A user without a name gets one."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

from cache_schema.machine import complete_environment, usable_cores

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture
def cores(tmp_path):
    """Counts cores with control groups made of some files, for a process in some groups."""

    def counted(files: dict[str, str], *own: str) -> int:
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        (tmp_path / "own").write_text("".join(f"{line}\n" for line in own))
        return usable_cores(tmp_path / "cgroup", tmp_path / "own")

    return counted


def test_without_a_quota_all_cores_count_that_the_process_may_run_on(cores, tmp_path):
    assert cores({"cpu.max": "max 100000"}, "0::/") == 8
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 8


def test_where_nobody_tells_affinity_the_cores_of_the_machine_count(cores, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores({}) == 6
    assert cores({"cpu.max": "350000 100000"}) == 4
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(Path("none"), Path("none")) == 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("150000 100000", 2), ("300000 100000", 3), ("20000 100000", 1), ("9900000 100000", 8)],
)
def test_a_quota_is_rounded_up_and_never_adds_cores(cores, quota, expected):
    assert cores({"cpu.max": quota}, "0::/") == expected


def test_the_smallest_quota_of_the_own_group_and_those_around_it_holds(cores):
    files = {
        "cpu.max": "max 100000",
        "jobs.slice/cpu.max": "300000 100000",
        "jobs.slice/mine/cpu.max": "max 100000",
        "jobs.slice/mine/deep/cpu.max": "500000 100000",
        "others.slice/cpu.max": "100000 100000",
    }
    assert cores(files, "0::/jobs.slice/mine/deep") == 3
    assert cores({"jobs.slice/mine/cpu.max": "100000 50000"}, "0::/jobs.slice/mine/deep") == 2


def test_a_container_that_knows_its_group_by_the_name_outside_looks_at_the_root(cores):
    assert cores({"cpu.max": "200000 100000"}, "0::/docker/4711") == 2
    assert cores({"cpu.max": "200000 100000"}, "0::/../../docker") == 2


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_version_1_counts_wherever_it_is_mounted(cores, mount):
    own = ("5:cpuset:/", "4:cpu,cpuacct:/docker/4711", "0::/")
    files = {f"{mount}/cpu.cfs_quota_us": "250000", f"{mount}/cpu.cfs_period_us": "100000"}
    assert cores(files, *own) == 3
    files = {f"{mount}/docker/4711/cpu.cfs_quota_us": "50000"}
    files[f"{mount}/docker/4711/cpu.cfs_period_us"] = "50000"
    assert cores(files, *own) == 1
    assert cores(dict.fromkeys(files, "-1"), *own) == 3


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """Makes this process's user unknown to the system."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("cache_schema.machine.usable_cores", lambda: 8)  # no quota
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (*NAMES, "HOME", "MPLCONFIGDIR", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)


def test_a_user_without_a_name_gets_one_and_a_private_home(nobody, tmp_path):
    complete_environment()
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert Path.home() == tmp_path / f"home-of-uid-{os.getuid()}"
    assert Path.home().stat().st_mode & 0o777 == 0o700
    home = Path.home()
    del os.environ["HOME"]
    complete_environment()
    assert Path.home() == home


def test_a_home_that_somebody_else_made_is_not_used(nobody, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"home-of-uid-{os.getuid()}").symlink_to("theirs")
    complete_environment()
    assert Path.home().is_dir()
    assert not Path.home().is_symlink()


def test_what_is_set_stays(nobody, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    (tmp_path / "ada").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    before = dict(os.environ)
    complete_environment()
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "ada"]


def test_a_home_that_cannot_be_written_stays_but_is_not_written_to(nobody, tmp_path, monkeypatch):
    (tmp_path / "notes").write_text("mine")
    monkeypatch.setenv("HOME", str(tmp_path / "notes" / "home"))
    complete_environment()
    assert Path.home() == tmp_path / "notes" / "home"
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / f"home-of-uid-{os.getuid()}")


def test_under_a_quota_libraries_start_as_many_threads_as_it_allows(nobody, monkeypatch):
    complete_environment()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr("cache_schema.machine.usable_cores", lambda: 3)
    complete_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr("cache_schema.machine.usable_cores", lambda: 2)
    complete_environment()
    assert os.environ["OMP_NUM_THREADS"] == "3"
