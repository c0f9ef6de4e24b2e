"""A run's network on raw cases: the labels that the cache's slices give, without the cache."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from cache_schema.errors import InputError
from pipeline.raw_case import recall_preprocessing
from pipeline.segment import plan_requests, segment
from training.data import VolumeDataset
from training.federated.engine import run_federation
from training.predict import predict_labels
from training.predictor import open_predictor
from training.provenance import PREPROCESSING_NAME

NO_FILES = {"t1": None, "t1ce": None, "t2": None, "flair": None}


def predict(run: Path, case: Path | None, out: Path, files=NO_FILES, **options):
    """Segment as the command does."""
    predictor = open_predictor(run, device="cpu", **options)
    settings = recall_preprocessing(predictor.preprocessing)
    requests = plan_requests(case, files, out)
    return list(segment(requests, settings, predictor, predictor.planes))


@pytest.fixture(scope="module")
def masks(small_tree, tiny_run, tmp_path_factory) -> Path:
    """A mask of every case of the phantom; the run is a copy that knows no cache."""
    folder = tmp_path_factory.mktemp("predicted")
    run = Path(shutil.copytree(tiny_run, folder / "run"))
    outcomes = predict(run, small_tree, folder / "masks")
    assert all(outcome.fault is None for outcome in outcomes)
    return folder / "masks"


def test_a_mirrors_folders_named_like_files_give_the_same_mask(
    masks, small_tree, tiny_run, tmp_path
):
    source = min(path.parent for path in small_tree.rglob("BraTS20_*_flair.nii*"))
    mirror = tmp_path / source.name
    for file in source.iterdir():
        folder = mirror / file.name.removesuffix(".gz")
        folder.mkdir(parents=True)
        shutil.copy(file, folder / f"another-name{''.join(file.suffixes)}")
    (outcome,) = predict(tiny_run, mirror, tmp_path / "mask.nii.gz")
    assert outcome.fault is None
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    expected = sitk.ReadImage(str(masks / f"{source.name}.nii.gz"))
    for place in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(mask, place)() == getattr(expected, place)()
    labels = sitk.GetArrayFromImage(mask)
    assert labels.any()
    np.testing.assert_array_equal(labels, sitk.GetArrayFromImage(expected))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_raw_case_and_the_caches_slices_give_identical_labels(
    split, masks, tiny_run, small_cache, tiny_config
):
    network = open_predictor(tiny_run, device="cpu").network
    dataset = VolumeDataset(small_cache, split=split)
    found = set()
    for volume in dataset:
        labels = predict_labels(
            network, volume.image, tiny_config.target, batch_size=tiny_config.batch_size
        )
        i, j, k = volume.shape
        expected = np.zeros((i, j, k), np.uint8)
        expected[:, :, volume.z] = labels[:, :i, :j].transpose(1, 2, 0)
        mask = np.asarray(nib.load(masks / f"{volume.case_id}.nii.gz").dataobj)
        np.testing.assert_array_equal(mask, expected)
        found |= set(np.unique(mask).tolist())
    assert len(dataset) > 0
    assert found >= {0, 2}


def test_probabilities_decode_to_the_same_labels(small_tree, tiny_run, masks, tmp_path):
    folder = next(path for path in small_tree.rglob("BraTS20_Training_*") if path.is_dir())
    for name, options in (("plain", {}), ("flips", {"tta": True})):
        out = tmp_path / f"{name}.nii.gz"
        predict(tiny_run, folder, out, keeps_probabilities=True, **options)
        planes = np.asarray(nib.load(tmp_path / f"{name}_probabilities.nii.gz").dataobj)
        labels = np.asarray(nib.load(out).dataobj)
        best = np.array([1, 2, 4])[planes.argmax(-1)]
        np.testing.assert_array_equal(labels, np.where(planes.max(-1) > 0.5, best, 0))
    plain = np.asarray(nib.load(tmp_path / "plain.nii.gz").dataobj)
    mask = np.asarray(nib.load(masks / f"{folder.name}.nii.gz").dataobj)
    np.testing.assert_array_equal(plain, mask)


@pytest.mark.parametrize("keeps", [False, True])
def test_few_enhancing_voxels_become_necrosis(keeps, small_tree, tiny_run, tmp_path):
    folder = next(path for path in small_tree.rglob("BraTS20_Training_*") if path.is_dir())
    options = {"postprocess_et": 10**9, "keeps_probabilities": keeps}
    predict(tiny_run, folder, tmp_path / "mask.nii.gz", **options)
    assert 4 not in np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)


def test_a_run_without_its_preprocessing_is_told_how_to_get_it(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / PREPROCESSING_NAME).unlink()
    with pytest.raises(InputError, match=r"has no preprocessing\.json.*--resume"):
        open_predictor(run)
    (run / PREPROCESSING_NAME).write_text("{}")
    with pytest.raises(InputError, match=r"preprocessing\.json cannot be read"):
        open_predictor(run)


def test_an_old_run_gets_its_preprocessing_when_it_is_resumed(
    tiny_run, tiny_config, small_cache, observer, tmp_path
):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (run / PREPROCESSING_NAME).unlink()
    run_federation(tiny_config, small_cache, run, observer, resume=True)
    assert (run / PREPROCESSING_NAME).read_text() == (tiny_run / PREPROCESSING_NAME).read_text()


def test_a_real_scan_gets_a_mask_in_its_own_grid(real_data, tiny_run, tmp_path):
    scan = next(real_data.rglob("*_flair.nii.gz"))
    (outcome,) = predict(tiny_run, scan.parent, tmp_path / "mask.nii.gz")
    assert outcome.fault is None
    assert outcome.absent == ("t1ce", "t2")
    mask, source = sitk.ReadImage(str(tmp_path / "mask.nii.gz")), sitk.ReadImage(str(scan))
    for place in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(mask, place)() == getattr(source, place)()
    labels, voxels = sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(source)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels).tolist()) <= {0, 1, 2, 4}
    assert not labels[~voxels.any(axis=(1, 2))].any()
