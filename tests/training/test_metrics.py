"""Overlap by hand and against SimpleITK; every convention where the formulas have no value."""

import math

import numpy as np
import pytest
import SimpleITK as sitk

from training.metrics import (
    CONVENTIONS,
    METRICS,
    count_overlap,
    region_mask,
    score_brats2020,
    score_case,
    score_lesionwise2023,
    score_nan_drop,
)

MM = (1.0, 1.0, 1.0)
SHAPE = (3, 5, 7)
NOTHING, EVERYTHING = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
VOXEL = NOTHING.copy()
VOXEL[1, 2, 3] = True
OTHER = NOTHING.copy()
OTHER[2, 4, 6] = True
NAN = math.nan


def row(*values):
    """Name values in the order of `METRICS`; nan is itself."""
    return pytest.approx(dict(zip(METRICS, values, strict=True)), nan_ok=True)


def test_hand_counted_voxels_give_hand_computed_scores():
    truth, prediction = NOTHING.copy(), NOTHING.copy()
    truth[1, 2, 0:5] = True  # 5 voxels of 105
    prediction[1, 2, 3:6] = True  # 2 of them, and one more
    overlap = count_overlap(truth, prediction)
    assert (overlap.tp, overlap.fp, overlap.fn, overlap.tn) == (2, 1, 3, 99)
    # Forth 3, 2, 1, 0, 0 and back 0, 0, 1: the larger 95th percentile is 2 + 0.8 x (3 - 2).
    expected = row(2 * 2 / (5 + 3), 2.8, 2 / 5, 99 / 100)
    assert score_brats2020(truth, prediction, MM) == expected
    assert score_nan_drop(truth, prediction, MM) == expected


BOTH = {
    "two voxels apart": (VOXEL, OTHER, row(0.0, math.sqrt(1 + 4 + 9), 0.0, 103 / 104)),
    "the same voxel": (VOXEL, VOXEL, row(1.0, 0.0, 1.0, 1.0)),
    # Of 105 voxels all but the inner 1 x 3 x 5 are surface; none is farther than a corner.
    "everything for a voxel": (
        VOXEL,
        EVERYTHING,
        row(2 * 1 / (1 + 105), math.sqrt(14), 1.0, 0.0),
    ),
}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("convention", ["brats2020", "nan-drop"])
def test_conventions_agree_where_the_formulas_have_values(name, convention):
    truth, prediction, expected = BOTH[name]
    assert CONVENTIONS[convention](truth, prediction, MM) == expected


def test_distances_are_in_millimetres_along_each_axis():
    spacing = (5.0, 0.5, 2.0)
    expected = math.sqrt(5**2 + 1**2 + 6**2)
    for score in (score_brats2020, score_nan_drop):
        assert score(VOXEL, OTHER, spacing)["hd95_mm"] == expected


EMPTY = {
    "brats2020": {
        "both empty": (NOTHING, NOTHING, row(1.0, 0.0, 1.0, 1.0)),
        "truth empty": (NOTHING, VOXEL, row(0.0, 373.1287, 0.0, 104 / 105)),
        "prediction empty": (VOXEL, NOTHING, row(0.0, 373.1287, 0.0, 1.0)),
        "truth everywhere": (EVERYTHING, EVERYTHING, row(1.0, 0.0, 1.0, 1.0)),
        "prediction everywhere": (NOTHING, EVERYTHING, row(0.0, 373.1287, 0.0, 0.0)),
        "truth everywhere, prediction empty": (
            EVERYTHING,
            NOTHING,
            row(0.0, 373.1287, 0.0, 1.0),
        ),
    },
    "nan-drop": {
        "both empty": (NOTHING, NOTHING, row(NAN, NAN, NAN, 1.0)),
        "truth empty": (NOTHING, VOXEL, row(0.0, NAN, NAN, 104 / 105)),
        "prediction empty": (VOXEL, NOTHING, row(0.0, NAN, 0.0, 1.0)),
        "truth everywhere": (EVERYTHING, EVERYTHING, row(1.0, 0.0, 1.0, NAN)),
        "prediction everywhere": (NOTHING, EVERYTHING, row(0.0, NAN, NAN, 0.0)),
        "truth everywhere, prediction empty": (EVERYTHING, NOTHING, row(0.0, NAN, 0.0, NAN)),
    },
    "lesionwise2023": {
        "both empty": (NOTHING, NOTHING, row(1.0, 0.0, 1.0, 1.0)),
        "truth empty": (NOTHING, VOXEL, row(0.0, 374.0, 0.0, 104 / 105)),
        # A single voxel is no lesion that counts.
        "prediction empty": (VOXEL, NOTHING, row(1.0, 0.0, 0.0, 1.0)),
        "truth everywhere": (EVERYTHING, EVERYTHING, row(1.0, 0.0, 1.0, 1.0)),
        "prediction everywhere": (NOTHING, EVERYTHING, row(0.0, 374.0, 0.0, 0.0)),
        "truth everywhere, prediction empty": (EVERYTHING, NOTHING, row(0.0, 374.0, 0.0, 1.0)),
    },
}


