"""The full-size cases that the benchmarks run on, and plans for them."""

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cli
from cache_schema.manifest import Options
from pipeline.case import Preprocessing
from pipeline.case_folder import SEGMENTATION
from pipeline.cohorts import Case, discover
from pipeline.identity import identify
from pipeline.phantom.archives import write_phantom
from pipeline.quality import BRATS_SHAPE

SETTINGS: Final = Preprocessing("zscore", bias_correct=False, geometry="brats", plane=(240, 240))
REAL_DATA: Final = "FEDUNETMM_REAL_DATA"
NUM_PATIENTS: Final = 5
"""Of the phantom archives; in three cohorts that makes about 13 cases."""
MANY_PATIENTS: Final = 15
"""Their scans in three cohorts make more than 40 cases."""


@dataclass(frozen=True)
class Workbench:
    """Where the benchmarks put their files.

    Attributes:
        scratch: A folder that is removed at the end.
        shape: Voxels of a phantom volume; smaller ones only to try the benchmarks themselves.
    """

    scratch: Path
    shape: tuple[int, int, int] = BRATS_SHAPE

    def folder(self, name: str) -> Path:
        """Make a folder of the benchmarks' own."""
        path = self.scratch / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def phantoms(self, num_patients: int = NUM_PATIENTS) -> Path:
        """Give phantom archives, written when they are first asked for."""
        root = self.scratch / f"phantom-{num_patients}"
        if not root.exists():
            write_phantom(root, num_patients=num_patients, shape=self.shape)
        return root

    @property
    def settings(self) -> Preprocessing:
        """How the cases are prepared."""
        if self.shape == BRATS_SHAPE:
            return SETTINGS
        return Preprocessing("zscore", bias_correct=False, geometry="any", plane=self.shape[:2])

    def options(self, **changes: Any) -> Options:  # noqa: ANN401
        """Give the defaults of `prep partition`, changed where the benchmark says so."""
        parameters = inspect.signature(cli.prep_partition).parameters
        defaults = {n: p.default for n, p in parameters.items() if n in Options.model_fields}
        return Options(**defaults | {"geometry": self.settings.geometry} | changes)


def usable_cases(root: Path) -> tuple[Case, ...]:
    """List the cases under a folder that have a segmentation."""
    return tuple(case for case in identify(discover([root])) if SEGMENTATION in case.files)


def sources(bench: Workbench) -> dict[str, tuple[Case, ...]]:
    """Give four phantom cases, and four real ones if their folder is known, by kind."""
    found = {"phantom": usable_cases(bench.phantoms())[:4]}
    real = os.environ.get(REAL_DATA)
    if real and bench.shape == BRATS_SHAPE:
        found["real"] = usable_cases(Path(real))[:4]
    return found
