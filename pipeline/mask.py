"""What was predicted for a case as NIfTI files beside its scans: whole, in the same grid, or not there."""

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from cache_schema.files import replacing, reporting
from cache_schema.geometry import restore_volume
from cache_schema.vocabulary import LABELS
from pipeline.quality import CaseError
from pipeline.raw_case import RawCase
from pipeline.volume import VolumeError, check_like, encode_like, restore_axes

SUFFIX: Final = ".nii.gz"


def write_labels(
    path: Path, case: RawCase, labels: UInt8[np.ndarray, "slice height width"]
) -> None:
    """Write labels 0, 1, 2, 4 in the grid of the case's scans.

    Args:
        path: A name that ends in `.nii.gz`; a file of that name is replaced in one step.
        case: Whose slices they are.
        labels: Of its slices.

    Raises:
        CaseError: If the file, read back, is not in the source's grid; there is none then.
        InputError: If it cannot be written.
    """
    title = "labels " + ", ".join(f"{value} {name}" for name, value in LABELS.items())
    _write(path, case, restore_volume(labels, case.z, case.shape), title)


def write_probabilities(
    path: Path,
    case: RawCase,
    probability: Float32[np.ndarray, "slice 3 height width"],
    planes: tuple[str, ...],
) -> None:
    """Write the network's probabilities, 0 where no brain is; the planes are the fourth axis.

    Args:
        path: A name that ends in `.nii.gz`; a file of that name is replaced in one step.
        case: Whose slices they are.
        probability: Of its slices.
        planes: What each plane shows.

    Raises:
        CaseError: If the file, read back, is not in the source's grid; there is none then.
        InputError: If it cannot be written.
    """
    title = f"probabilities {', '.join(planes)}"
    _write(path, case, restore_volume(probability, case.z, case.shape), title)


def _write(
    path: Path, case: RawCase, voxels: Shaped[np.ndarray, "i j k *plane"], title: str
) -> None:
    if case.source_affine is not None:
        voxels = restore_axes(voxels, case.source_affine)
    try:
        with reporting(path, advice="choose another --out"), replacing(path) as partial:
            partial.write_bytes(encode_like(case.source, voxels, title=title))
            check_like(partial, case.source, voxels)
    except VolumeError as error:
        raise CaseError(f"{path.name} {error}; nothing was written") from error
