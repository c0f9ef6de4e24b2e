"""Test cases in pictures: which ones, which way up, and what is painted where."""

import math
from dataclasses import replace

import numpy as np
import pytest

from cache_schema.geometry import radiological
from training.data.volumes import CaseVolume, VolumeDataset
from training.report.panels import _picture, case_panels, choose_cases, paint, panel_figure
from training.report.picture import LABEL_COLOURS
from training.scores import Evaluation

ET = LABEL_COLOURS["ET"]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def tests_of(small_cache):
    return VolumeDataset(small_cache, split="test")


def test_the_front_is_up_and_a_mask_is_painted():
    image = np.zeros((3, 2), np.float32)
    image[2, 0] = 5.0  # last along the first axis (left), first along the second (front)
    image[0, 1] = 1.0
    mask = np.zeros((3, 2), np.bool_)
    mask[1, 1] = True
    painted = paint(radiological(image, LPS), radiological(mask, LPS), ET)
    assert painted.shape == (2, 3, 3)
    assert painted[0, 2].tolist() == [1.0, 1.0, 1.0]
    assert painted[0, 0].tolist() == [0.0, 0.0, 0.0]
    red, green, blue = (int(ET[i : i + 2], 16) / 255 for i in (1, 3, 5))
    np.testing.assert_allclose(painted[1, 1], [0.65 * red, 0.65 * green, 0.65 * blue])


STORED = {
    "LPS": (lambda plane: plane, np.diag([-1.0, -2.0, 5.0, 1.0])),
    "RPS": (lambda plane: plane[..., ::-1, :], np.diag([1.0, -2.0, 5.0, 1.0])),
    "RAS": (lambda plane: plane[..., ::-1, ::-1], np.diag([1.0, 2.0, 5.0, 1.0])),
    "PLS": (
        lambda plane: plane.swapaxes(-1, -2),
        np.array([[0, -1.0, 0, 0], [-2.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]]),
    ),
}
"""The same head with other axes: how its planes (i to the left, j to the back) are stored, and its affine."""


def stored_head(axes, plane=(6, 7)):
    """A head of 5 x 4 voxels with its tumour at the left front, in a padded plane."""
    store, affine = STORED[axes]
    head, label = np.full((4, 5, 4), 0.5, np.float16), np.zeros((5, 4), np.uint8)
    head[3, 0, 0], label[4, 0], label[3, 1] = 9.0, 4, 2
    stored, labels = store(head), store(label)
    i, j = labels.shape
    image, truth = np.zeros((1, 4, *plane), np.float16), np.zeros((1, *plane), np.uint8)
    image[0, :, :i, :j], truth[0, :i, :j] = stored, labels
    return CaseVolume("a", "p", "brats2018", image, truth, np.array([3]), affine, (i, j, 9))


