"""What this machine lets a process have, and what libraries would ask it in vain."""

import getpass
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")
ROOT_CGROUPS: Final = ("0::/", "1:cpu:/")
"""What is looked at where a process cannot be asked for its groups."""

QUOTA_FILES: Final = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
"""Quota and period of a group, both in microseconds: one file in version 2, two in version 1."""


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Count the cores that this process may keep busy.

    Those it may run on, but no more than the CPU quota of its container, or of any group around it: more
    processes than that would wait for one another. (`dask.system.cpu_count` passes over the groups around
    the own one, and over version 1 where its controller is mounted under another name than it expects.)

    Args:
        cgroups: Where control groups are mounted, version 1 or 2.
        own: Names the groups of this process.

    Returns:
        At least 1; a quota of 1.5 cores counts as 2.
    """
    quotas = (quota for group in _groups(cgroups, own) for quota in _quotas(group))
    return max(1, min([_reachable_cores(), *map(math.ceil, quotas)]))


def complete_environment() -> None:
    """Set the variables that libraries need where this machine leaves them in the dark.

    A container may run as a user without a name (`docker run --user 12345`): Dask, torch.compile and
    Matplotlib then fail or complain, and torch.hub would make a folder called `~`. Of a CPU quota PyTorch's
    threads know nothing. What is set already stays; processes started later inherit all of it.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _private_folder()
    if not os.access(Path.home(), os.W_OK):  # such as `/`; Matplotlib would complain each time
        os.environ.setdefault("MPLCONFIGDIR", _private_folder())
    if usable_cores() < _reachable_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def _private_folder() -> str:
    """Make a folder for this user alone; one of that name that somebody else made is left to them."""
    folder = Path(tempfile.gettempdir(), f"home-of-uid-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return tempfile.mkdtemp(prefix=f"{folder.name}-")
    return str(folder)


def _reachable_cores() -> int:
    """Count the cores that the system may run this process on."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS lacks it
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _groups(cgroups: Path, own: Path) -> Iterator[Path]:
    """List the folders of the groups that hold a process, and of those around them.

    A container sees its own group as the root, but may know it by its name outside; the root is always
    among the folders, and those that are not there say nothing.
    """
    for line in _read(own).splitlines() or ROOT_CGROUPS:
        _, controllers, path = line.split(":", 2)
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        inside = PurePosixPath(*parts)
        for mount in _mounts(cgroups, controllers):
            yield from (mount / group for group in (inside, *inside.parents))


def _mounts(cgroups: Path, controllers: str) -> list[Path]:
    """Find where a hierarchy with these controllers says something of cores."""
    if not controllers:  # version 2
        return [cgroups]
    if "cpu" not in controllers.split(","):
        return []
    return [folder for folder in cgroups.glob("*cpu*") if "cpu" in folder.name.split(",")]


def _quotas(group: Path) -> Iterator[float]:
    """Read the CPU quota of a group, in cores, if it has one."""
    for names in QUOTA_FILES:
        numbers = [number for name in names for number in _read(group / name).split()]
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            yield int(numbers[0]) / int(numbers[1])  # without a limit it would be "max" or -1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
