"""What a model must know of its cache, and clients that do not fit together."""

import json

import pytest
from pydantic import ValidationError

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from cache_schema.preprocessing import (
    PreprocessingRecord,
    record_preprocessing,
    unite_preprocessing,
)


@pytest.fixture
def record(small_cache):
    return record_preprocessing(read_manifest(small_cache))


def padded(record, *planes):
    (source,) = record.sources
    sources = [
        source.model_copy(update={"plane": plane, "fingerprint": f"of {plane}"}) for plane in planes
    ]
    return record.model_copy(update={"sources": tuple(sources)})


def test_a_record_says_what_the_manifest_says(record, small_cache):
    manifest = read_manifest(small_cache)
    assert (record.normalize, record.bias_correct, record.geometry) == ("zscore", False, "any")
    assert record.modalities == ("t1", "t1ce", "t2", "flair")
    (source,) = record.sources
    assert (source.plane, source.fingerprint) == ((24, 20), manifest.fingerprint)


def test_a_record_of_no_cache_is_none(record):
    with pytest.raises(ValidationError, match="sources"):
        PreprocessingRecord.model_validate_json(json.dumps({**record.model_dump(), "sources": []}))


def test_clients_of_one_cache_have_one_record(record):
    assert unite_preprocessing({3: record, 0: record}) == record


def test_clients_may_differ_in_the_planes_of_their_slices(record):
    one, other = padded(record, (240, 240)), padded(record, (24, 20))
    united = unite_preprocessing({0: one, 1: other, 2: one})
    assert [source.plane for source in united.sources] == [(24, 20), (240, 240)]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"normalize": "percentile"}, "--normalize zscore and percentile"),
        ({"bias_correct": True}, "--bias-correct False and True"),
        ({"geometry": "brats"}, "--geometry any and brats"),
    ],
)
def test_two_clients_with_other_preprocessing_are_named_with_the_difference(
    change, difference, record
):
    odd = record.model_copy(update=change)
    with pytest.raises(InputError, match=rf"^clients 1 and 4 .*\({difference}\)"):
        unite_preprocessing({4: odd, 1: record, 2: record})


def test_another_version_shows_in_the_fingerprint_of_the_same_plane(record):
    (source,) = record.sources
    newer = source.model_copy(update={"fingerprint": "another"})
    odd = record.model_copy(update={"sources": (newer,)})
    with pytest.raises(InputError, match=r"clients 0 and 1 .*fingerprints of the preprocessing"):
        unite_preprocessing({0: record, 1: odd})
