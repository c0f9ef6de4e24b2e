"""What can be wrong with a case: faults that keep it out, and findings that are only recorded."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from jaxtyping import Bool, Num, UInt8

from cache_schema.vocabulary import LABELS
from pipeline.volume import Volume

BRATS_SHAPE: Final = (240, 240, 155)
BRATS_AFFINE: Final = np.array(
    [[-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 239.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
"""1 mm, LPS, origin (0, 239, 0) in ITK's LPS convention, as nibabel's RAS+ matrix."""


class CaseError(ValueError):
    """A case cannot be prepared; it is quarantined with this message and the rest go on."""


def check_geometry(volumes: Mapping[str, Volume], geometry: str) -> None:
    """Refuse volumes of a case that do not share one voxel grid, or not the grid of BraTS.

    Args:
        volumes: Modalities and segmentation by name.
        geometry: `brats` demands 240 x 240 x 155 voxels of 1 mm at the common origin.

    Raises:
        CaseError: Naming the file's role and the difference.
    """
    check_same_grid(volumes)
    if geometry == "brats":
        difference = differs_from_brats(volumes["seg"])
        if difference is not None:
            raise CaseError(f"{difference}; see --geometry any")


def check_same_grid(volumes: Mapping[str, Volume]) -> None:
    """Refuse volumes of a case that do not share one voxel grid.

    Args:
        volumes: By name. All are held against the segmentation `seg`, if there is one, else against
            the first.

    Raises:
        CaseError: Naming the file's role and the difference.
    """
    anchor = "seg" if "seg" in volumes else next(iter(volumes))
    reference = volumes[anchor]
    for name, volume in volumes.items():
        if volume.voxels.shape != reference.voxels.shape:
            raise CaseError(
                f"{name} has shape {volume.voxels.shape}, {anchor} {reference.voxels.shape}"
            )
        if not np.allclose(volume.affine, reference.affine, atol=1e-3):
            raise CaseError(f"{name} and {anchor} have different affines")


def differs_from_brats(volume: Volume) -> str | None:
    """Say in what a volume's grid is not that of BraTS, or None if it is."""
    if volume.voxels.shape != BRATS_SHAPE:
        return f"shape {volume.voxels.shape} is not {BRATS_SHAPE}"
    if not np.allclose(volume.affine, BRATS_AFFINE, atol=1e-3):
        return "affine is not that of BraTS"
    return None


def check_label(voxels: Num[np.ndarray, "i j k"]) -> UInt8[np.ndarray, "i j k"]:
    """Convert a segmentation to unsigned bytes.

    Raises:
        CaseError: If it holds values other than 0, 1, 2 and 4. A 3 is a label of another year.
    """
    flat = voxels.ravel(order="K")
    labelled = flat[flat != 0]  # the few that there is something to check about
    with np.errstate(invalid="ignore"):  # a NaN becomes some byte, which then differs from it
        values = labelled.astype(np.uint8)
    if not np.array_equal(values, labelled):
        raise CaseError("segmentation has values that are not whole numbers from 0 to 4")
    found = np.flatnonzero(np.bincount(values, minlength=256))
    foreign = sorted(set(found.tolist()) - set(LABELS.values()))
    if foreign:
        raise CaseError(f"segmentation has labels {foreign}; BraTS 2018 to 2020 use 0, 1, 2, 4")
    return voxels.astype(np.uint8)  # order K keeps axial planes contiguous


def describe(label: UInt8[np.ndarray, "*grid"], brain: Bool[np.ndarray, "*grid"]) -> Iterator[str]:
    """Yield what is unusual about a case that is otherwise sound.

    Args:
        label: Every voxel with a label; those without may be among them.
        brain: Whether the same voxels hold brain in any modality.

    Yields:
        One sentence a finding.
    """
    for name, value in LABELS.items():
        if not np.any(label == value):
            yield f"no {name}"
    outside = int(np.count_nonzero((label != 0) & ~brain))
    if outside:
        yield f"{outside} label voxels outside the brain"
