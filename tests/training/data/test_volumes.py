"""Volumes and patches are the voxels of the scans, and patches are drawn where they should be."""

import math
from dataclasses import replace
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import nibabel as nib
import numpy as np
import pytest
import torch

from cache_schema.errors import InputError
from cache_schema.manifest import read_manifest, write_manifest
from cache_schema.shard import ShardReader
from cache_schema.vocabulary import MODALITIES
from pipeline.assemble import assemble_manifest
from pipeline.plan import make_plan
from pipeline.shard_task import make_shard
from training.augment import AugmentSettings, apply, draw
from training.data.volumes import PatchDataset, PatchKey, PatchSampling, VolumeDataset, draw_corner

SAMPLING = PatchSampling((16, 8, 12), tumour_share=0.0)


def test_a_volume_is_a_case_with_its_place_in_space(small_cache):
    manifest = read_manifest(small_cache)
    dataset = VolumeDataset(small_cache, split="test")
    wanted = [case for case in manifest.cases if case.split == "test"]
    assert [case.case_id for case in dataset.cases] == [case.case_id for case in wanted]
    assert len(dataset) == len(wanted) > 0
    for index, case in enumerate(wanted):
        volume = dataset[index]
        assert volume.shape == (24, 20, 17)
        assert volume.cohort == case.cohort
        assert len(volume.z) == len(volume.image) == case.num_slices
        counted = [int((volume.label == value).sum()) for value in (1, 2, 4)]
        assert counted == [case.label_voxels.NEC, case.label_voxels.ED, case.label_voxels.ET]
        np.testing.assert_array_equal(np.diag(volume.affine), [-1, -1, 1, 1])


def test_volumes_of_one_cohort_can_be_chosen(small_cache):
    dataset = VolumeDataset(small_cache, split="train", cohorts=["brats2019"])
    assert {case.cohort for case in dataset.cases} == {"brats2019"}
    assert all(case.split == "train" for case in dataset.cases)


def zscored(folder: Path):
    """All modalities of a scan as (4, z, i, j), from its NIfTI files alone, and its labels."""
    volumes = []
    for modality in MODALITIES:
        (path,) = folder.glob(f"*_{modality}.nii*")
        voxels = np.asarray(nib.load(path).dataobj, np.float64)
        brain = voxels != 0
        scored = np.where(brain, (voxels - voxels[brain].mean()) / voxels[brain].std(), 0.0)
        volumes.append(scored.transpose(2, 0, 1))
    (path,) = folder.glob("*_seg.nii*")
    label = np.asarray(nib.load(path).dataobj).transpose(2, 0, 1)
    return np.stack(volumes), label.astype(np.uint8)


@pytest.mark.parametrize("index", [0, 3])
def test_a_patch_is_the_same_voxels_of_the_nifti_files(index, small_tree, small_cache):
    dataset = VolumeDataset(small_cache, split="train")
    case = dataset[index]
    (folder,) = (path for path in small_tree.rglob(case.case_id) if path.is_dir())
    image, label = zscored(folder)
    corner, size = (2, 5, 3), (7, 9, 11)
    patch = dataset.patch(index, corner, size)
    place = tuple(slice(start, start + side) for start, side in zip(corner, size, strict=True))
    kept = case.z[place[0]]
    expected = image[:, kept][:, :, place[1], place[2]].astype(np.float16)
    np.testing.assert_allclose(patch.image.numpy(), expected, atol=2e-3)
    np.testing.assert_array_equal(patch.label, label[kept][:, place[1], place[2]])
    assert patch.image.dtype == torch.float16
    assert patch.label.dtype == torch.uint8


@pytest.fixture(scope="module")
def real_cache(real_data, small_options, tmp_path_factory):
    cache = tmp_path_factory.mktemp("real") / "cache"
    options = small_options.model_copy(
        update={"clients": 1, "missing": "zero", "geometry": "brats"}
    )
    plan = make_plan([real_data], options)
    outcomes = [
        make_shard(shard, cache, plan.preprocessing, lambda _: None) for shard in plan.shards
    ]
    write_manifest(cache, assemble_manifest(plan, outcomes))
    return cache


