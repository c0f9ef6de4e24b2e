"""Both statistics against closed forms, and against what the paper concludes from its own table."""

import math
import statistics

import numpy as np
import pytest

from training.ablate import ROWS
from training.statistics import kolmogorov_smirnov, standard_deviation, variance_below


def test_the_deviation_is_that_of_a_sample():
    assert standard_deviation([80.0, 81.0, 81.0, 82.0, 86.0]) == pytest.approx(math.sqrt(22 / 4))


def test_the_variance_test_is_the_lower_tail_with_one_degree_of_freedom_less_than_scores():
    # Deviations from 82 are -2, -1, -1, 0, 4: their squares sum to 22, over 2^2. With four degrees
    # of freedom the chi-squared distribution has a closed form.
    result = variance_below([80.0, 81.0, 81.0, 82.0, 86.0])
    assert result.statistic == pytest.approx(22 / 4)
    assert result.p_value == pytest.approx(1 - math.exp(-2.75) * (1 + 2.75))


def test_a_larger_threshold_makes_the_same_spread_smaller():
    scores = [70.0, 72.0, 77.0]  # squares sum to 26, two degrees of freedom
    assert variance_below(scores, 4.0).p_value == pytest.approx(1 - math.exp(-26 / 16 / 2))
    assert variance_below(scores, 4.0).p_value < variance_below(scores).p_value


def test_the_gap_to_a_normal_distribution_is_taken_after_standardising():
    # Mean 81 and deviation sqrt(5): four of five scores lie below or at z = -1 / sqrt(5).
    result = kolmogorov_smirnov([80.0, 80.0, 80.0, 80.0, 85.0])
    below = statistics.NormalDist().cdf(-1 / math.sqrt(5))
    assert result.statistic == pytest.approx(0.8 - below)


def test_the_p_of_the_gap_is_that_of_uniform_samples_of_the_same_size():
    result = kolmogorov_smirnov([80.0, 80.0, 80.0, 80.0, 85.0])
    samples = np.sort(np.random.default_rng(0).random((40_000, 5)), axis=1)
    above, below = np.arange(1, 6) / 5 - samples, samples - np.arange(5) / 5
    gaps = np.maximum(above, below).max(axis=1)
    assert result.p_value == pytest.approx(np.mean(gaps >= result.statistic), abs=0.01)


def test_equal_scores_have_no_spread_and_no_normal_distribution():
    scores = [0.1 + 0.2] * 5  # a mean of these is not exactly the same number
    assert standard_deviation(scores) == 0.0
    assert (variance_below(scores).statistic, variance_below(scores).p_value) == (0.0, 0.0)
    assert kolmogorov_smirnov(scores) is None


def test_one_score_has_no_spread_to_speak_of():
    with pytest.raises(ValueError, match="at least two"):
        variance_below([80.0])


@pytest.mark.parametrize("region", ["ET", "TC", "WT"])
def test_the_published_table_gives_what_the_paper_concludes_from_it(region):
    scores = [row.published[region] for row in ROWS]
    assert variance_below(scores).p_value < 0.05
    assert kolmogorov_smirnov(scores).p_value > 0.05
