import math

import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import LeakageRecord
from training.comparison import compare_runs
from training.scores import CaseScore, Evaluation

LEAKAGE = LeakageRecord(protocol="patient", cohorts={}, test_patients=8, also_in_training=0)
NAN = math.nan


def scored(dice, patients=None, cohorts=None, **changes):
    """An evaluation of cases c0, c1, ... whose three regions have the given Dice each."""
    scores = tuple(
        CaseScore(
            f"c{i}",
            f"p{i}" if patients is None else patients[i],
            "brats2018" if cohorts is None else cohorts[i],
            {
                "dice": value
                if isinstance(value, dict)
                else dict.fromkeys(("ET", "TC", "WT"), value)
            },
        )
        for i, value in enumerate(dice)
    )
    fields = {"convention": "brats2020", "round": 2, "manifest": "digest"}
    return Evaluation(scores, LEAKAGE, **fields | changes)


def test_six_better_cases_are_shown_to_be_better():
    first, second = scored([0.5] * 6), scored([0.51, 0.52, 0.53, 0.54, 0.55, 0.56])
    by_cohort, by_all = compare_runs({"a": first, "b": second})
    assert (by_cohort.test_set, by_all.test_set) == ("brats2018", "all")
    assert by_all.num_cases == by_all.test.num_patients == 6
    assert by_all.test.p_value == pytest.approx(2 / 64)
    assert by_all.test.median_difference == pytest.approx(0.035)
    assert by_all.verdict == "b scores higher"
    assert compare_runs({"b": second, "a": first})[0].verdict == "b scores higher"


def test_five_better_cases_are_too_few():
    result = compare_runs({"a": scored([0.5] * 5), "b": scored([0.6, 0.7, 0.8, 0.9, 1.0])})
    assert result[-1].verdict == "too few to tell: 6 patients whose scores differ are the least"


def test_equal_scores_are_no_difference():
    same = scored([0.1 * i for i in range(9)])
    assert compare_runs({"a": same, "b": same})[-1].verdict.startswith("no difference: all")


def test_mixed_differences_show_nothing():
    first = scored([0.5] * 8)
    second = scored([0.51, 0.48, 0.53, 0.46, 0.55, 0.44, 0.57, 0.42])
    assert compare_runs({"a": first, "b": second})[-1].verdict == "no difference shown"


def test_pairs_are_of_the_same_case_in_whatever_order_it_is_listed():
    first = scored([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    second = scored([0.2, 0.32, 0.43, 0.54, 0.65, 0.76])
    backwards = Evaluation(second.scores[::-1], LEAKAGE, "brats2020", 2, "digest")
    test = compare_runs({"a": first, "b": backwards})[-1].test
    assert test.p_value == pytest.approx(
        2 / 64
    )  # all are better; place by place only three would be


def test_a_patient_in_two_cohorts_is_one_pair():
    cohorts = ["brats2018"] * 6 + ["brats2019"] * 6
    patients = [f"p{i}" for i in range(6)] * 2
    first = scored([0.5] * 12, patients, cohorts)
    second = scored([0.6, 0.61, 0.62, 0.63, 0.64, 0.65] * 2, patients, cohorts)
    results = {each.test_set: each for each in compare_runs({"a": first, "b": second})}
    assert (results["all"].num_cases, results["all"].test.num_patients) == (12, 6)
    assert results["all"].test.p_value == results["brats2018"].test.p_value


def test_a_case_is_the_mean_of_the_regions_that_have_a_value():
    first = scored([{"ET": NAN, "TC": 0.2, "WT": 0.4}, 0.5, NAN])
    second = scored([{"ET": NAN, "TC": 0.4, "WT": 0.6}, 0.5, 0.9])
    result = compare_runs({"a": first, "b": second})[-1]
    assert result.num_cases == 2  # the last has no score of the first run
    assert result.test.median_difference == pytest.approx((0.2 + 0.0) / 2)


def test_cases_without_any_value_leave_nothing_to_test():
    result = compare_runs({"a": scored([NAN]), "b": scored([0.5])})[-1]
    assert (result.num_cases, result.test) == (0, None)
    assert result.verdict == "no case has both scores"


def test_every_pair_of_runs_is_tested():
    runs = {name: scored([0.5] * 3) for name in "abc"}
    pairs = [(each.first, each.second) for each in compare_runs(runs) if each.test_set == "all"]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]


def test_scores_of_other_cases_or_by_other_rules_are_not_compared():
    one = scored([0.5, 0.6])
    with pytest.raises(InputError, match="different caches"):
        compare_runs({"a": one, "b": scored([0.5, 0.6], manifest="other")})
    with pytest.raises(InputError, match="different caches"):
        compare_runs({"a": one, "b": scored([0.5])})
    for change in ({"convention": "nan-drop"}, {"tta": True}, {"postprocess_et": 4}):
        with pytest.raises(InputError, match="different ways"):
            compare_runs({"a": one, "b": scored([0.5, 0.6], **change)})
