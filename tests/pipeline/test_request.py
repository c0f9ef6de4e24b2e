"""A cache that was made of something else is told by options as they are given, and by cases."""

from pathlib import Path

import pytest

from cache_schema.errors import InputError
from pipeline.request import Request, require_same_request, spell_option

CASES = ("a", "b", "c", "d")
MADE = Request({"clients": 2, "test_fraction": 0.1, "bias_correct": False}, CASES)


def differences(cases=CASES, **options):
    with pytest.raises(InputError, match="--replace") as caught:
        require_same_request(Path("cache"), MADE, Request({**MADE.options, **options}, cases))
    return str(caught.value).partition("(")[2].partition(")")[0]


def test_the_same_request_passes():
    require_same_request(Path("cache"), MADE, Request(dict(MADE.options), list(CASES)))


def test_options_are_spelled_as_they_are_given():
    assert spell_option("test_fraction", 0.2) == "--test-fraction 0.2"
    assert spell_option("bias_correct", value=True) == "--bias-correct"
    assert spell_option("bias_correct", value=False) == "--no-bias-correct"


def test_every_option_that_differs_is_told_as_it_is_given():
    assert differences(clients=3, test_fraction=0.2) == (
        "--clients 3 instead of 2; --test-fraction 0.2 instead of 0.1"
    )
    assert differences(bias_correct=True) == "--bias-correct instead of --no-bias-correct"


def test_cases_that_came_and_went_are_counted_and_the_first_are_named():
    assert differences(("a", "b", "c", "d", "e")) == "1 case new: e"
    assert differences(()) == "4 cases gone: a, b, c, ..."
    assert differences(("b", "c", "d", "x")) == "1 case new: x; 1 case gone: a"


def test_a_log_that_tells_no_cases_and_options_of_another_release_do_not_count():
    older = Request({"clients": 2}, None)
    require_same_request(Path("cache"), older, MADE)
