"""Intensities of one modality: scanner units to numbers a network can learn from."""

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


def zscore(values: Num[np.ndarray, " voxel"]) -> Scaling:
    r"""Fit a z-score to the voxels of a brain.

    MR intensities have no physical unit, so each volume is its own reference:

    $$ z = \frac{x - \mu_{brain}}{\sigma_{brain}} $$

    As in nnU-Net, Isensee et al. (2021), doi:10.1038/s41592-020-01008-z.

    Args:
        values: Intensities inside the brain, in scanner units.

    Returns:
        Their mean and population standard deviation, summed in float64.

    Raises:
        NormalizationError: If there is no voxel or no contrast.
    """
    if values.size == 0:
        raise NormalizationError("is empty: every voxel is 0")
    exact = values.astype(np.float64)
    if values.dtype.kind not in "iu" and not np.isfinite(exact).all():
        raise NormalizationError("has voxels that are not finite")
    mean, std = float(exact.mean()), float(exact.std())
    if std == 0.0:
        raise NormalizationError("is constant inside the brain")
    return Scaling(mean, std)


def percentile(values: Num[np.ndarray, " voxel"]) -> Scaling:
    """Fit a z-score to brain voxels clipped to their 0.5th and 99.5th percentile.

    Clipping takes the weight from single bright vessels and artefacts, as nnU-Net does for CT.

    Args:
        values: Intensities inside the brain, in scanner units.

    Returns:
        Clipping limits, and mean and standard deviation after clipping.

    Raises:
        NormalizationError: If there is no voxel or no contrast.
    """
    zscore(values)
    low, high = (float(limit) for limit in np.percentile(values, (0.5, 99.5)))
    clipped = zscore(np.clip(values, low, high))
    return Scaling(clipped.mean, clipped.std, low, high)


NORMALIZATIONS: Final[dict[str, Callable[[Num[np.ndarray, " voxel"]], Scaling]]] = {
    "zscore": zscore,
    "percentile": percentile,
}


def normalize(
    image: Num[np.ndarray, "depth height width"], method: str
) -> tuple[Float16[np.ndarray, "depth height width"], Scaling]:
    """Scale one modality by the statistics of its own non-zero voxels.

    The background is exactly 0 afterwards, so that it stays recognisable.

    Args:
        image: One skull-stripped modality in scanner units; 0 is background.
        method: A key of `NORMALIZATIONS`.

    Returns:
        Normalised intensities, and the scaling that gave them.

    Raises:
        NormalizationError: If the modality is empty, constant or not finite; report such a case.
    """
    scaling = fit(image, method)
    return make_scaler(image, scaling)(image), scaling


def fit(image: Num[np.ndarray, "depth height width"], method: str) -> Scaling:
    """Fit a scaling to the non-zero voxels of one modality.

    Raises:
        NormalizationError: If the modality is empty, constant or not finite; report such a case.
    """
    return NORMALIZATIONS[method](image[image != 0])


def make_scaler(
    image: Num[np.ndarray, "depth height width"], scaling: Scaling
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
