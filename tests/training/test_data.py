import os
from collections import Counter
from itertools import chain

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from training.data import Pass, Passes, SliceDataset, make_loader


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


def test_a_pass_visits_every_slice_of_its_clients_once(small_cache):
    dataset = SliceDataset(small_cache)
    passes = Passes(dataset, batch_size=4)
    for clients in ((1,), (0, 1)):
        passes.plan([Pass(clients, 3)])
        batches = list(passes)
        assert len(batches) == len(passes) == passes.num_batches(clients)
        assert sorted(chain(*batches)) == dataset.rows_of(clients).tolist()
        assert list(chain(*batches)) != sorted(chain(*batches))
        assert {len(batch) for batch in batches[:-1]} == {4}
        assert len(batches[-1]) in {2, 3, 4, 5}


def test_passes_follow_each_other_and_each_has_an_order_of_its_own(small_cache):
    passes = Passes(SliceDataset(small_cache), batch_size=4)
    plan = [Pass((0,), 5), Pass((1,), 5), Pass((0,), 6)]
    alone = []
    for each in plan:
        passes.plan([each])
        alone.append(list(passes))
    passes.plan(plan)
    assert list(passes) == [*alone[0], *alone[1], *alone[2]]
    assert alone[0] != alone[2]
    passes.plan(plan, skip=len(alone[0]) + 2)
    assert list(passes) == [*alone[1][2:], *alone[2]]
    assert len(passes) == len(alone[1]) - 2 + len(alone[2])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_the_slices_shows_tumour(small_cache, share):
    dataset = SliceDataset(small_cache)
    passes = Passes(dataset, batch_size=4, tumour_share=share)
    passes.plan([Pass((0, 1), 1)])
    drawn = list(chain(*passes))
    assert len(drawn) == len(dataset)
    assert sum(dataset.shows_tumour[drawn]) == round(share * len(dataset))
    # Of what is drawn more often than it is there, every slice comes about as often.
    times = Counter(drawn)
    for shows in (True, False):
        counts = [times[row] for row in np.flatnonzero(dataset.shows_tumour == shows).tolist()]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [(4, (4, 4, 5)), (5, (5, 5, 3)), (12, (13,)), (13, (13,)), (1, (1,) * 13), (20, (13,))],
)
def test_a_single_slice_that_is_left_over_joins_the_batch_before(
    batch_size, sizes, small_cache, monkeypatch
):
    dataset = SliceDataset(small_cache)
    monkeypatch.setattr(dataset, "rows_of", lambda _: np.arange(13))
    monkeypatch.setattr(dataset, "count", lambda _: 13)
    passes = Passes(dataset, batch_size=batch_size)
    passes.plan([Pass((0,), 1)])
    batches = list(passes)
    assert tuple(map(len, batches)) == sizes
    assert len(passes) == len(sizes)
    assert sorted(chain(*batches)) == list(range(13))


def test_slices_that_show_tumour_are_those_with_a_label(small_cache):
    dataset = SliceDataset(small_cache)
    labelled = [bool((label > 0).any()) for _, label in (dataset[i] for i in range(len(dataset)))]
    assert dataset.shows_tumour.tolist() == labelled
    assert SliceDataset(small_cache, slices="tumour").shows_tumour.all()


def test_loader_processes_read_what_the_training_process_reads(small_cache):
    dataset = SliceDataset(small_cache)
    passes = Passes(dataset, batch_size=4)
    seen = []
    for num_workers in (0, 2):
        loader = make_loader(dataset, passes, num_workers=num_workers, pin_memory=False)
        for client in (0, 1):
            passes.plan([Pass((client,), 1)])
            seen.append([image.clone() for image, _ in loader])
    for here, there in zip(seen[:2], seen[2:], strict=True):
        assert len(here) == len(there)
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_truncated_shard_is_named(cache_copy):
    path = cache_copy / read_manifest(cache_copy).client_shards(0)[0]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=path.name):
        SliceDataset(cache_copy)
