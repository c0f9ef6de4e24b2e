import numpy as np
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.metrics import dice, mean_dice, region_dice, region_mask

LABELS = st.sampled_from([0, 1, 2, 4])


def test_dice_of_a_hand_counted_overlap():
    truth = np.array([1, 1, 1, 0, 0], bool)
    prediction = np.array([0, 1, 1, 1, 0], bool)
    assert dice(truth, prediction) == 2 * 2 / (3 + 3)
    assert dice(truth, np.array([1, 0, 0, 0, 0], bool)) == 2 * 1 / (3 + 1)


def test_an_empty_truth_scores_one_for_an_empty_prediction_and_zero_for_any_other():
    nothing, something = np.zeros(4, bool), np.array([0, 0, 0, 1], bool)
    assert dice(nothing, nothing) == 1.0
    assert dice(nothing, something) == 0.0
    assert dice(something, nothing) == 0.0


def test_regions_unite_labels_as_brats_does():
    label = np.array([0, 1, 2, 4], np.uint8)
    assert region_mask(label, "ET").tolist() == [False, False, False, True]
    assert region_mask(label, "TC").tolist() == [False, True, False, True]
    assert region_mask(label, "WT").tolist() == [False, True, True, True]


def test_a_core_taken_for_oedema_costs_the_core_but_not_the_whole_tumour():
    truth = np.array([1, 1, 2, 4], np.uint8)
    prediction = np.array([2, 2, 2, 4], np.uint8)
    assert region_dice(truth, prediction) == {"ET": 1.0, "TC": 2 * 1 / (3 + 1), "WT": 1.0}


def test_the_average_is_over_regions():
    assert mean_dice({"ET": 0.3, "TC": 0.6, "WT": 0.9}) == 0.6


@settings(deadline=None, max_examples=50)
@given(arrays(np.uint8, (3, 5, 7), elements=LABELS), arrays(np.uint8, (3, 5, 7), elements=LABELS))
def test_dice_agrees_with_simpleitk(truth, prediction):
    filter_ = sitk.LabelOverlapMeasuresImageFilter()
    for region, value in region_dice(truth, prediction).items():
        masks = [region_mask(label, region).astype(np.uint8) for label in (truth, prediction)]
        if masks[0].any() or masks[1].any():
            filter_.Execute(*(sitk.GetImageFromArray(mask) for mask in masks))
            expected = filter_.GetDiceCoefficient(1) if masks[0].any() and masks[1].any() else 0.0
            assert abs(value - expected) < 1e-12