@pytest.mark.parametrize("name", EMPTY["brats2020"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention_has_its_own_answer_where_formulas_have_none(convention, name):
    truth, prediction, expected = EMPTY[convention][name]
    assert CONVENTIONS[convention](truth, prediction, MM) == expected


def test_lesion_wise_sensitivity_and_specificity_are_those_of_the_whole_volume():
    truth, prediction = NOTHING.copy(), NOTHING.copy()
    truth[:, :, :4] = True  # 60 voxels
    prediction[:, :4, :5] = True  # 60 voxels, 48 of them in the truth
    scores = score_lesionwise2023(truth, prediction, MM)
    assert scores["dice"] == 2 * 48 / 120
    assert (scores["sensitivity"], scores["specificity"]) == (48 / 60, 33 / 45)


@pytest.mark.parametrize("convention", ["brats2020", "lesionwise2023"])
def test_conventions_of_the_challenges_always_give_a_number(convention):
    for truth in (NOTHING, VOXEL, EVERYTHING):
        for prediction in (NOTHING, OTHER, EVERYTHING):
            scores = CONVENTIONS[convention](truth, prediction, MM)
            assert list(scores) == list(METRICS)
            assert all(math.isfinite(value) for value in scores.values())


def test_overlap_of_1000_random_pairs_agrees_with_simpleitk():
    rng = np.random.default_rng(0)
    measures = sitk.LabelOverlapMeasuresImageFilter()
    for _ in range(1000):
        shape = tuple(rng.choice([3, 5, 7, 9, 11, 13], 3, replace=False))
        truth, prediction = rng.random((2, *shape)) < rng.uniform(0.02, 0.98, (2, 1, 1, 1))
        if not truth.any() or not prediction.any():
            continue
        images = (sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (prediction, truth))
        measures.Execute(*images)
        found = score_nan_drop(truth, prediction, MM)
        assert found["dice"] == pytest.approx(measures.GetDiceCoefficient(1), abs=1e-12)
        missed = measures.GetFalseNegativeError(1)
        assert found["sensitivity"] == pytest.approx(1 - missed, abs=1e-12)
        if not truth.all():
            false = np.count_nonzero(prediction & ~truth) / np.count_nonzero(~truth)
            assert found["specificity"] == pytest.approx(1 - false, abs=1e-12)


def test_regions_unite_labels_as_brats_does():
    label = np.array([0, 1, 2, 4], np.uint8)
    assert region_mask(label, "ET").tolist() == [False, False, False, True]
    assert region_mask(label, "TC").tolist() == [False, True, False, True]
    assert region_mask(label, "WT").tolist() == [False, True, True, True]


def test_a_core_taken_for_oedema_costs_the_core_but_not_the_whole_tumour():
    truth = np.array([1, 1, 2, 4], np.uint8).reshape(1, 1, 4)
    prediction = np.array([2, 2, 2, 4], np.uint8).reshape(1, 1, 4)
    scores = score_case(truth, prediction, (1.0, 1.0, 1.0))
    assert list(scores) == list(METRICS)
    assert scores["dice"] == {"ET": 1.0, "TC": 2 * 1 / (3 + 1), "WT": 1.0}
    assert scores["sensitivity"] == {"ET": 1.0, "TC": 1 / 3, "WT": 1.0}
    # The truth's core is at 0, 1, 3; the prediction's at 3: 3, 2 and 0 mm away.
    assert scores["hd95_mm"] == pytest.approx({"ET": 0.0, "TC": 2.9, "WT": 0.0})


def test_a_case_is_scored_by_the_convention_that_is_asked_for():
    label = np.zeros((2, 3, 4), np.uint8)
    assert score_case(label, label, MM, "brats2020")["dice"]["ET"] == 1.0
    assert math.isnan(score_case(label, label, MM, "nan-drop")["dice"]["ET"])
