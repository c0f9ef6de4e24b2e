"""Paths inside a cache."""

import pytest

from cache_schema import layout  # not its `test_shard`, which pytest would take for a test


def test_clients_have_two_digits_and_their_shards_three():
    assert layout.client_shard(3, 12) == "clients/client-03/shard-012.h5"


def test_the_test_set_lies_apart_by_cohort():
    assert layout.test_shard("brats2019", 0) == "test/brats2019/shard-000.h5"


def test_more_than_a_hundred_clients_still_have_folders_of_their_own():
    assert layout.client_shard(100, 0) == "clients/client-100/shard-000.h5"


@pytest.mark.parametrize(
    "path",
    [
        layout.client_shard(0, 0),
        layout.client_shard(123, 4567),
        layout.test_shard("brats2018", 0),
        layout.test_shard("brats2020", 12),
    ],
)
def test_every_path_that_is_given_out_is_one_of_a_shard(path):
    assert layout.is_shard_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "../clients/client-00/shard-000.h5",
        "/clients/client-00/shard-000.h5",
        "clients/../client-00/shard-000.h5",
        "clients/client-00/../../shard-000.h5",
        "clients\\client-00\\shard-000.h5",
        "clients/client-00/shard-000.h5\0",
        "clients/client-00/shard-000.h5\n",
        "clients/client-0/shard-000.h5",
        "clients/client-\u0660\u0660/shard-000.h5",
        "test/brats2021/shard-000.h5",
        "test/client-00/shard-000.h5",
        "manifest.json",
        "",
    ],
)
def test_other_paths_are_not(path):
    assert not layout.is_shard_path(path)
