"""Faults that keep a case out, and findings that are only recorded."""

import numpy as np
import pytest

from pipeline.quality import BRATS_AFFINE, CaseError, check_geometry, check_label, describe
from pipeline.volume import Volume


def volume(shape=(5, 4, 3), affine=BRATS_AFFINE) -> Volume:
    return Volume(np.zeros(shape, np.uint8), affine)


def shifted(millimetres: float) -> np.ndarray:
    affine = BRATS_AFFINE.copy()
    affine[2, 3] += millimetres
    return affine


def test_brats_geometry_is_accepted():
    check_geometry({"t1": volume((240, 240, 155)), "seg": volume((240, 240, 155))}, "brats")


def test_another_shape_is_refused_unless_any_is_allowed():
    volumes = {"t1": volume(), "seg": volume()}
    with pytest.raises(
        CaseError, match=r"shape \(5, 4, 3\) is not \(240, 240, 155\).*--geometry any"
    ):
        check_geometry(volumes, "brats")
    check_geometry(volumes, "any")


def test_another_affine_is_refused_unless_any_is_allowed():
    volumes = {name: volume((240, 240, 155), np.eye(4)) for name in ("t1", "seg")}
    with pytest.raises(CaseError, match="affine is not that of BraTS"):
        check_geometry(volumes, "brats")
    check_geometry(volumes, "any")


def test_modalities_of_different_shapes_are_refused():
    volumes = {"seg": volume(), "flair": volume((4, 5, 3))}
    with pytest.raises(CaseError, match=r"flair has shape \(4, 5, 3\), seg \(5, 4, 3\)"):
        check_geometry(volumes, "any")


def test_modalities_with_different_affines_are_refused():
    with pytest.raises(CaseError, match="t2 and seg have different affines"):
        check_geometry({"seg": volume(), "t2": volume(affine=shifted(0.5))}, "any")


def test_affines_may_differ_by_rounding():
    check_geometry({"seg": volume(), "t2": volume(affine=shifted(1e-4))}, "any")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_labels_become_bytes(dtype):
    voxels = np.array([0, 1, 2, 4], dtype).reshape(1, 2, 2)
    label = check_label(voxels)
    assert label.dtype == np.uint8
    assert label.ravel().tolist() == [0, 1, 2, 4]


def test_label_3_of_2023_is_refused():
    with pytest.raises(CaseError, match=r"labels \[3\]; BraTS 2018 to 2020 use 0, 1, 2, 4"):
        check_label(np.array([[[0, 1, 2, 3]]], np.uint8))


def test_all_foreign_labels_are_named():
    with pytest.raises(CaseError, match=r"labels \[3, 5\]"):
        check_label(np.array([[[5, 0, 3, 4]]], np.uint8))


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.5], np.float32),
        np.array([260], np.int16),  # 260 - 256 = 4
        np.array([-252], np.int16),  # 256 - 252 = 4
        np.array([np.nan], np.float32),
    ],
)
def test_values_that_are_no_labels_are_refused(values):
    with pytest.raises(CaseError, match="not whole numbers from 0 to 4"):
        check_label(values.reshape(1, 1, 1))


def test_absent_labels_are_findings():
    brain = np.ones((1, 2, 2), np.bool_)
    label = np.array([[[2, 2], [0, 0]]], np.uint8)
    assert list(describe(label, brain)) == ["no NEC", "no ET"]


def test_labels_outside_the_brain_are_counted():
    label = np.array([[[1, 2, 4, 0, 0]]], np.uint8)
    brain = np.array([[[True, False, False, False, True]]])
    assert list(describe(label, brain)) == ["2 label voxels outside the brain"]


def test_a_complete_case_has_no_findings():
    label = np.array([[[1, 2, 4]]], np.uint8)
    assert list(describe(label, np.ones((1, 1, 3), np.bool_))) == []
