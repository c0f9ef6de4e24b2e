"""What can be wrong with a case: faults that keep it out, and findings that are only recorded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from cache_schema.findings import say_background, say_partial, say_repaired
from cache_schema.vocabulary import LABELS, MODALITIES
from pipeline.volume import Volume

BRATS_SHAPE: Final = (240, 240, 155)
BRATS_AFFINE: Final = np.array(
    [[-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 239.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
"""1 mm, LPS, origin (0, 239, 0) in ITK's LPS convention, as nibabel's RAS+ matrix."""

CORNER: Final = 16
"""A corner of a face is this part of its sides."""
MAX_IN_CORNERS: Final = 0.1
"""Of the corners of every face; all 22 real cases have none, noise that was left in has most."""
MIN_COVERED: Final = 0.85
"""Of 22 real cases one has a modality with 0.66 of the others' voxels; all others have 0.97 and more."""


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
        if not _agree(volume.affine, reference.affine):
            raise CaseError(f"{name} and {anchor} have different affines")


def _agree(one: Float[np.ndarray, "row column"], other: Float[np.ndarray, "row column"]) -> bool:
    return np.allclose(one, other, atol=1e-3)


def repair_origin(
    seg: Volume, affines: Mapping[str, Float[np.ndarray, "4 4"]]
) -> tuple[Volume, tuple[str, ...]]:
    """Put a segmentation where its modalities are, if its origin alone contradicts them.

    An archive has (0, 0, 0) for (0, 239, 0). Only four modalities that agree are believed more than
    the segmentation; whatever else differs stays as it is, for `check_same_grid` to refuse.

    Args:
        seg: The segmentation, in voxel axes as stored.
        affines: Those of the modalities that there are, as stored.

    Returns:
        The segmentation, and the finding that it was repaired, if it was.
    """
    first = next(iter(affines.values()), seg.affine)
    is_certain = len(affines) == len(MODALITIES) and all(_agree(a, first) for a in affines.values())
    is_moved = _agree(seg.affine[:3, :3], first[:3, :3]) and not _agree(seg.affine, first)
    if not (is_certain and is_moved):
        return seg, ()
    found, right = (", ".join(f"{mm:g}" for mm in affine[:3, 3]) for affine in (seg.affine, first))
    action = f"origin ({found}) of seg taken as ({right}), that of the four modalities"
    return replace(seg, affine=first), (say_repaired(action),)


def differs_from_brats(volume: Volume) -> str | None:
    """Say in what a volume's grid is not that of BraTS, or None if it is."""
    if volume.voxels.shape != BRATS_SHAPE:
        return f"shape {volume.voxels.shape} is not {BRATS_SHAPE}"
    if not _agree(volume.affine, BRATS_AFFINE):
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


@dataclass(frozen=True)
class Coverage:
    """What a modality shows: its voxels other than 0, their share of all, and if the background is 0."""

    num_voxels: int
    share: float
    is_background_zero: bool


def measure_coverage(
    image: Num[np.ndarray, "plane row column"], head: Num[np.ndarray, "depth width height"]
) -> Coverage:
    """Measure how much of a modality is not 0, and whether that is head alone.

    A head has no corners. So none of a volume's faces should have corners other than 0, not even of
    a volume that is cropped to the head or through it; nor should the box around all that is not 0,
    as it has where a scan with its noise lies in a larger grid.

    Args:
        image: The modality in scanner units.
        head: The smallest box that holds every voxel other than 0.
    """
    count = int(np.count_nonzero(head))
    boxes = [image, *([head] if min(head.shape) >= CORNER else [])]  # a smaller box has no corners
    in_corners = max(_corner_share(box) for box in boxes) if image.size else 0.0
    return Coverage(count, count / max(image.size, 1), in_corners <= MAX_IN_CORNERS)


def _corner_share(box: Num[np.ndarray, "plane row column"]) -> float:
    """Return which share of the four corners of a face is not 0, of the face that has most."""
    places: list[tuple[slice, ...]] = [
        (slice(_corner(side)), slice(-_corner(side), None)) for side in box.shape
    ]
    shares = []
    for axis, face in product(range(3), (slice(1), slice(-1, None))):
        corners = [box[each] for each in product(*places[:axis], (face,), *places[axis + 1 :])]
        shares.append(sum(np.count_nonzero(c) for c in corners) / sum(c.size for c in corners))
    return float(max(shares))


def _corner(side: int) -> int:
    return max(1, side // CORNER)


def describe_coverage(coverages: Mapping[str, Coverage]) -> Iterator[str]:
    """Yield which modalities have a background, or show much less of the head than the others.

    Args:
        coverages: By modality.

    Yields:
        One sentence a finding.
    """
    for name, coverage in coverages.items():
        if not coverage.is_background_zero:
            yield say_background(name, coverage.share)
    heads = {n: c.num_voxels for n, c in coverages.items() if c.is_background_zero}
    usual = sorted(heads.values())[len(heads) // 2] if heads else 0
    for name, num_voxels in heads.items():
        if num_voxels < MIN_COVERED * usual:
            yield say_partial(name, num_voxels / usual)