def test_a_patch_of_a_real_scan_is_the_same_voxels_of_its_files(real_data, real_cache):
    dataset = VolumeDataset(real_cache, split="train")
    case = dataset[0]
    scan = next(path for path in real_data.rglob("*_flair.nii.gz") if case.case_id in path.name)
    voxels = np.asarray(nib.load(scan).dataobj, np.float64)
    brain = voxels != 0
    flair = np.where(brain, (voxels - voxels[brain].mean()) / voxels[brain].std(), 0.0)
    patch = dataset.patch(0, (4, 60, 50), (128, 128, 128))
    z = case.z[4:132]
    expected = flair[60:188, 50:178, z].transpose(2, 0, 1)
    np.testing.assert_allclose(patch.image[3].numpy(), expected, atol=4e-3)
    (seg,) = scan.parent.glob("*_seg.nii.gz")
    label = np.asarray(nib.load(seg).dataobj)[60:188, 50:178, z].transpose(2, 0, 1)
    np.testing.assert_array_equal(patch.label, label)


def test_outside_a_volume_a_patch_is_zero_and_inside_it_is_in_place(small_cache):
    dataset = VolumeDataset(small_cache, split="train")
    case = dataset[1]
    depth, _, height, width = case.image.shape
    patch = dataset.patch(1, (-3, -2, 4), (depth + 5, height + 3, width))
    image, label = patch.image.numpy(), patch.label.numpy()
    inside = (slice(3, 3 + depth), slice(2, 2 + height), slice(0, width - 4))
    np.testing.assert_array_equal(
        image[(slice(None), *inside)], case.image.transpose(1, 0, 2, 3)[..., 4:]
    )
    np.testing.assert_array_equal(label[inside], case.label[..., 4:])
    image[(slice(None), *inside)] = 0
    label[inside] = 0
    assert not image.any()
    assert not label.any()
    assert not dataset.patch(1, (depth, 0, 0), (4, 4, 4)).image.any()  # wholly outside


def test_a_patch_reads_no_slice_outside_it(small_cache, monkeypatch):
    dataset = VolumeDataset(small_cache, split="train")
    dataset[0]
    asked = []
    images = ShardReader.images

    def read(self, rows):
        asked.extend(rows)
        return images(self, rows)

    monkeypatch.setattr(ShardReader, "images", read)
    dataset.patch(0, (5, 0, 0), (6, 3, 3))
    assert asked == list(range(5, 11))


def test_a_patch_dataset_has_the_training_cases_of_its_clients(small_cache):
    manifest = read_manifest(small_cache)
    dataset = PatchDataset(small_cache, SAMPLING)
    training = [case for case in manifest.cases if case.split == "train"]
    assert len(dataset) == len(training)
    for client in (0, 1):
        own = [case for case in training if case.client == client]
        assert dataset.count((client,)) == len(own)
        assert len(PatchDataset(small_cache, SAMPLING, clients=[client])) == len(own)
    renamed = PatchDataset(small_cache, SAMPLING, clients=[1], known_as=7)
    assert renamed.count((7,)) == len(renamed)
    assert dataset.rows_of((0, 1)).tolist() == list(range(len(dataset)))


def test_a_test_shard_among_a_clients_is_refused(cache_copy):
    manifest = read_manifest(cache_copy)
    (victim, *_) = manifest.client_shards(0)
    test = next(case.shard for case in manifest.cases if case.split == "test")
    (cache_copy / victim).write_bytes((cache_copy / test).read_bytes())
    with pytest.raises(InputError, match="is a shard of the test set; training never opens one"):
        PatchDataset(cache_copy, SAMPLING)


