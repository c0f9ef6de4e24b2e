"""Paths inside a cache."""

from cache_schema import layout  # not its `test_shard`, which pytest would take for a test


def test_clients_have_two_digits_and_their_shards_three():
    assert layout.client_shard(3, 12) == "clients/client-03/shard-012.h5"


def test_the_test_set_lies_apart_by_cohort():
    assert layout.test_shard("brats2019", 0) == "test/brats2019/shard-000.h5"


def test_more_than_a_hundred_clients_still_have_folders_of_their_own():
    assert layout.client_shard(100, 0) == "clients/client-100/shard-000.h5"
