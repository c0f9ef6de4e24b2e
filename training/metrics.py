"""Scores of one case against its truth, by named conventions.

Formulas leave cases without a value: what is the Dice of two empty masks? A convention decides that,
and what a region's score is at all. Scores of different conventions cannot be compared.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, UInt8

from cache_schema.geometry import Spacing
from cache_schema.vocabulary import REGIONS
from training.lesions import lesion_score
from training.surface import hd95_mm

METRICS: Final = ("dice", "hd95_mm", "sensitivity", "specificity")
"""Keys of a region's scores, in this order everywhere."""

DEFAULT_CONVENTION: Final = "brats2020"

NO_SURFACE_MM: Final = 373.1287
"""HD95 if exactly one of two masks is empty: the diagonal of 240 x 240 x 155 voxels of 1 mm, about."""

RegionScores = dict[str, float]
"""Each of `METRICS` of one region."""

Scores = Mapping[str, Mapping[str, float]]
"""By metric, then region."""


@dataclass(frozen=True)
class Overlap:
    """How many voxels two masks agree on: true and false, positive and negative."""

    tp: int
    fp: int
    fn: int
    tn: int


def count_overlap(
    truth: Bool[np.ndarray, "*space"], prediction: Bool[np.ndarray, "*space"]
) -> Overlap:
    """Count the voxels of two masks in the same grid."""
    tp = int(np.count_nonzero(truth & prediction))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return Overlap(tp, fp, fn, truth.size - tp - fp - fn)


def region_mask(label: UInt8[np.ndarray, "*space"], region: str) -> Bool[np.ndarray, "*space"]:
    """Mark the voxels of a region, `ET`, `TC` or `WT`, in a label map."""
    return np.isin(label, REGIONS[region])


def score_brats2020(
    truth: Bool[np.ndarray, "depth height width"],
    prediction: Bool[np.ndarray, "depth height width"],
    spacing_mm: Spacing,
) -> RegionScores:
    r"""Score a region as BraTS 2020 did: every case counts, also where the truth is empty.

    $$ D = \frac{2 TP}{2 TP + FP + FN}, \quad
    \text{sensitivity} = \frac{TP}{TP + FN}, \quad \text{specificity} = \frac{TN}{TN + FP} $$

    Two empty masks have Dice 1, HD95 0 and sensitivity 1. If only one is empty, HD95 is 373.1287, and
    Dice is 0 as it is. Where the truth alone is empty, sensitivity is 0. Without a negative voxel
    nothing can be taken for tumour by mistake, so specificity is 1. Bakas et al. (2018),
    arXiv:1811.02629.

    Args:
        truth: The annotated voxels of a whole case.
        prediction: The predicted voxels, in the same grid.
        spacing_mm: Of that grid.

    Returns:
        A finite number for each of `METRICS`.
    """
    scores = score_nan_drop(truth, prediction, spacing_mm)
    is_both_empty = not truth.any() and not prediction.any()
    instead = {
        "dice": 1.0,
        "hd95_mm": 0.0 if is_both_empty else NO_SURFACE_MM,
        "sensitivity": float(is_both_empty),
        "specificity": 1.0,
    }
    return {m: instead[m] if math.isnan(scores[m]) else scores[m] for m in METRICS}


def score_nan_drop(
    truth: Bool[np.ndarray, "depth height width"],
    prediction: Bool[np.ndarray, "depth height width"],
    spacing_mm: Spacing,
) -> RegionScores:
    """Score a region where the formulas of `score_brats2020` give a value, and NaN elsewhere.

    A mean over cases leaves NaN out and must tell how many cases are left. Undefined are the Dice of two
    empty masks, the HD95 if either is empty, the sensitivity if the truth is empty, and the
    specificity if it fills the volume.

    Args:
        truth: The annotated voxels of a whole case.
        prediction: The predicted voxels, in the same grid.
        spacing_mm: Of that grid.
    """
    overlap = count_overlap(truth, prediction)
    has_both = truth.any() and prediction.any()
    return {
        "dice": _divide(2 * overlap.tp, 2 * overlap.tp + overlap.fp + overlap.fn),
        "hd95_mm": hd95_mm(truth, prediction, spacing_mm) if has_both else math.nan,
        "sensitivity": _divide(overlap.tp, overlap.tp + overlap.fn),
        "specificity": _divide(overlap.tn, overlap.tn + overlap.fp),
    }


def score_lesionwise2023(
    truth: Bool[np.ndarray, "depth height width"],
    prediction: Bool[np.ndarray, "depth height width"],
    spacing_mm: Spacing,
) -> RegionScores:
    """Score a region as BraTS 2023 did: Dice and HD95 by lesion, the rest of the whole volume.

    `training.lesions` says how. Sensitivity and specificity are those of `score_brats2020`.

    Args:
        truth: The annotated voxels of a whole case.
        prediction: The predicted voxels, in the same grid.
        spacing_mm: Of that grid.
    """
    overlap = count_overlap(truth, prediction)
    is_both_empty = not truth.any() and not prediction.any()
    lesions = lesion_score(truth, prediction, spacing_mm)
    return {
        "dice": lesions.dice,
        "hd95_mm": lesions.hd95_mm,
        "sensitivity": _divide(overlap.tp, overlap.tp + overlap.fn, otherwise=float(is_both_empty)),
        "specificity": _divide(overlap.tn, overlap.tn + overlap.fp, otherwise=1.0),
    }


def _divide(part: int, whole: int, *, otherwise: float = math.nan) -> float:
    return part / whole if whole else otherwise


Convention = Callable[
    [
        Bool[np.ndarray, "depth height width"],
        Bool[np.ndarray, "depth height width"],
        Spacing,
    ],
    RegionScores,
]

CONVENTIONS: Final[dict[str, Convention]] = {
    "brats2020": score_brats2020,
    "nan-drop": score_nan_drop,
    "lesionwise2023": score_lesionwise2023,
}
"""What `--convention` knows: a function from truth, prediction and spacing to a region's scores."""


def score_case(
    truth: UInt8[np.ndarray, "depth height width"],
    prediction: UInt8[np.ndarray, "depth height width"],
    spacing_mm: Spacing,
    convention: str = DEFAULT_CONVENTION,
) -> dict[str, dict[str, float]]:
    """Score every region of a case.

    Args:
        truth: BraTS values of the whole volume.
        prediction: BraTS values in the same grid.
        spacing_mm: Of that grid.
        convention: A key of `CONVENTIONS`.

    Returns:
        By metric, then region.
    """
    score = CONVENTIONS[convention]
    regions = {
        region: score(region_mask(truth, region), region_mask(prediction, region), spacing_mm)
        for region in REGIONS
    }
    return {m: {region: regions[region][m] for region in REGIONS} for m in METRICS}
