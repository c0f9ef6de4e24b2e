"""The part of a volume that is not empty: a head fills less than half of its grid, a lesion far less."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Num, Shaped


@dataclass(frozen=True)
class Crop:
    """The smallest box that holds every voxel other than 0, copied out of its volume.

    Attributes:
        voxels: The box, axes (k, j, i).
        corner: Where it lay in the volume (k, j, i).
        planes: For every axial plane of the volume whether it holds anything.
    """

    voxels: Num[np.ndarray, "depth width height"]
    corner: tuple[int, int, int]
    planes: Bool[np.ndarray, " plane"]


def crop(axial: Num[np.ndarray, "plane width height"]) -> Crop:
    """Cut the empty space off a volume; of an empty one nothing is left."""
    occupied = axial != 0
    footprint = occupied.any(axis=0)
    planes = occupied.any(axis=(1, 2))
    k, j, i = (_span(side) for side in (planes, footprint.any(axis=1), footprint.any(axis=0)))
    return Crop(np.ascontiguousarray(axial[k, j, i]), (k.start, j.start, i.start), planes)


def _span(side: Bool[np.ndarray, " index"]) -> slice:
    indices = np.flatnonzero(side)
    return slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 0)


def place(
    target: Shaped[np.ndarray, "row column"],
    cut: Crop,
    k: int,
    convert: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Write one plane of a volume, axes now (i, j), into the low corner of a larger, zeroed plane.

    Args:
        target: What to fill.
        cut: The volume.
        k: Index of the plane in the volume.
        convert: Applied to the plane (j, i) of the box.
    """
    first, j, i = cut.corner
    depth, width, height = cut.voxels.shape
    if first <= k < first + depth:
        target[i : i + height, j : j + width] = convert(cut.voxels[k - first]).T
