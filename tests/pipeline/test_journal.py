"""The log of a cache: which shards are known to be whole, and who may write."""

import os

import pytest

from cache_schema.errors import InputError
from cache_schema.layout import LOG_NAME
from cache_schema.manifest import read_manifest
from pipeline.journal import open_journal


def test_the_last_word_on_a_shard_counts(tmp_path):
    with open_journal(tmp_path) as journal:
        journal.record("shard", path="a.h5", sha256="old")
        journal.record("shard", path="b.h5", sha256="b")
        journal.record("shard", path="c.h5", sha256=None)
        journal.record("shard", path="a.h5", sha256="new")
        assert journal.shard_digests() == {"a.h5": "new", "b.h5": "b"}


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path):
    with open_journal(tmp_path) as journal:
        journal.record("shard", path="a.h5", sha256="a")
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"time": 1.0, "event": "shard", "path": "b.h5", "sha2')
    with open_journal(tmp_path) as journal:
        assert journal.shard_digests() == {"a.h5": "a"}


def test_what_is_written_after_a_cut_line_is_not_lost(tmp_path):
    (tmp_path / LOG_NAME).write_text('{"time": 1.0, "eve')
    with open_journal(tmp_path) as journal:
        journal.record("shard", path="a.h5", sha256="a")
        assert journal.shard_digests() == {"a.h5": "a"}


def test_the_manifest_vouches_for_a_cache_without_a_log(cache_copy):
    with open_journal(cache_copy) as journal:
        digests = journal.shard_digests()
    assert digests == {shard.path: shard.sha256 for shard in read_manifest(cache_copy).shards}


def test_two_preparations_never_share_a_cache(tmp_path):
    with (
        open_journal(tmp_path),
        pytest.raises(InputError, match="another `prep partition` writes"),
        open_journal(tmp_path),
    ):
        pass


FOREIGN = (
    b"\xff\xfe",
    b"123",
    b"null",
    b"[]",
    b"{}",
    b'"shard"',
    b'{"event": 3, "path": "a.h5", "sha256": "z"}',
    b'{"time": 1.0, "event": "sha\xffrd", "path": "a.h5", "sha256": "z"}',
    b"[" * 100_000,
)


@pytest.mark.parametrize("line", FOREIGN, ids=range(len(FOREIGN)))
def test_a_line_that_is_no_record_is_passed_over_and_numbered(line, tmp_path):
    with open_journal(tmp_path) as journal:
        journal.record("shard", path="a.h5", sha256="a")
    with (tmp_path / LOG_NAME).open("ab") as file:
        file.write(line + b"\n")
    with open_journal(tmp_path) as journal:
        journal.record("shard", path="b.h5", sha256="b")
        assert journal.shard_digests() == {"a.h5": "a", "b.h5": "b"}
        assert journal.last_request() is None
        assert journal.faults() == {}
        assert journal.foreign_lines() == [2]


def test_a_line_that_a_kill_cut_short_is_not_foreign(tmp_path):
    with open_journal(tmp_path) as journal:
        journal.record("shard", path="a.h5", sha256="a")
    record = (tmp_path / LOG_NAME).read_bytes().strip()
    for length in range(1, len(record)):
        (tmp_path / LOG_NAME).write_bytes(record + b"\n" + record[:length])
        with open_journal(tmp_path) as journal:
            assert journal.foreign_lines() == []


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("shard", {"path": "a.h5", "sha256": 7}),
        ("shard", {"path": ["a.h5"], "sha256": "z"}),
        ("shard", {"sha256": "z"}),
        ("quarantined", {"case_id": "a", "cohort": "brats2018", "reason": "x", "key": 1}),
        ("quarantined", {"case_id": "../a", "cohort": "brats2018", "reason": "x", "key": "k"}),
        ("quarantined", {"case_id": "a", "cohort": "brats2021", "reason": "x", "key": "k"}),
        ("quarantined", {"case_id": "a"}),
        ("started", {"options": "none", "cases": ["a"]}),
        ("started", {"options": {}, "cases": "Brats18_CBICA_AAB_1"}),
        ("started", {"options": {}, "cases": [1]}),
    ],
)
def test_a_record_with_a_wrong_type_inside_tells_nothing(event, fields, tmp_path):
    with open_journal(tmp_path) as journal:
        journal.record(event, **fields)
        assert journal.shard_digests() == {}
        assert journal.faults() == {}
        assert journal.last_request() is None
        journal.record("started", options={"seed": 3}, cases=["b"])
        request = journal.last_request()
    assert (request.options, request.cases) == ({"seed": 3}, ["b"])


def test_a_log_of_an_earlier_release_does_not_tell_of_what_a_run_was_made(tmp_path):
    with open_journal(tmp_path) as journal:
        journal.record("started", shards=3)
        request = journal.last_request()
    assert (request.options, request.cases) == ({}, None)


def test_a_link_or_a_pipe_in_place_of_the_log_is_refused(tmp_path):
    for name in ("link", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link" / LOG_NAME).symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "pipe" / LOG_NAME)
    for name in ("link", "pipe"):
        with (
            pytest.raises(InputError, match=f"cannot be written .it is a {name}, not a file"),
            open_journal(tmp_path / name),
        ):
            pass
    assert (tmp_path / "victim").read_text() == "mine"
