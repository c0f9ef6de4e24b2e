"""JSON from disk: the object that it is, or one line."""

import os

import pytest

from cache_schema.documents import parse_object, read_object
from cache_schema.errors import InputError


def test_an_object_is_what_it_says():
    document = parse_object(b'{"a": [1, 2.5, null, true], "b": {"c": "\xc3\xa4"}}')
    assert document == {"a": [1, 2.5, None, True], "b": {"c": "\xe4"}}


@pytest.mark.parametrize("text", ["1", "null", '"a"', "[{}]", "{", "{}{}", "NaN", "-Infinity", ""])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_object(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_taken_only_where_they_may_be(number):
    text = f'{{"a": {{"b": [{number}]}}}}'
    with pytest.raises(ValueError, match="no finite number"):
        parse_object(text)
    assert str(parse_object(text, is_finite=False)["a"]["b"][0]).lower() in {"nan", "inf", "-inf"}


@pytest.mark.parametrize("content", [b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16"), bytes(8)])
def test_what_is_no_text_is_one_line(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json cannot be read \(.*\); do this$") as caught:
        read_object(tmp_path / "a.json", "do this")
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match="pipe, not a file"):
        read_object(tmp_path / "a.json", "do this")


def test_a_document_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**35)
    with pytest.raises(InputError, match="larger than"):
        read_object(tmp_path / "a.json", "do this")


def test_a_document_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.json cannot be read \(No such file or directory\)"):
        read_object(tmp_path / "a.json", "do this")
