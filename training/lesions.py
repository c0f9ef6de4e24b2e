"""Dice and HD95 by lesion, as the BraTS challenge of 2023 scored adult glioma."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

from cache_schema.geometry import Spacing
from training.surface import bounding_box, hd95_mm

NUM_DILATIONS: Final = 3
"""Steps of dilation that join parts of a lesion, and within which a prediction is credited to it."""

SMALLEST_MM3: Final = 50.0
"""Lesions up to this volume do not count, but what meets them is no false positive either."""

WORST_MM: Final = 374.0
"""The HD95 of a lesion that is missed, and of a false positive."""

_DILATION: Final = ndimage.generate_binary_structure(3, 2)  # 18 neighbours
_CONNECTED: Final = ndimage.generate_binary_structure(3, 3)  # 26 neighbours

Components = Int[np.ndarray, "depth height width"]


class LesionScore(NamedTuple):
    """Dice and HD95 of a case, averaged over lesions and false positives."""

    dice: float
    hd95_mm: float


@dataclass(frozen=True)
class Match:
    """Which predicted components belong to which lesion.

    Attributes:
        lesions: Number of each voxel's lesion, from 1; 0 for none.
        components: Number of each voxel's predicted component, from 1; 0 for none.
        meets: Whether a lesion (row) has a component (column) within its dilation; both from 0, the
            background, whose row and column stay False.
    """

    lesions: Components
    components: Components
    meets: Bool[np.ndarray, "lesion component"]

    @property
    def num_false_positives(self) -> int:
        """Count the predicted components that meet no lesion."""
        return int(np.count_nonzero(~self.meets[:, 1:].any(axis=0)))


def lesion_score(
    truth: Bool[np.ndarray, "depth height width"],
    prediction: Bool[np.ndarray, "depth height width"],
    spacing_mm: Spacing,
) -> LesionScore:
    r"""Score a region lesion by lesion.

    With L the lesions of more than 50 mm^3 and F the number of predicted components that meet no
    lesion at all,

    $$ D = \frac{\sum_{l \in L} D_l}{|L| + F}, \qquad
    H = \frac{\sum_{l \in L} H_l + 374 F}{|L| + F} $$

    where D_l and H_l compare a lesion with the union of the components that belong to it; a missed
    lesion has 0 and 374. If there is nothing to divide by, D is 1 and H is 0. As in the challenge's
    evaluation, https://github.com/rachitsaluja/BraTS-2023-Metrics, but for HD95 itself: the challenge
    weights surface elements by their area, `training.surface` counts surface voxels.

    Args:
        truth: The annotated voxels of a whole case.
        prediction: The predicted voxels, in the same grid.
        spacing_mm: Of that grid.
    """
    if not truth.any() and not prediction.any():
        return LesionScore(1.0, 0.0)
    # Dilations that touch outside the box of both masks touch inside too: moving a place to the box
    # brings it no farther from anything in it.
    box = bounding_box(truth | prediction)
    match = match_lesions(truth[box], prediction[box])
    scores = list(_each_lesion(match, spacing_mm))
    count = len(scores) + match.num_false_positives
    if count == 0:
        return LesionScore(1.0, 0.0)
    penalty = WORST_MM * match.num_false_positives
    return LesionScore(
        sum(score.dice for score in scores) / count,
        (sum(score.hd95_mm for score in scores) + penalty) / count,
    )


def match_lesions(
    truth: Bool[np.ndarray, "depth height width"],
    prediction: Bool[np.ndarray, "depth height width"],
) -> Match:
    """Number lesions and predicted components, and find out which belong together.

    Parts of the truth are one lesion if their dilations touch. The dilation of a lesion is then one
    component of the dilated truth, so that a single dilation serves all lesions.
    """
    dilated = ndimage.binary_dilation(truth, _DILATION, iterations=NUM_DILATIONS)
    reach, num_lesions = ndimage.label(dilated, _CONNECTED)
    components, num_components = ndimage.label(prediction, _CONNECTED)
    meets = np.zeros((num_lesions + 1, num_components + 1), np.bool_)
    meets[reach[prediction], components[prediction]] = True
    meets[0] = False
    return Match(reach * truth, components, meets)


def _each_lesion(match: Match, spacing_mm: Spacing) -> Iterator[LesionScore]:
    """Score every lesion that is large enough to count."""
    voxels = np.bincount(match.lesions.ravel(), minlength=len(match.meets))
    volumes_mm3 = voxels * np.prod(spacing_mm)
    for lesion in range(1, len(match.meets)):
        if volumes_mm3[lesion] > SMALLEST_MM3:
            mine = match.meets[lesion][match.components]
            yield _one_lesion(match.lesions == lesion, mine, spacing_mm)


def _one_lesion(
    truth: Bool[np.ndarray, "depth height width"],
    prediction: Bool[np.ndarray, "depth height width"],
    spacing_mm: Spacing,
) -> LesionScore:
    if not prediction.any():
        return LesionScore(0.0, WORST_MM)
    total = np.count_nonzero(truth) + np.count_nonzero(prediction)
    dice = 2 * np.count_nonzero(truth & prediction) / total
    return LesionScore(float(dice), hd95_mm(truth, prediction, spacing_mm))
