"""Synthetic BraTS 2018, 2019 and 2020 archives, in the real folder layouts, from a seed.

For the demo, the tests and the benchmarks. As in the real archives, whoever is in 2018 is also in
2019 and 2020, under other names and with the same voxels, and `name_mapping.csv` tells who is who.
Unlike them, each archive says that it is synthetic, and so does each of its volumes.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64

from cache_schema.errors import InputError
from cache_schema.files import reporting
from cache_schema.targets import require_writable_folder
from cache_schema.vocabulary import COHORTS, SYNTHETIC_DESCRIPTION, SYNTHETIC_MARK, Cohort
from pipeline.phantom.brain import Shape
from pipeline.phantom.patients import (
    MAPPING_COLUMNS,
    SITES,
    CaseNames,
    Patient,
    draw_patient,
    map_names,
    name_cases,
)
from pipeline.phantom.scanner import Scanner, draw_scanners, scan
from pipeline.phantom.tumour import draw_anatomy
from pipeline.quality import BRATS_SHAPE
from pipeline.volume import encode_nifti

MARK_TEXT: Final = """\
Synthetic data: `prep phantom` made everything in this folder from a seed; it shows no patient.
What is measured on it says nothing of real scans. Leave this file here, so that caches know.
"""

MIN_SIDE: Final = 16
"""Voxels. In a smaller volume a tumour would not have three parts."""

FOLDERS: Final[dict[Cohort, str]] = {
    "brats2018": "MICCAI_BraTS_2018_Data_Training",
    "brats2019": "MICCAI_BraTS_2019_Data_Training",
    "brats2020": "MICCAI_BraTS2020_TrainingData",
}
_MAPPINGS: Final[dict[Cohort, tuple[str, ...]]] = {
    "brats2019": MAPPING_COLUMNS[:-1],
    "brats2020": MAPPING_COLUMNS,
}
"""Columns of a cohort's `name_mapping.csv`; 2018 had none."""

_PATIENTS, _NAMES, _SCANNERS, _ANATOMY, _SCAN = range(5)
"""Random streams. A patient's are seeded by (seed, stream, index), whoever else is in the cohort."""


@dataclass(frozen=True)
class PhantomSummary:
    """What `write_phantom` wrote.

    Attributes:
        num_cases: By cohort.
        num_patients: Whose cases these are; fewer than cases, since the cohorts overlap.
        num_cases_without_et: Cases, of all cohorts, that have no enhancing tumour.
    """

    num_cases: Mapping[Cohort, int]
    num_patients: int
    num_cases_without_et: int


def write_phantom(
    out: Path,
    *,
    num_patients: int = 12,
    seed: int = 0,
    shape: Shape = BRATS_SHAPE,
    on_case: Callable[[str], None] | None = None,
) -> PhantomSummary:
    """Write synthetic BraTS 2018, 2019 and 2020 archives.

    The same seed, number of patients and shape give the same bytes; across machines, voxels may
    differ where matrix products round differently.

    Args:
        out: Folder to make, or an empty one; holds the three archives afterwards.
        num_patients: In the cohort of 2020; 91 % of them are in 2019 and 77 % in 2018, as in BraTS.
        seed: Not negative.
        shape: Of every volume, in voxels of 1 mm.
        on_case: Called with a case's id when its five files are written.

    Raises:
        InputError: If `out` is in use or cannot be written, or a number is out of range; the message
            names the option.
    """
    _check_request(out, num_patients, seed, shape)
    with reporting(out, option="OUT", advice="make room and begin again in a new folder"):
        return _write_archives(out, num_patients, seed, shape, on_case)