def picture_of(volume, scored_as):
    (score,) = scored_as("mine", ("p", "brats2018", (0.5, 0.5, 0.5), 1.0)).scored.evaluation.scores
    return _picture("Only", score, volume, lambda volume, index: volume.label[index] // 4 * 4)


@pytest.mark.parametrize("axes", list(STORED)[1:])
def test_a_head_looks_the_same_whatever_axes_it_is_stored_with(axes, scored_as):
    expected = picture_of(stored_head("LPS"), scored_as)
    assert picture_of(stored_head(axes), scored_as) == expected
    mirrored = replace(stored_head(axes), affine=np.diag([-1, 1, 1, 1]) @ STORED[axes][1])
    assert picture_of(mirrored, scored_as) != expected


def test_voxels_that_are_not_square_keep_their_shape():
    images = {"FLAIR": np.zeros((3, 2), np.float32), "T1CE": np.zeros((3, 2), np.float32)}
    nothing = np.zeros((3, 2), np.uint8)
    axes = panel_figure(images, nothing, nothing, 1.5).axes
    assert {each.get_aspect() for each in axes} == {1.5}


def test_each_label_is_painted_by_itself_in_truth_and_prediction():
    truth, prediction = np.zeros((3, 2), np.uint8), np.zeros((3, 2), np.uint8)
    truth[0, 0], truth[1, 0], prediction[1, 0], prediction[2, 1] = 1, 2, 2, 4
    images = {"FLAIR": np.zeros((3, 2), np.float32), "T1CE": np.zeros((3, 2), np.float32)}
    axes = panel_figure(images, truth, prediction).axes
    painted = {each.get_title(): each.images[0].get_array().any(axis=2) for each in axes}
    expected = {
        "FLAIR": [],
        "T1CE": [],
        "they differ": [[0, 0], [2, 1]],
        "NEC truth": [[0, 0]],
        "ED truth": [[1, 0]],
        "ET truth": [],
        "NEC prediction": [],
        "ED prediction": [[1, 0]],
        "ET prediction": [[2, 1]],
    }
    assert {name: np.argwhere(mask).tolist() for name, mask in painted.items()} == expected


def test_the_best_the_median_and_the_worst_patient_are_chosen_once_each(scored_as):
    dice = {"a": 0.75, "b": 0.25, "c": 0.5, "d": 0.625, "e": math.nan}
    cases = [
        (patient, cohort, (0.0, 0.0, wt), 1.0)
        for patient, wt in dice.items()
        for cohort in ("brats2018", "brats2020")
    ]
    scores = scored_as("mine", *cases).scored.evaluation.scores
    chosen = choose_cases(scores)
    assert {rank: score.patient_id for rank, score in chosen.items()} == {
        "Best": "a",
        "Median": "c",
        "Worst": "b",
    }
    assert list(choose_cases(scores[:4])) == ["Best", "Worst"]
    assert list(choose_cases(scores[:2])) == ["Only"]
    assert choose_cases(scores[-2:]) == {}


def test_the_worst_case_is_shown_even_if_its_patient_has_better_ones(scored_as):
    cases = [("a", 0.9), ("b", 0.1), ("b", 0.8), ("c", 0.7), ("a", 0.6)]
    cohorts = ("brats2018", "brats2018", "brats2020", "brats2018", "brats2019")
    rows = [
        (p, cohort, (0.0, 0.0, wt), 1.0) for (p, wt), cohort in zip(cases, cohorts, strict=True)
    ]
    chosen = choose_cases(scored_as("mine", *rows).scored.evaluation.scores)
    assert {rank: score.values["dice"]["WT"] for rank, score in chosen.items()} == {
        "Best": 0.9,
        "Median": 0.7,
        "Worst": 0.1,
    }


def test_a_scored_case_is_shown_with_its_scores(scored_record, tests_of):
    (picture,) = case_panels(scored_record, tests_of, "cpu")
    assert picture.title.startswith("Only: ")
    assert " true and " in picture.alternative
    assert picture.address.startswith("data:image/png;base64,")
    assert case_panels(scored_record, tests_of, "cpu") == [picture]


def test_nothing_is_shown_of_a_run_without_scores(scored_record, tests_of):
    assert case_panels(replace(scored_record, scored=None), tests_of, "cpu") == []


@pytest.mark.parametrize("rules", [{"tta": True}, {"postprocess_et": 10**6}])
def test_the_prediction_follows_the_rules_of_the_scores(
    rules, scored_record, tests_of, monkeypatch
):
    asked = []

    def predict(model, image, target, **given):
        asked.append((len(image), given))
        return np.zeros((len(image), *image.shape[2:]), np.uint8)

    monkeypatch.setattr("training.report.panels.predict_labels", predict)
    scored = scored_record.scored
    evaluation: Evaluation = replace(scored.evaluation, **rules)
    case_panels(
        replace(scored_record, scored=replace(scored, evaluation=evaluation)), tests_of, "cpu"
    )
    ((num_slices, given),) = asked
    assert rules.items() <= given.items()
    assert (num_slices > 1) == ("postprocess_et" in rules)
