"""Slices or patches, as the network wants them."""

import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest
from training.data import SliceDataset
from training.data.volumes import PatchDataset, PatchKey
from training.training_set import open_training_set, plan_batches, share_of_passes


@pytest.fixture
def volumes(tiny_config):
    return tiny_config.model_copy(update={"model": "tiny3d", "depth": 16})


def opened(config, cache, **options):
    return open_training_set(config, cache, read_manifest(cache), **options)


def test_a_network_of_slices_gets_slices_and_one_of_volumes_patches(
    small_cache, tiny_config, volumes
):
    assert isinstance(opened(tiny_config, small_cache), SliceDataset)
    patches = opened(volumes, small_cache)
    assert isinstance(patches, PatchDataset)
    # 32 (cos 15 + sin 15) = 39.2: what the rotation turns into its corners is read around it
    assert patches[PatchKey(0, 1)].image.shape == (4, 16, 40, 40)


def test_clients_and_their_names_are_passed_on(small_cache, tiny_config, volumes):
    for config in (tiny_config, volumes):
        examples = opened(config, small_cache, clients=[1], known_as=4)
        assert examples.count((4,)) == len(examples) > 0


def test_the_share_of_tumour_is_that_of_passes_for_slices_and_of_places_for_patches(
    small_cache, tiny_config, volumes
):
    wanted = {"tumour_share": 1.0}
    assert share_of_passes(tiny_config.model_copy(update=wanted)) == 1.0
    certain = volumes.model_copy(update={**wanted, "crop": 32, "depth": 16})
    assert share_of_passes(certain) is None
    patches = opened(certain, small_cache)
    assert all(patches[PatchKey(case, 3)].label.any() for case in range(len(patches)))


def test_slices_with_tumour_are_no_choice_of_a_network_of_volumes(small_cache, volumes):
    config = volumes.model_copy(update={"slices": "tumour"})
    with pytest.raises(
        InputError, match="--slices tumour: tiny3d trains on patches; --tumour-share"
    ):
        opened(config, small_cache)


def test_batches_of_a_run_keep_a_left_over_example_apart_unless_its_network_needs_company(
    small_cache, tiny_config
):
    dataset = opened(tiny_config, small_cache, clients=[0])
    one_left = tiny_config.model_copy(update={"batch_size": len(dataset) - 1})
    assert plan_batches(one_left, dataset, least_batch=1).num_batches((0,)) == 2
    assert plan_batches(one_left, dataset, least_batch=2).num_batches((0,)) == 1
