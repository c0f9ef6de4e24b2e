"""Distances between the surfaces of two masks."""

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage

from cache_schema.geometry import Spacing

PERCENTILE = 95
"""A few stray voxels do not decide, as they would in the maximum, the Hausdorff distance itself."""


def hd95_mm(
    truth: Bool[np.ndarray, "*space"], prediction: Bool[np.ndarray, "*space"], spacing_mm: Spacing
) -> float:
    r"""Compute the 95th percentile of the Hausdorff distance between two masks.

    With $S_T, S_P$ the surface voxels of both and d the Euclidean distance between their centres,

    $$ \max\left( P_{95}\{ \min_{p \in S_P} d(t, p) : t \in S_T \},
    P_{95}\{ \min_{t \in S_T} d(p, t) : p \in S_P \} \right) $$

    Percentiles are interpolated linearly. The larger of the two directed ones counts, as in the
    challenges: Bakas et al. (2018), arXiv:1811.02629. One percentile over all distances together, which
    some tools take, is another number.

    Args:
        truth: The annotated voxels.
        prediction: The predicted voxels, in the same grid.
        spacing_mm: Of that grid.

    Raises:
        ValueError: If a mask is empty: the distance is then undefined, and a convention must decide.
    """
    if not truth.any() or not prediction.any():
        raise ValueError("a mask is empty: there is no distance to it")
    box = bounding_box(truth | prediction)
    surfaces = surface(truth[box]), surface(prediction[box])
    forth = _distances(*surfaces, spacing_mm)
    back = _distances(*surfaces[::-1], spacing_mm)
    return float(max(np.percentile(forth, PERCENTILE), np.percentile(back, PERCENTILE)))


def surface(mask: Bool[np.ndarray, "*space"]) -> Bool[np.ndarray, "*space"]:
    """Mark the voxels of a mask that have a face in common with what is outside.

    Beyond the edge of the array everything is outside.
    """
    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def bounding_box(mask: Bool[np.ndarray, "*space"]) -> tuple[slice, ...]:
    """Give the smallest box that holds a mask.

    Raises:
        ValueError: If the mask is empty.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        places = np.flatnonzero(mask.any(axis=others))
        if places.size == 0:
            raise ValueError("an empty mask has no bounding box")
        box.append(slice(places[0], places[-1] + 1))
    return tuple(box)


def _distances(
    start: Bool[np.ndarray, "*space"], target: Bool[np.ndarray, "*space"], spacing_mm: Spacing
) -> Float64[np.ndarray, " voxel"]:
    """Measure from every marked voxel of `start` to the nearest one of `target`."""
    away = ndimage.distance_transform_edt(~target, sampling=spacing_mm)
    return np.asarray(away[start])
