"""The log of a cache: which shards are known to be whole, and who may write."""

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
