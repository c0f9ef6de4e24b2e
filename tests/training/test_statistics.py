"""Every statistic against closed forms or SciPy, the paper's two also against what it concludes itself."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from training.ablate import ROWS
from training.statistics import (
    defined_mean,
    kolmogorov_smirnov,
    standard_deviation,
    summarise,
    variance_below,
    wilcoxon_signed_rank,
)

NAN = math.nan


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


def people(number):
    return [f"p{i}" for i in range(number)]


def test_a_mean_leaves_out_what_has_no_value():
    assert defined_mean([0.25, NAN, 0.75]) == 0.5
    assert math.isnan(defined_mean([NAN]))


def test_columns_and_their_average_are_summarised_by_hand():
    values = np.array([[0.0, 0.5], [0.3, 0.5], [0.9, 0.8]])
    first, second, average = summarise(values, people(3), seed=0)
    assert (first.mean, first.median, first.count) == (pytest.approx(0.4), 0.3, 3)
    assert (second.mean, second.median) == (pytest.approx(0.6), 0.5)
    assert average.mean == pytest.approx(0.5)
    assert average.median == pytest.approx(0.4)  # of 0.25, 0.4 and 0.85
    assert average.count == 3


def test_what_has_no_value_is_left_out_and_counted():
    values = np.array([[0.2, NAN], [NAN, NAN], [0.6, NAN]])
    first, second, average = summarise(values, people(3), seed=0)
    assert (first.mean, first.median, first.count) == (pytest.approx(0.4), pytest.approx(0.4), 2)
    assert second.count == 0
    assert all(math.isnan(x) for x in (second.mean, second.median, second.low, second.high))
    assert (average.mean, average.count) == (pytest.approx(0.4), 2)
    # Draws of the second case alone have no mean; of the others the ends are single cases.
    assert (first.low, first.high) == (0.2, 0.6)


def test_the_average_is_that_of_the_regions_and_not_that_of_the_cases():
    values = np.array([[0.0, NAN], [0.0, NAN], [0.0, 1.0]])
    average = summarise(values, people(3), seed=0)[-1]
    assert average.mean == 0.5  # of the regions' 0 and 1; the cases' 0, 0, 0.5 would give 1/6


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).beta(5, 2, size=(40, 1))
    found = summarise(values, people(40), seed=1)[0]
    oracle = stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    width = oracle.high - oracle.low
    assert found.low == pytest.approx(oracle.low, abs=0.04 * width)
    assert found.high == pytest.approx(oracle.high, abs=0.04 * width)


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(3)
    samples = [summarise(rng.uniform(size=(50, 1)), people(50), seed=0)[0] for _ in range(100)]
    assert 88 <= sum(sample.low <= 0.5 <= sample.high for sample in samples) <= 99


def test_two_cases_of_one_patient_are_no_more_evidence_than_one():
    values = np.random.default_rng(0).uniform(size=(20, 1))
    once = summarise(values, people(20), seed=0)[0]
    twice = summarise(np.repeat(values, 2, axis=0), people(20) * 2, seed=0)[0]
    doubled = np.concatenate([values, values])
    assert summarise(doubled, people(20) * 2, seed=0)[0].low == pytest.approx(once.low)
    assert twice.count == 40
    narrower = summarise(doubled, people(40), seed=0)[0]
    assert narrower.high - narrower.low < 0.8 * (once.high - once.low)


def test_the_same_seed_draws_the_same_interval():
    values = np.random.default_rng(0).uniform(size=(20, 3))
    assert summarise(values, people(20), seed=4) == summarise(values, people(20), seed=4)
    assert summarise(values, people(20), seed=4) != summarise(values, people(20), seed=5)


def test_a_single_case_has_an_interval_without_width():
    sample = summarise(np.array([[0.7]]), ["p"], seed=0)[0]
    assert (sample.low, sample.mean, sample.high) == (0.7, 0.7, 0.7)


def test_the_signed_ranks_of_six_gains_have_one_chance_in_32():
    first = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    second = first + np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    test = wilcoxon_signed_rank(first, second)
    assert test.p_value == pytest.approx(2 / 2**6)
    assert test.median_difference == pytest.approx(0.035)
    assert (test.num_patients, test.num_different) == (6, 6)
    assert wilcoxon_signed_rank(second, first).median_difference == pytest.approx(-0.035)


def test_signed_ranks_of_mixed_signs_by_hand():
    # Differences 1, 2, 3, -4: negative ranks sum to 4. Of 16 signs 7 have a sum of at most 4
    # (0; 1; 2; 3; 1+2; 4; 1+3), as many at least 6.
    test = wilcoxon_signed_rank(np.zeros(4), np.array([1.0, 2.0, 3.0, -4.0]))
    assert test.p_value == pytest.approx(14 / 16)


def test_ties_are_exact_too():
    # Ranks 1.5, 1.5, 3.5, 3.5 and signs +, +, +, -: the negative sum is 3.5. Of 16 signs, sums of at
    # most 3.5: none, 1.5 twice, 3.5 twice, 1.5 + 1.5 = 3.
    test = wilcoxon_signed_rank(np.zeros(4), np.array([1.0, 1.0, 3.0, -3.0]))
    assert test.p_value == pytest.approx(2 * 6 / 16)


def test_equal_pairs_are_left_out():
    first, second = np.zeros(9), np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    test = wilcoxon_signed_rank(first, second)
    assert test.p_value == pytest.approx(2 / 2**6)
    assert (test.num_patients, test.num_different, test.median_difference) == (9, 6, 2.0)
    assert wilcoxon_signed_rank(first, first).p_value is None


@pytest.mark.parametrize("decimals", [1, 9])  # with ties and without
@pytest.mark.parametrize("number", [14, 50, 51, 200])
def test_many_pairs_agree_with_the_normal_approximation(number, decimals):
    rng = np.random.default_rng(number)
    differences = np.round(rng.normal(0.1, 1, number), decimals)
    differences = differences[differences != 0]
    ranks = stats.rankdata(np.abs(differences))
    total = np.sum(ranks * np.sign(differences))
    expected = 2 * stats.norm.sf(abs(total) / math.sqrt(np.sum(ranks**2)))
    found = wilcoxon_signed_rank(np.zeros(len(differences)), differences)
    assert found.p_value == pytest.approx(expected, abs=0.05)
