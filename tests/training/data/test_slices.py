import os

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from training.data.slices import SliceDataset


def rows_on_disk(cache, paths):
    """Read shards with plain h5py: images, labels and label counts of all rows."""
    images, labels, voxels = [], [], []
    for path in paths:
        with h5py.File(cache / path) as file:
            images.append(file["image"][:])
            labels.append(file["label"][:])
            voxels.append(file["label_voxels"][:])
    return np.concatenate(images), np.concatenate(labels), np.concatenate(voxels)


def test_slices_are_those_of_the_shards_in_order(small_cache):
    manifest = read_manifest(small_cache)
    paths = [path for client in (0, 1) for path in manifest.client_shards(client)]
    images, labels, _ = rows_on_disk(small_cache, paths)
    dataset = SliceDataset(small_cache)
    assert len(dataset) == len(images)
    for index in (0, 7, len(images) - 1):
        image, label = dataset[index]
        np.testing.assert_array_equal(image, images[index])
        np.testing.assert_array_equal(label, labels[index])
    assert dataset[0].image.dtype == torch.float16
    assert dataset[0].label.dtype == torch.uint8


def test_clients_share_the_training_slices_and_no_test_slice_is_among_them(small_cache):
    manifest = read_manifest(small_cache)
    dataset = SliceDataset(small_cache)
    rows = [dataset.rows_of([client]).tolist() for client in (0, 1)]
    expected = [sum(c.num_slices for c in manifest.cases if c.client == k) for k in (0, 1)]
    assert [len(own) for own in rows] == expected
    assert sorted(rows[0] + rows[1]) == list(range(len(dataset)))
    assert len(SliceDataset(small_cache, clients=[1])) == expected[1]


def test_tumour_slices_are_those_with_a_label(small_cache):
    manifest = read_manifest(small_cache)
    paths = [path for client in (0, 1) for path in manifest.client_shards(client)]
    _, labels, voxels = rows_on_disk(small_cache, paths)
    dataset = SliceDataset(small_cache, slices="tumour")
    assert len(dataset) == np.count_nonzero(voxels.any(axis=1)) < len(labels)
    assert all(dataset[index].label.any() for index in range(len(dataset)))


def test_a_client_that_is_not_there_is_named(small_cache):
    with pytest.raises(InputError, match="client 2 is not among"):
        SliceDataset(small_cache, clients=[2])


def test_a_test_shard_in_a_clients_place_is_refused(cache_copy):
    manifest = read_manifest(cache_copy)
    victim = cache_copy / manifest.client_shards(0)[0]
    victim.write_bytes((cache_copy / manifest.test_shards("brats2018")[0]).read_bytes())
    with pytest.raises(InputError, match="test set"):
        SliceDataset(cache_copy)


def test_a_plain_loader_collates_slices(small_cache):
    loader = DataLoader(SliceDataset(small_cache), batch_size=3)
    image, label = next(iter(loader))
    assert image.shape == (3, 4, 24, 20)
    assert label.shape == (3, 24, 20)


def test_slices_that_show_tumour_are_those_with_a_label(small_cache):
    dataset = SliceDataset(small_cache)
    labelled = [bool((label > 0).any()) for _, label in (dataset[i] for i in range(len(dataset)))]
    assert dataset.shows_tumour.tolist() == labelled
    assert SliceDataset(small_cache, slices="tumour").shows_tumour.all()


def test_a_truncated_shard_is_named(cache_copy):
    path = cache_copy / read_manifest(cache_copy).client_shards(0)[0]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=path.name):
        SliceDataset(cache_copy)


def test_both_datasets_are_found_where_the_documents_say():
    names = {}
    exec("from training.data import *", names)
    assert {name for name in names if not name.startswith("_")} == {"SliceDataset", "VolumeDataset"}
