"""HD95 by hand, and against two libraries on 1,000 pairs of masks."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from training.surface import bounding_box, hd95_mm, surface

ISOTROPIC = (1.0, 1.0, 1.0)
EXACT = (0.5, 0.75, 1.0, 1.25, 2.0, 3.0)  # their squares have no rounding in float32


def voxels(shape, *places):
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def random_pairs(number, seed=0):
    """Blobs and noise of odd, unequal shapes, alone and together, never empty."""
    rng = np.random.default_rng(seed)
    while number:
        shape = tuple(rng.choice([3, 5, 7, 9, 11, 13], 3, replace=False))
        spacing = tuple(float(s) for s in rng.choice(EXACT, 3, replace=False))
        smooth = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 1, 1, 1))
        masks = smooth > np.quantile(smooth, rng.uniform(0.3, 0.99))
        masks |= rng.random((2, *shape)) < rng.choice([0.0, 0.02])
        if masks[0].any() and masks[1].any():
            number -= 1
            yield masks[0], masks[1], spacing


def hd95_by_simpleitk(truth, prediction, spacing):
    """Take contours and Maurer's distance maps instead; percentiles by sorting."""

    def contour_and_map(mask):
        image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        contour = sitk.LabelContour(image, fullyConnected=False)
        squares = sitk.SignedMaurerDistanceMap(
            contour, squaredDistance=True, useImageSpacing=True, insideIsPositive=False
        )
        away = np.sqrt(np.abs(sitk.GetArrayFromImage(squares).astype(np.float64)))
        return sitk.GetArrayFromImage(contour) > 0, away

    (first, from_first), (second, from_second) = map(contour_and_map, (truth, prediction))

    def percentile(distances):
        ordered = np.sort(distances)
        place = 0.95 * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        return low + (high - low) * (place - math.floor(place))

    return max(percentile(from_second[first]), percentile(from_first[second]))


@pytest.fixture
def _one_thread():
    """Tiny images take longest to hand to threads."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    yield
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
def test_1000_random_pairs_agree_with_simpleitk_and_monai():
    monai = pytest.importorskip("monai.metrics")
    for truth, prediction, spacing in random_pairs(1000):
        ours = hd95_mm(truth, prediction, spacing)
        assert ours == pytest.approx(hd95_by_simpleitk(truth, prediction, spacing), rel=1e-9)
        theirs = monai.compute_hausdorff_distance(
            prediction[None, None], truth[None, None], percentile=95, spacing=[spacing]
        ).item()
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_two_voxels_are_as_far_apart_as_spacing_says():
    truth, prediction = voxels((5, 7, 9), (1, 2, 3)), voxels((5, 7, 9), (2, 4, 6))
    assert hd95_mm(truth, prediction, ISOTROPIC) == math.sqrt(1 + 4 + 9)
    assert hd95_mm(truth, prediction, (5.0, 2.0, 1.0)) == math.sqrt(25 + 16 + 9)
    assert hd95_mm(truth, truth, (5.0, 2.0, 1.0)) == 0.0


def test_the_larger_of_both_directions_counts_and_not_all_distances_together():
    # All 40 voxels of the truth touch the prediction; of the prediction's 44, four are 10 mm away.
    truth = voxels((1, 1, 60), (0, 0, slice(0, 40)))
    prediction = truth | voxels((1, 1, 60), (0, 0, slice(49, 53)))
    away = [0.0] * 40 + [10.0, 11.0, 12.0, 13.0]
    expected = np.percentile(away, 95)
    assert expected > 0
    assert np.percentile([0.0] * 40 + away, 95) < expected
    assert hd95_mm(truth, prediction, ISOTROPIC) == expected
    assert hd95_mm(prediction, truth, ISOTROPIC) == expected


def test_a_stray_voxel_in_a_hundred_does_not_decide():
    truth = voxels((1, 1, 200), (0, 0, slice(0, 100)))
    assert hd95_mm(truth, truth | voxels((1, 1, 200), (0, 0, 199)), ISOTROPIC) == 0.0


def test_inner_voxels_are_no_surface_and_those_at_the_edge_of_the_volume_are():
    full = np.ones((3, 5, 7), bool)
    inside = np.zeros_like(full)
    inside[1, 1:4, 1:6] = True
    np.testing.assert_array_equal(surface(full), ~inside)


def test_voxels_that_touch_the_outside_by_an_edge_only_are_no_surface():
    mask = np.ones((3, 3, 3), bool)
    mask[0, 0, 1] = False  # shares an edge with the centre, and a face with [0, 0, 0]
    assert not surface(mask)[1, 1, 1]
    mask[0, 1, 1] = False  # shares a face with it
    assert surface(mask)[1, 1, 1]


def test_a_whole_volume_against_a_voxel():
    # The surface of a 3 x 3 x 3 volume is all but its centre, which is the other mask.
    full, centre = np.ones((3, 3, 3), bool), voxels((3, 3, 3), (1, 1, 1))
    distances = [1.0] * 6 + [math.sqrt(2)] * 12 + [math.sqrt(3)] * 8
    assert hd95_mm(full, centre, ISOTROPIC) == pytest.approx(np.percentile(distances, 95))


def test_where_a_pair_lies_in_the_volume_does_not_matter():
    truth, prediction, spacing = next(random_pairs(1))
    moved = [np.pad(mask, ((4, 1), (0, 7), (2, 3))) for mask in (truth, prediction)]
    assert hd95_mm(*moved, spacing) == hd95_mm(truth, prediction, spacing)


def test_an_empty_mask_has_no_distance():
    with pytest.raises(ValueError, match="empty"):
        hd95_mm(np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool), ISOTROPIC)


def test_a_bounding_box_is_the_smallest_that_holds_all():
    mask = voxels((6, 7, 8), (1, 2, 3), (4, 2, 7))
    assert bounding_box(mask) == (slice(1, 5), slice(2, 3), slice(3, 8))
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((2, 2), bool))
