"""Synthetic BraTS 2018, 2019 and 2020 archives, in the real folder layouts, from a seed.

For the demo, the tests and the benchmarks. As in the real archives, whoever is in 2018 is also in
2019 and 2020, under other names and with the same voxels, and `name_mapping.csv` tells who is who.
Unlike them, each archive says that it is synthetic, and so does each of its volumes.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64

from cache_schema.errors import InputError
from cache_schema.files import GOES_ON, PARTIAL_SUFFIX, remove_partials, replacing, reporting
from cache_schema.targets import require_writable_folder
from cache_schema.vocabulary import (
    COHORTS,
    MODALITIES,
    SYNTHETIC_DESCRIPTION,
    SYNTHETIC_MARK,
    Cohort,
)
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

REQUEST_NAME: Final = ".phantom.json"
"""In the folder while it is unfinished: what it is to hold, so that the same command goes on."""

ROLES: Final = (*MODALITIES, "seg")
"""Files of a case, in the order of writing: a case that has its labels is whole."""

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
    differ where matrix products round differently. What an interrupted call left behind is kept.

    Args:
        out: Folder to make, an empty one, or one that the same call has left unfinished; holds the three
            archives afterwards.
        num_patients: In the cohort of 2020; 91 % of them are in 2019 and 77 % in 2018, as in BraTS.
        seed: Not negative.
        shape: Of every volume, in voxels of 1 mm.
        on_case: Called with a case's id when its five files are written.

    Raises:
        InputError: If `out` is in use or cannot be written, or a number is out of range; the message
            names the option.
    """
    _check_numbers(num_patients, seed, shape)
    patients = [
        draw_patient(np.random.default_rng([seed, _PATIENTS]), index)
        for index in range(num_patients)
    ]
    names = name_cases(np.random.default_rng([seed, _NAMES]), patients)
    folders = _case_folders(out, patients, names)
    request = json.dumps({"patients": num_patients, "seed": seed, "shape": shape}) + "\n"
    _check_folder(out, request, folders)
    with reporting(out, option="OUT", advice=GOES_ON):
        _write(out / REQUEST_NAME, request.encode())
        _write_marks(out)
        _write_mappings(out, patients, names)
        _write_cases(patients, folders, seed, shape, on_case)
        for folder, _, _ in os.walk(out):
            remove_partials(Path(folder))  # of a call that was killed
        (out / REQUEST_NAME).unlink()
    return _summarize(patients, names)


def _write_cases(
    patients: Sequence[Patient],
    folders: Mapping[int, Sequence[Path]],
    seed: int,
    shape: Shape,
    on_case: Callable[[str], None] | None,
) -> None:
    scanners = _site_scanners(seed)
    for patient in patients:
        own = folders[patient.index]
        if not all(map(_is_written, own)):
            files = _encode_case(seed, patient, shape, scanners[patient.site])
            for folder in own:
                _write_case(folder, files)
        for folder in own:
            if on_case:
                on_case(folder.name)


def _check_numbers(num_patients: int, seed: int, shape: Shape) -> None:
    if num_patients < 1:
        raise InputError(f"--patients {num_patients}: ask for at least 1")
    if seed < 0:
        raise InputError(f"--seed {seed}: give 0 or a positive number")
    if min(shape) < MIN_SIDE:
        raise InputError(
            f"--shape {'x'.join(map(str, shape))}: make each side at least {MIN_SIDE} voxels"
        )


def _check_folder(out: Path, request: str, folders: Mapping[int, Sequence[Path]]) -> None:
    """Make sure that a folder is new or empty, or one that the same request has left unfinished.

    Raises:
        InputError: If it is a file, holds anything else, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT {out} is a file: name a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()) and not _is_unfinished(out, request, folders):
        raise InputError(f"OUT {out} is not empty: name a folder that is new or empty")
    require_writable_folder(out, "OUT")


def _is_unfinished(out: Path, request: str, folders: Mapping[int, Sequence[Path]]) -> bool:
    """Tell whether a folder holds what a request has left unfinished, and nothing foreign beside it."""
    note = out / REQUEST_NAME
    if not note.is_file() or note.read_bytes() != request.encode():
        return False
    own = {note, *(out / folder / SYNTHETIC_MARK for folder in FOLDERS.values())}
    own |= {out / FOLDERS[cohort] / "name_mapping.csv" for cohort in _MAPPINGS}
    own |= {
        _file(folder, role) for several in folders.values() for folder in several for role in ROLES
    }
    own |= {parent for path in own for parent in path.parents}
    found = [
        path for path in out.rglob("*") if PARTIAL_SUFFIX not in {path.suffix, path.parent.suffix}
    ]
    return all(path in own and not path.is_symlink() for path in found)


def _site_scanners(seed: int) -> dict[str, Scanner]:
    scanners = draw_scanners(np.random.default_rng([seed, _SCANNERS]))
    return dict(zip(SITES, scanners, strict=True))


def _write_marks(out: Path) -> None:
    """Make the folder of each archive, and say in it what the archive is."""
    for folder in FOLDERS.values():
        _write(out / folder / SYNTHETIC_MARK, MARK_TEXT.encode())


def _write_mappings(out: Path, patients: Sequence[Patient], names: CaseNames) -> None:
    """Write the two `name_mapping.csv`, each of the patients of its cohort, by grade and id."""
    for cohort, columns in _MAPPINGS.items():
        members = [map_names(p, names) for p in patients if p.index in names[cohort]]
        members.sort(key=lambda ids: (ids["Grade"], ids["BraTS_2019_subject_ID"]))
        text = io.StringIO(newline="")
        rows = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        rows.writeheader()
        rows.writerows(members)
        _write(out / FOLDERS[cohort] / "name_mapping.csv", text.getvalue().encode())


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


def _case_folders(
    out: Path, patients: Sequence[Patient], names: CaseNames
) -> dict[int, list[Path]]:
    """Name the folders of every patient's cases, by index, one in each cohort that has the patient."""
    return {
        patient.index: [
            _case_folder(out, cohort, patient, names[cohort][patient.index])
            for cohort in COHORTS
            if patient.index in names[cohort]
        ]
        for patient in patients
    }


def _case_folder(out: Path, cohort: Cohort, patient: Patient, case_id: str) -> Path:
    """Name a case's folder: 2018 and 2019 sort cases by grade, 2020 does not."""
    archive = out / FOLDERS[cohort]
    return archive / case_id if cohort == "brats2020" else archive / patient.grade / case_id


def _file(folder: Path, role: str) -> Path:
    return folder / f"{folder.name}_{role}.nii.gz"


def _write_case(folder: Path, files: Mapping[str, bytes]) -> None:
    for role in ROLES:
        _write(_file(folder, role), files[role])


def _is_written(folder: Path) -> bool:
    """Tell whether a case is there: its labels are written last."""
    return _file(folder, ROLES[-1]).is_file()


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def _summarize(patients: Sequence[Patient], names: CaseNames) -> PhantomSummary:
    without_et = [p.index for p in patients if not p.has_enhancing]
    return PhantomSummary(
        num_cases={cohort: len(names[cohort]) for cohort in COHORTS},
        num_patients=len(patients),
        num_cases_without_et=sum(i in names[cohort] for cohort in COHORTS for i in without_et),
    )