def test_a_seed_gives_a_patch_and_another_seed_another(small_cache):
    dataset = PatchDataset(small_cache, PatchSampling((4, 8, 8), tumour_share=0.5))
    first, again = (dataset[PatchKey(2, 11)] for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    assert any(not torch.equal(first.image, dataset[PatchKey(2, seed)].image) for seed in (12, 13))


def test_keys_of_two_passes_or_two_places_have_other_seeds(small_cache):
    dataset = PatchDataset(small_cache, SAMPLING)
    rows = np.array([1, 4, 1])
    first, second = dataset.keys(rows, 5), dataset.keys(rows, 6)
    assert [key.case for key in first] == [1, 4, 1]
    assert len({key.seed for key in (*first, *second)}) == 6


def test_a_patch_put_around_tumour_holds_some_and_others_are_anywhere(small_cache):
    size = (4, 6, 6)
    tumour = PatchDataset(small_cache, PatchSampling(size, tumour_share=1.0))
    anywhere = PatchDataset(small_cache, PatchSampling(size, tumour_share=0.0))
    assert tumour.shows_tumour.all()
    keys = [PatchKey(case, seed) for case in range(len(tumour)) for seed in range(10)]
    assert all(tumour[key].label.any() for key in keys)
    shares = np.mean([bool(anywhere[key].label.any()) for key in keys])
    assert 0.02 < shares < 0.8


def test_a_patch_is_read_as_wide_as_its_turned_square_needs_and_no_wider():
    # 100 (cos 30 + sin 30) = 136.6, and as much on both sides; beyond 45 degrees the square turns back
    assert PatchSampling((16, 100, 60), rotation_degrees=30.0).reach() == (16, 138, 82)
    assert PatchSampling((16, 100, 100), 90.0).reach() == (16, 142, 142)
    assert PatchSampling((16, 100, 100), 0.0).reach() == (16, 100, 100)


@pytest.mark.parametrize("degrees", [15.0, 45.0])
def test_a_turned_patch_has_no_corner_from_nowhere(degrees):
    """However far it is turned, in the middle of a volume it shows what is there."""
    sampling = PatchSampling((2, 32, 32), degrees)
    ones = torch.ones(8, 4, *sampling.reach())
    settings = AugmentSettings(rotation_degrees=degrees, noise_std=0.0)
    drawn = draw(
        torch.Generator(), 8, plane=ones.shape[-2:], crop=32, settings=settings, is_placed=True
    )
    limit = math.radians(degrees)
    drawn = replace(drawn, angles_rad=torch.linspace(-limit, limit, 8))
    image, label = apply(drawn, ones, ones[:, 0].to(torch.uint8))
    assert image.min() == pytest.approx(1.0, abs=1e-5)
    assert label.all()


def test_a_patch_is_what_was_drawn_with_a_margin_around_it(small_cache):
    plain = PatchDataset(small_cache, PatchSampling((4, 8, 6)))
    wider = PatchDataset(small_cache, PatchSampling((4, 8, 6), rotation_degrees=45.0))
    for seed in range(20):
        patch, more = (dataset[PatchKey(seed % 3, seed)] for dataset in (plain, wider))
        assert more.image.shape == (4, 4, 12, 10)
        torch.testing.assert_close(more.image[..., 2:10, 2:8], patch.image, rtol=0, atol=0)
        torch.testing.assert_close(more.label[..., 2:10, 2:8], patch.label, rtol=0, atol=0)


def test_a_voxel_lies_in_the_inner_half_of_its_patch_unless_the_volume_ends():
    generator = np.random.default_rng(0)
    bounds, size = (100, 50, 8), (16, 20, 12)
    offsets = []
    for _ in range(300):
        corner = draw_corner(generator, bounds, size, (50, 25, 4))
        offsets.append([50 - corner[0], 25 - corner[1]])
        assert corner[2] == -2  # smaller than the patch: in its middle
    assert np.min(offsets, axis=0).tolist() == [4, 5]
    assert np.max(offsets, axis=0).tolist() == [11, 14]
    assert draw_corner(generator, bounds, size, (0, 49, 0))[:2] == (0, 30)


def test_without_a_voxel_every_place_inside_is_drawn():
    generator = np.random.default_rng(0)
    corners = {draw_corner(generator, (6, 5, 4), (4, 4, 4), None) for _ in range(200)}
    assert corners == {(z, i, 0) for z in range(3) for i in range(2)}


def test_a_patch_of_a_damaged_shard_names_it(cache_copy):
    dataset = PatchDataset(cache_copy, SAMPLING)
    path = cache_copy / read_manifest(cache_copy).client_shards(0)[0]
    with h5py.File(path, "r+") as file:
        offset = file["image"].id.get_chunk_info(5).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=path.name):
        dataset[PatchKey(0, 1)]
