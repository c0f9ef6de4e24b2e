"""Scores of one case against its truth, by the conventions of BraTS."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, UInt8

from cache_schema.vocabulary import REGIONS


def region_mask(label: UInt8[np.ndarray, "*space"], region: str) -> Bool[np.ndarray, "*space"]:
    """Mark the voxels of a region, `ET`, `TC` or `WT`, in a label map."""
    return np.isin(label, REGIONS[region])


def dice(truth: Bool[np.ndarray, "*space"], prediction: Bool[np.ndarray, "*space"]) -> float:
    r"""Compute the Dice overlap of two masks, with the convention of BraTS 2020 for empty truths.

    $$ D = \frac{2 |T \cap P|}{|T| + |P|} $$

    Where the truth is empty, an empty prediction scores 1 and any other scores 0, so that no case is
    dropped from a mean. Bakas et al. (2018), arXiv:1811.02629.

    Args:
        truth: The annotated voxels of a whole case.
        prediction: The predicted voxels, in the same grid.

    Returns:
        From 0 to 1.
    """
    total = np.count_nonzero(truth) + np.count_nonzero(prediction)
    return 1.0 if total == 0 else 2.0 * np.count_nonzero(truth & prediction) / total


def region_dice(
    truth: UInt8[np.ndarray, "*space"], prediction: UInt8[np.ndarray, "*space"]
) -> dict[str, float]:
    """Compute the Dice of every region of two label maps in the same grid."""
    return {
        region: dice(region_mask(truth, region), region_mask(prediction, region))
        for region in REGIONS
    }


def mean_dice(scores: Mapping[str, float]) -> float:
    """Average the regions of one case, as the paper's column `Average` does."""
    return float(np.mean([scores[region] for region in REGIONS]))
