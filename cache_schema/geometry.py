"""How voxels lie in a head: slices back in their volume, and planes as radiologists look at them."""

from itertools import permutations
from typing import Final

import numpy as np
from jaxtyping import Float64, Integer, Shaped

MAX_SIDE: Final = 4096
MAX_VOXELS: Final = 2**27
"""Of a volume, and along one side: 512 x 512 x 512, fifteen times BraTS's; more is a damaged header."""

Spacing = tuple[float, float, float]
"""Millimetres between neighbouring voxels along each axis of a volume."""


def spacing_mm(affine: Float64[np.ndarray, "4 4"]) -> Spacing:
    """Measure voxels along their axes i, j and k."""
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return i, j, k


def restore_volume(
    slices: Shaped[np.ndarray, "slice *plane height width"],
    z: Integer[np.ndarray, " slice"],
    shape: tuple[int, int, int],
) -> Shaped[np.ndarray, "i j k *plane"]:
    """Put the kept slices of a case back into the source's grid, 0 where there was no brain.

    What planes were padded with, where they are larger than the case's, is cut off.

    Args:
        slices: Of one kind, such as labels, or of several, which become the last axis.
        z: Index k of each slice in the source.
        shape: The source's size (i, j, k).

    Returns:
        The volume, in memory as NIfTI orders it: i fastest.
    """
    i, j, k = shape
    volume = np.zeros((*slices.shape[1:-2], k, j, i), slices.dtype)
    volume[..., z, :, :] = np.moveaxis(slices, 0, -3)[..., :i, :j].swapaxes(-1, -2)
    return np.moveaxis(volume, (-1, -2, -3), (0, 1, 2))


def world_axes(affine: Float64[np.ndarray, "4 4"]) -> tuple[int, int, int]:
    """Tell along which axis of the patient each voxel axis runs, forth or back.

    Args:
        affine: Voxel indices to millimetres, RAS+. It may be oblique: what counts is where an axis
            runs most, with a different axis of the patient for each.

    Returns:
        For i, j and k: 0 if it runs between left and right, 1 back and front, 2 bottom and top.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    along = np.abs(affine[:3, :3]) / np.where(lengths > 0, lengths, 1.0)

    def agreement(axes: tuple[int, ...]) -> float:
        return float(sum(along[world, voxel] for voxel, world in enumerate(axes)))

    i, j, k = max(permutations(range(3)), key=agreement)
    return i, j, k


def radiological(
    plane: Shaped[np.ndarray, "*planes i j"], affine: Float64[np.ndarray, "4 4"]
) -> Shaped[np.ndarray, "*planes row column"]:
    """Turn stored planes as radiologists look at them: front up, the patient's right on the left.

    In BraTS i runs to the patient's left and j to the back, and a transpose is all. In another
    geometry axes may run the other way or be exchanged; the affine tells. Of planes that are not
    axial, the top is up and the front on the left.

    Args:
        plane: Any number of planes.
        affine: Voxel indices to millimetres, RAS+.

    Returns:
        Planes of rows and columns.
    """
    i, j, _ = world_axes(affine)
    rows_first = plane if i > j else plane.swapaxes(-1, -2)
    row, column = (0, 1) if i > j else (1, 0)
    return rows_first[..., :: _step(affine, row), :: _step(affine, column)]


def _step(affine: Float64[np.ndarray, "4 4"], voxel: int) -> int:
    """Return -1 for an axis that runs to the right, front or top, which is to be shown first."""
    return -1 if affine[world_axes(affine)[voxel], voxel] > 0 else 1


def pixel_aspect(affine: Float64[np.ndarray, "4 4"]) -> float:
    """Return the height of a pixel over its width, in a plane as `radiological` turns it."""
    i, j, _ = world_axes(affine)
    height, width = spacing_mm(affine)[:2] if i > j else spacing_mm(affine)[1::-1]
    return height / width
