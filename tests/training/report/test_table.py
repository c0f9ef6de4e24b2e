"""Numbers as the report writes them."""

import math

import pytest

from training.report.table import duration, interval, number, percent, size, thousands


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (119.4, "119 s"),
        (120.0, "2 min"),
        (3 * 3600 + 29 * 60 + 31.0, "3 h 30 min"),
        (119 * 60.0, "119 min"),
    ],
)
def test_a_duration_is_said_in_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_a_mean_stands_above_its_interval_and_says_which_cases_it_lacks():
    sample = {"mean": 0.8375, "low": 0.8, "high": 0.92, "count": 3}
    assert interval(sample, "dice", 3) == "83.75\n[80.0, 92.0]"
    assert interval(sample, "hd95_mm", 4) == "0.84\n[0.8, 0.9]\nof 3 cases"
    nothing = {"mean": math.nan, "low": math.nan, "high": math.nan, "count": 0}
    assert interval(nothing, "dice", 4) == "-\nof 0 cases"


def test_what_is_not_there_is_a_dash():
    assert (number(math.nan, "dice"), percent(None), size(0)) == ("-", "-", "-")
    assert (number(0.5, "dice"), percent(0.125), size(1500)) == ("50.00", "12.50", "1.5 kB")


def test_thousands_are_set_apart():
    assert thousands(1234567) == "1\u202f234\u202f567"
