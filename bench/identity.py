"""What it costs to tell people apart by voxels: a whole `prep partition` with it and without, by CPU time.

CPU time of the command and all its workers, so that a busy machine counts little. Every run begins without a
cache. Without it names decide alone, and the same scans under two names would be two people.
"""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.cases import Workbench
from bench.timing import in_turn, ratio

BRATS: Final = "FEDUNETMM_BRATS"
ARCHIVE: Final = "MICCAI_BraTS_2018_Data_Training"
REPEATS: Final = 7
BLIND: Final = "import pipeline.identity; pipeline.identity.glance_at = lambda cases: []; "
RUN: Final = "import cli; cli.run_prep()"


def measure_identity(bench: Workbench) -> dict[str, dict[str, float]]:
    """Measure it on phantom cases, and on the sixteen real patients if their folder is known, by kind."""
    found = {"phantom": _measure(bench, bench.phantoms())}
    real = os.environ.get(BRATS)
    if real and bench.settings.geometry == "brats":
        found["real"] = _measure(bench, Path(real) / ARCHIVE)
    return found


def _measure(bench: Workbench, root: Path) -> dict[str, float]:
    cache = bench.scratch / "whole"
    arguments = ["partition", str(root), "--cache", str(cache), "--clients", "4"]
    arguments += ["--geometry", bench.settings.geometry, "--workers", "1"]

    def partition(start: str) -> float:
        shutil.rmtree(cache, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", start + RUN, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    taken = in_turn({"ours": lambda: partition(""), "blind": lambda: partition(BLIND)}, REPEATS)
    return {
        "repeats": REPEATS,
        "cpu_seconds": round(sorted(taken["ours"])[REPEATS // 2], 2),
        "ratio_to_names_alone": ratio(taken["ours"], taken["blind"]),
    }
