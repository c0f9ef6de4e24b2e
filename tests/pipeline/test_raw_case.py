"""A raw case gives the very slices that a cache would hold of it, and gets its volume back."""

import gzip
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cache_schema.errors import InputError
from cache_schema.geometry import restore_volume
from cache_schema.manifest import read_manifest
from cache_schema.preprocessing import record_preprocessing
from pipeline.case import Preprocessing, fingerprint, prepare_case
from pipeline.cohorts import Case
from pipeline.quality import BRATS_AFFINE, CaseError
from pipeline.raw_case import RawCase, read_raw_case, recall_preprocessing

SHAPE = (18, 14, 16)
SETTINGS = Preprocessing("zscore", bias_correct=False, geometry="any", plane=(22, 20))


def write(folder: Path, name: str, voxels: np.ndarray, affine=BRATS_AFFINE) -> Path:
    path = folder / f"{name}.nii.gz"
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes(), 1))
    return path


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Four modalities with brain in planes 2 to 11, of flair also in plane 1, and a segmentation."""
    generator = np.random.default_rng(0)
    found = {}
    for name in ("t1", "t1ce", "t2", "flair"):
        image = np.zeros(SHAPE, np.int16)
        first = 1 if name == "flair" else 2
        image[2:16, 1:12, first:12] = generator.integers(100, 900, (14, 11, 12 - first))
        found[name] = write(tmp_path, name, image)
    seg = np.zeros(SHAPE, np.uint8)
    seg[4, 3, 3] = 4
    return {**found, "seg": write(tmp_path, "seg", seg)}


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, normalize="percentile"),
        replace(SETTINGS, bias_correct=True),
        replace(SETTINGS, plane=(18, 14)),
    ],
)
@pytest.mark.parametrize("absent", [(), ("t1", "t2")])
def test_slices_are_those_of_a_cache_bit_for_bit(settings, absent, files):
    files = {name: path for name, path in files.items() if name not in absent}
    sources = {name: path.read_bytes() for name, path in files.items()}
    stored = prepare_case(Case("a", "brats2020", Path(), {}), sources, settings)
    raw = read_raw_case(files, settings)
    np.testing.assert_array_equal(raw.image, np.stack([image for image, _ in stored.slices]))
    assert raw.image.dtype == np.float16
    assert raw.z.tolist() == stored.z.tolist() == list(range(1, 12))
    assert (raw.shape, raw.absent) == (SHAPE, absent)


def test_the_grid_is_that_of_the_first_modality_there_is(files):
    del files["t1"]
    assert read_raw_case(files, SETTINGS).source == files["t1ce"].read_bytes()


def test_a_segmentation_is_not_opened(files):
    files["seg"].write_bytes(b"damaged")
    assert len(read_raw_case(files, SETTINGS).z) == 11


def test_a_case_without_any_modality_is_refused(files):
    with pytest.raises(CaseError, match="has none of the modalities t1, t1ce, t2, flair"):
        read_raw_case({"seg": files["seg"]}, SETTINGS)


def test_modalities_in_different_grids_are_refused(files, tmp_path):
    voxels = np.full((14, 18, 16), 3, np.int16)
    with pytest.raises(CaseError, match=r"t2 has shape \(14, 18, 16\), t1 \(18, 14, 16\)"):
        read_raw_case({**files, "t2": write(tmp_path, "other", voxels)}, SETTINGS)
    moved = write(tmp_path, "moved", np.ones(SHAPE, np.int16), np.eye(4))
    with pytest.raises(CaseError, match="flair and t1 have different affines"):
        read_raw_case({**files, "flair": moved}, SETTINGS)


def test_what_is_not_3d_or_damaged_or_gone_is_named(files, tmp_path):
    flat = write(tmp_path, "flat", np.ones((18, 14), np.int16))
    with pytest.raises(CaseError, match="t1ce has 2 axes, not 3"):
        read_raw_case({**files, "t1ce": flat}, SETTINGS)
    with pytest.raises(CaseError, match=r"gone\.nii cannot be read"):
        read_raw_case({**files, "t1ce": tmp_path / "gone.nii"}, SETTINGS)
    files["t2"].write_bytes(files["t2"].read_bytes()[:40])
    with pytest.raises(CaseError, match="t2 is not a readable NIfTI file"):
        read_raw_case(files, SETTINGS)


def test_a_run_on_brats_geometry_alone_refuses_another_and_says_which_setting_it_was(files):
    with pytest.raises(CaseError, match=r"shape \(18, 14, 16\) is not .* with --geometry brats"):
        read_raw_case(files, replace(SETTINGS, geometry="brats", plane=(240, 240)))


def test_a_larger_plane_than_the_caches_is_taken_as_it_is(files):
    raw = read_raw_case(files, replace(SETTINGS, plane=(4, 20)))
    assert raw.image.shape == (11, 4, 18, 20)


def test_the_preprocessing_of_a_cache_is_recalled(small_plan, small_cache):
    record = record_preprocessing(read_manifest(small_cache))
    assert recall_preprocessing(record) == small_plan.preprocessing


def test_of_several_planes_the_largest_sides_are_taken(small_cache):
    record = record_preprocessing(read_manifest(small_cache))
    sources = tuple(
        record.sources[0].model_copy(
            update={"plane": plane, "fingerprint": replace(SETTINGS, plane=plane).fingerprint}
        )
        for plane in ((24, 20), (18, 40))
    )
    united = record.model_copy(update={"sources": sources})
    assert recall_preprocessing(united).plane == (24, 40)


def test_another_preprocessing_version_is_refused(small_cache, monkeypatch):
    record = record_preprocessing(read_manifest(small_cache))
    monkeypatch.setattr("pipeline.case.PREPROCESSING_VERSION", 2)
    with pytest.raises(InputError, match="another preprocessing version"):
        recall_preprocessing(record)


def test_a_run_on_slices_of_any_geometry_from_before_axes_were_looked_at_is_refused(small_cache):
    record = record_preprocessing(read_manifest(small_cache))
    parameters = asdict(recall_preprocessing(record))
    before = fingerprint({"version": 1, **parameters})
    source = record.sources[0].model_copy(update={"fingerprint": before})
    with pytest.raises(InputError, match="another preprocessing version than 2"):
        recall_preprocessing(record.model_copy(update={"sources": (source,)}))


def turn(path: Path, codes: str) -> None:
    """Store a file with voxel axes that run to these sides instead, by nibabel."""
    image = nib.load(path)
    turned = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    path.write_bytes(gzip.compress(image.as_reoriented(turned).to_bytes(), 1))


@pytest.mark.parametrize("names", [("t1", "t1ce", "t2", "flair"), ("t1",), ("t2", "flair")])
def test_other_axes_give_the_same_slices_and_keep_the_sources_own_grid(names, files):
    plain = read_raw_case(files, SETTINGS)
    for name in names:
        turn(files[name], "SRA")
    turned = read_raw_case(files, SETTINGS)
    np.testing.assert_array_equal(turned.image, plain.image)
    assert (turned.z.tolist(), turned.shape) == (plain.z.tolist(), SHAPE)
    assert turned.source == files["t1"].read_bytes()
    np.testing.assert_array_equal(turned.source_affine, nib.load(files["t1"]).affine)


def test_backgrounds_and_parts_of_a_head_are_found(files, tmp_path):
    assert read_raw_case(files, SETTINGS).findings == ()
    image = np.asarray(nib.load(files["t2"]).dataobj).copy()
    image[image == 0] = -1024
    files["t2"] = write(tmp_path, "air", image)
    cut = np.asarray(nib.load(files["t1"]).dataobj).copy()
    cut[:, :, :7] = 0
    files["t1"] = write(tmp_path, "cut", cut)
    assert read_raw_case(files, SETTINGS).findings == (
        "t2 has a background other than 0: 100% of its voxels count as brain",
        "t1 covers 50% of the head that the other modalities show",  # 5 of 10 planes
    )


def test_predictions_go_back_to_their_place_in_the_volume():
    case = RawCase(np.zeros((2, 4, 5, 6), np.float16), np.array([1, 3]), (3, 4, 5), b"", ())
    labels = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    volume = restore_volume(labels, case.z, case.shape)
    assert volume.shape == (3, 4, 5)
    np.testing.assert_array_equal(volume[:, :, 1], labels[0, :3, :4])
    np.testing.assert_array_equal(volume[:, :, 3], labels[1, :3, :4])
    assert not volume[:, :, [0, 2, 4]].any()
    planes = np.stack([labels, labels + 1, labels + 2], axis=1)
    four = restore_volume(planes, case.z, case.shape)
    assert four.shape == (3, 4, 5, 3)
    np.testing.assert_array_equal(four[:, :, 3, 2], planes[1, 2, :3, :4])
