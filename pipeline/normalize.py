"""Intensities of one modality: scanner units to numbers a network can learn from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float16, Num

MAX_TABLE: Final = 2**16
"""Integers of a wider range are scaled voxel by voxel."""


class NormalizationError(ValueError):
    """A modality has no brain or no contrast; the case is to be quarantined with this message."""


@dataclass(frozen=True)
class Scaling:
    """Clip to [low, high], subtract `mean`, divide by `std`; all in scanner units."""

    mean: float
    std: float
    low: float = -np.inf
    high: float = np.inf


def zscore(image: Num[np.ndarray, "plane row column"]) -> Scaling:
    r"""Fit a z-score to the voxels of a brain, which are those that are not 0.

    MR intensities have no physical unit, so each volume is its own reference:

    $$ z = \frac{x - \mu_{brain}}{\sigma_{brain}} $$

    As in nnU-Net, Isensee et al. (2021), doi:10.1038/s41592-020-01008-z.

    Args:
        image: Intensities in scanner units, 0 outside the brain.

    Returns:
        Mean and population standard deviation of the brain. Those of 16-bit integers are exact.

    Raises:
        NormalizationError: If there is no brain or no contrast; report such a case.
    """
    count = np.count_nonzero(image)
    if count == 0:
        raise NormalizationError("is empty: every voxel is 0")
    mean, variance = _exact_moments(image) if _is_narrow(image) else _moments(image[image != 0])
    if variance == 0.0:
        raise NormalizationError("is constant inside the brain")
    return Scaling(mean, math.sqrt(variance))


def percentile(image: Num[np.ndarray, "plane row column"]) -> Scaling:
    """Fit a z-score to brain voxels clipped to their 0.5th and 99.5th percentile.

    Clipping takes the weight from single bright vessels and artefacts, as nnU-Net does for CT.

    Args:
        image: Intensities in scanner units, 0 outside the brain.

    Returns:
        Clipping limits, and mean and standard deviation of the brain after clipping.

    Raises:
        NormalizationError: If there is no brain or no contrast; report such a case.
    """
    zscore(image)
    brain = image[image != 0]
    low, high = (float(limit) for limit in np.percentile(brain, (0.5, 99.5)))
    mean, variance = _moments(np.clip(brain, low, high))
    if variance == 0.0:
        raise NormalizationError("is constant inside the brain")
    return Scaling(mean, math.sqrt(variance), low, high)


def _is_narrow(image: Num[np.ndarray, "plane row column"]) -> bool:
    return image.dtype.kind in "iu" and image.dtype.itemsize <= 2


def _exact_moments(image: Num[np.ndarray, "plane row column"]) -> tuple[float, float]:
    """Return mean and variance of what is not 0, rounded once from the exact values.

    Plane by plane the sums of 16-bit integers and of their squares are whole numbers below 2**53,
    which double precision holds exactly whatever order it adds them in; zeros add nothing.
    """
    count, total, squares = int(np.count_nonzero(image)), 0, 0
    for plane in image:
        values = plane.ravel().astype(np.float64)
        total += int(values.sum())
        squares += int(values @ values)
    return total / count, (count * squares - total**2) / count**2


def _moments(values: Num[np.ndarray, " voxel"]) -> tuple[float, float]:
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        raise NormalizationError("has voxels that are not finite")
    return float(exact.mean()), float(exact.var())


NORMALIZATIONS: Final[dict[str, Callable[[Num[np.ndarray, "plane row column"]], Scaling]]] = {
    "zscore": zscore,
    "percentile": percentile,
}


def make_scaler(
    image: Num[np.ndarray, "plane row column"], scaling: Scaling
) -> Callable[[Num[np.ndarray, "*grid"]], Float16[np.ndarray, "*grid"]]:
    """Give the function that scales any part of one modality.

    Scanners give integers of a few thousand values. Scaling each value once and looking voxels up
    gives the same numbers several times faster.

    Args:
        image: The modality in scanner units.
        scaling: As it was fitted to the modality.

    Returns:
        A function from intensities to normalised intensities, 0 where they are 0.
    """
    if image.dtype.kind not in "iu":
        return partial(_scale, scaling=scaling)
    low, high = int(image.min(initial=0)), int(image.max(initial=0))
    if high - low >= MAX_TABLE:
        return partial(_scale, scaling=scaling)
    # In the order of Python's indices: 0, 1, ... and then those that count from the end.
    values = np.concatenate([np.arange(high + 1), np.arange(low, 0)]).astype(image.dtype)
    return partial(_scale(values, scaling).take, mode="wrap")


def _scale(values: Num[np.ndarray, "*grid"], scaling: Scaling) -> Float16[np.ndarray, "*grid"]:
    """Clip, centre and scale what is not 0, in double precision, and round once."""
    inside = values[values != 0]
    clipped = np.clip(inside, scaling.low, scaling.high) if np.isfinite(scaling.low) else inside
    scaled = np.zeros(values.shape, np.float16)
    scaled[values != 0] = (clipped - scaling.mean) / scaling.std
    return scaled
