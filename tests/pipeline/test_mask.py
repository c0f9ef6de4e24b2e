"""Masks: whole and in place, or not there."""

import errno

import nibabel as nib
import numpy as np
import pytest

from cache_schema.errors import InputError
from pipeline.mask import write_labels, write_probabilities
from pipeline.quality import CaseError
from pipeline.raw_case import RawCase

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])


def case(affine=AFFINE) -> RawCase:
    source = nib.Nifti1Image(np.ones((3, 4, 5), np.int16), affine).to_bytes()
    return RawCase(np.zeros((2, 4, 3, 4), np.float16), np.array([1, 3]), (3, 4, 5), source, ())


LABELS = np.array([0, 1, 2, 4] * 6, np.uint8).reshape(2, 3, 4)


def test_labels_lie_in_the_sources_grid_and_replace_an_older_file(tmp_path):
    path = tmp_path / "new" / "mask.nii.gz"
    for labels in (LABELS[::-1].copy(), LABELS):
        write_labels(path, case(), labels)
    image = nib.load(path)
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_array_equal(image.dataobj[:, :, 3], LABELS[1])
    assert image.get_data_dtype() == np.uint8
    assert image.header["descrip"] == b"labels 1 NEC, 2 ED, 4 ET"
    assert [each.name for each in path.parent.iterdir()] == ["mask.nii.gz"]


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SRA", "PIR"])
def test_masks_of_brought_slices_lie_in_the_axes_of_the_source(codes, tmp_path):
    plain = nib.Nifti1Image(np.ones((3, 4, 5), np.int16), np.diag([-1.0, -2.0, 3.0, 1.0]))
    axes = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(nib.io_orientation(plain.affine), axes)
    scan = plain.as_reoriented(turn)
    image, z = np.zeros((2, 4, 3, 4), np.float16), np.array([1, 3])
    brought = RawCase(image, z, (3, 4, 5), scan.to_bytes(), (), source_affine=scan.affine)
    probability = np.random.default_rng(0).random((2, 3, 3, 4)).astype(np.float32)
    write_labels(tmp_path / "mask.nii.gz", brought, LABELS)
    write_probabilities(tmp_path / "p.nii.gz", brought, probability, ("ET", "TC", "WT"))
    for name, planes in (("mask", LABELS), ("p", probability)):
        written = nib.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_array_equal(written.affine, scan.affine)
        assert written.shape[:3] == scan.shape
        back = nib.orientations.ornt_transform(axes, nib.orientations.axcodes2ornt("LPS"))
        volume = np.asarray(written.as_reoriented(back).dataobj)
        np.testing.assert_array_equal(volume[:, :, 1], np.moveaxis(planes[0], (-2, -1), (0, 1)))
        np.testing.assert_array_equal(volume[:, :, 3], np.moveaxis(planes[1], (-2, -1), (0, 1)))


def test_probabilities_say_what_their_planes_are(tmp_path):
    probability = np.random.default_rng(0).random((2, 3, 3, 4)).astype(np.float32)
    write_probabilities(tmp_path / "p.nii.gz", case(), probability, ("ET", "TC", "WT"))
    image = nib.load(tmp_path / "p.nii.gz")
    assert image.shape == (3, 4, 5, 3)
    np.testing.assert_array_equal(image.dataobj[:, :, 1, 2], probability[0, 2])
    assert image.header["descrip"] == b"probabilities ET, TC, WT"


def test_a_grid_that_does_not_come_back_leaves_no_file(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    with pytest.raises(CaseError, match=r"mask\.nii\.gz has a grid .*nothing was written"):
        write_labels(tmp_path / "mask.nii.gz", case(sheared), LABELS)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_older_mask(tmp_path, monkeypatch):
    path = tmp_path / "mask.nii.gz"
    write_labels(path, case(), LABELS)
    before = path.read_bytes()

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=r"mask\.nii\.gz cannot be written \(No space left"):
        write_labels(path, case(), LABELS[::-1].copy())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
