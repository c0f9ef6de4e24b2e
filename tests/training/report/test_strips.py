"""A point for each case."""

import math

import numpy as np
from matplotlib.figure import Figure

from training.report.strips import draw_strips, strip_charts


def drawn(scores, metric):
    axes = Figure(layout="constrained").subplots()
    draw_strips(scores, metric, metric)(axes)
    return [np.asarray(points.get_offsets()) for points in axes.collections]


def test_points_lie_at_their_cohort_and_a_case_without_a_value_has_none(scored_as):
    cases = [
        ("a", "brats2018", (0.25, 0.5, math.nan), 4.0),
        ("b", "brats2020", (0.75, 1.0, 0.125), 373.1287),
        ("c", "brats2020", (0.5, 1.0, 0.375), 2.0),
    ]
    scores = scored_as("mine", *cases).scored.evaluation.scores
    strips = drawn(scores, "dice")
    # ET and TC of 2018, whose WT has no value; ET, TC and WT of 2020.
    assert [sorted(points[:, 1].tolist()) for points in strips] == [
        *([0.25], [0.5], [0.5, 0.75], [1.0, 1.0], [0.125, 0.375]),
    ]
    assert [round(float(points[0, 0])) for points in strips] == [0, 0, 1, 1, 1]
    assert drawn(scores, "hd95_mm")[-1][:, 1].max() == 373.1287


def test_equal_scores_do_not_hide_each_other(scored_as):
    cases = [(str(k), "brats2018", (1.0, 1.0, 1.0), 0.0) for k in range(30)]
    (points, *_) = drawn(scored_as("mine", *cases).scored.evaluation.scores, "dice")
    assert len(np.unique(points[:, 0])) == 30
    assert np.ptp(points[:, 0]) < 0.2


def test_dice_and_hd95_are_drawn(scored_record):
    dice, hd95 = strip_charts(scored_record.scored.evaluation.scores)
    assert (dice.title, hd95.title) == ("Dice of each test case", "HD95 of each test case")
