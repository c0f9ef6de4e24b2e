"""What a figure depends on besides the code: never a host's name, never a path."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from cache_schema.machine import usable_cores

LIBRARIES: Final = (
    "dask",
    "distributed",
    "flwr",
    "h5py",
    "hdf5plugin",
    "isal",
    "monai",
    "nibabel",
    "numpy",
    "ray",
    "torch",
    "torchio",
)
BUSY_LOAD: Final = 0.5
"""Processes ready to run, averaged over a minute; above it something else wants the cores."""


def describe_machine() -> dict[str, object]:
    """Tell processor, cores, versions and the date, and whether the machine was quiet at the start."""
    load = os.getloadavg()[0]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": usable_cores(),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "load_before": round(load, 2),
        "machine": "quiet" if load < BUSY_LOAD else "busy machine",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
