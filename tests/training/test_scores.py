import math

import pytest

from cache_schema.vocabulary import REGIONS
from training.metrics import METRICS


def test_means_are_over_cases_by_cohort_and_over_all(evaluation):
    means = evaluation().means()
    assert list(means) == ["brats2018", "brats2020", "all"]
    assert means["brats2018"] == pytest.approx(
        {"ET": 0.3, "TC": 0.6, "WT": 0.9, "mean": 0.6, "cases": 2}
    )
    assert means["all"] == pytest.approx(
        {"ET": 0.2, "TC": 0.4, "WT": 0.8, "mean": 1.4 / 3, "cases": 3}
    )


def test_means_leave_out_what_has_no_value(holes):
    means = holes.means()
    assert means["brats2018"] == pytest.approx(
        {"ET": 0.4, "TC": 0.6, "WT": 0.9, "mean": 1.9 / 3, "cases": 2}
    )
    assert means["brats2020"] == pytest.approx(
        {"ET": math.nan, "TC": math.nan, "WT": 0.6, "mean": 0.6, "cases": 1}, nan_ok=True
    )


def test_the_summary_has_mean_median_interval_and_count_of_every_metric(evaluation):
    summary = evaluation().summary(seed=0)
    assert list(summary) == ["brats2018", "brats2020", "all"]
    every = summary["all"]
    assert (every["cases"], list(every)) == (3, ["cases", *METRICS])
    assert list(every["dice"]) == [*REGIONS, "average"]
    assert every["hd95_mm"]["ET"]["mean"] == pytest.approx((1 + 1 + 373.1287) / 3)
    assert every["hd95_mm"]["ET"]["median"] == 1.0
    assert every["dice"]["average"]["mean"] == pytest.approx(evaluation().means()["all"]["mean"])
    assert every["dice"]["WT"]["low"] < 0.8 < every["dice"]["WT"]["high"]
    assert every["dice"]["WT"]["count"] == 3


def test_the_two_cases_of_one_patient_are_drawn_together(evaluation):
    # In brats2018 there is one patient, so there is nothing to draw from.
    dice = evaluation().summary(seed=0)["brats2018"]["dice"]["TC"]
    assert (dice["low"], dice["high"]) == (pytest.approx(0.6), pytest.approx(0.6))


def test_the_summary_counts_the_cases_that_have_a_value(holes):
    summary = holes.summary(seed=0)
    assert summary["brats2018"]["dice"]["ET"]["count"] == 1
    assert summary["brats2018"]["dice"]["TC"]["count"] == 2
    assert summary["brats2020"]["hd95_mm"]["ET"]["count"] == 0
    assert math.isnan(summary["brats2020"]["hd95_mm"]["ET"]["mean"])