def _write_archives(
    out: Path, num_patients: int, seed: int, shape: Shape, on_case: Callable[[str], None] | None
) -> PhantomSummary:
    patients = [
        draw_patient(np.random.default_rng([seed, _PATIENTS]), index)
        for index in range(num_patients)
    ]
    names = name_cases(np.random.default_rng([seed, _NAMES]), patients)
    _write_marks(out)
    _write_mappings(out, patients, names)
    scanners = _site_scanners(seed)
    for patient in patients:
        files = _encode_case(seed, patient, shape, scanners[patient.site])
        for cohort in COHORTS:
            if case_id := names[cohort].get(patient.index):
                _write_case(_case_folder(out, cohort, patient, case_id), files)
                if on_case:
                    on_case(case_id)
    return _summarize(patients, names)


def _check_request(out: Path, num_patients: int, seed: int, shape: Shape) -> None:
    if num_patients < 1:
        raise InputError(f"--patients {num_patients}: ask for at least 1")
    if seed < 0:
        raise InputError(f"--seed {seed}: give 0 or a positive number")
    if min(shape) < MIN_SIDE:
        raise InputError(
            f"--shape {'x'.join(map(str, shape))}: make each side at least {MIN_SIDE} voxels"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT {out} is a file: name a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"OUT {out} is not empty: name a folder that is new or empty")
    require_writable_folder(out, "OUT")


def _site_scanners(seed: int) -> dict[str, Scanner]:
    scanners = draw_scanners(np.random.default_rng([seed, _SCANNERS]))
    return dict(zip(SITES, scanners, strict=True))


def _write_marks(out: Path) -> None:
    """Make the folder of each archive, and say in it what the archive is."""
    for folder in FOLDERS.values():
        (out / folder).mkdir(parents=True)
        (out / folder / SYNTHETIC_MARK).write_text(MARK_TEXT, encoding="utf-8", newline="\n")


def _write_mappings(out: Path, patients: Sequence[Patient], names: CaseNames) -> None:
    """Write the two `name_mapping.csv`, each of the patients of its cohort, by grade and id."""
    for cohort, columns in _MAPPINGS.items():
        members = [map_names(p, names) for p in patients if p.index in names[cohort]]
        members.sort(key=lambda ids: (ids["Grade"], ids["BraTS_2019_subject_ID"]))
        with (out / FOLDERS[cohort] / "name_mapping.csv").open(
            "w", encoding="utf-8", newline=""
        ) as file:
            rows = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            rows.writeheader()
            rows.writerows(members)


def _encode_case(seed: int, patient: Patient, shape: Shape, scanner: Scanner) -> dict[str, bytes]:
    """Make the five files of a patient, by suffix."""
    rng = np.random.default_rng([seed, _ANATOMY, patient.index])
    anatomy = draw_anatomy(rng, shape, has_enhancing=patient.has_enhancing)
    images = scan(np.random.default_rng([seed, _SCAN, patient.index]), anatomy, scanner)
    affine = brats_affine(shape)
    volumes = (*images.items(), ("seg", anatomy.place(anatomy.labels)))
    return {
        name: encode_nifti(volume, affine, title=SYNTHETIC_DESCRIPTION) for name, volume in volumes
    }


def brats_affine(shape: Shape) -> Float64[np.ndarray, "4 4"]:
    """Give the voxel-to-mm matrix in RAS+: 1 mm, LPS axes, last row at y = 0 as in BraTS."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1
    return affine


def _case_folder(out: Path, cohort: Cohort, patient: Patient, case_id: str) -> Path:
    """Name a case's folder: 2018 and 2019 sort cases by grade, 2020 does not."""
    archive = out / FOLDERS[cohort]
    return archive / case_id if cohort == "brats2020" else archive / patient.grade / case_id


def _write_case(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for suffix, content in files.items():
        (folder / f"{folder.name}_{suffix}.nii.gz").write_bytes(content)


def _summarize(patients: Sequence[Patient], names: CaseNames) -> PhantomSummary:
    without_et = [p.index for p in patients if not p.has_enhancing]
    return PhantomSummary(
        num_cases={cohort: len(names[cohort]) for cohort in COHORTS},
        num_patients=len(patients),
        num_cases_without_et=sum(i in names[cohort] for cohort in COHORTS for i in without_et),
    )
