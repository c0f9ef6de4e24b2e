"""Faults that keep a case out, and findings that are only recorded."""

import numpy as np
import pytest

from pipeline.crop import crop
from pipeline.quality import (
    BRATS_AFFINE,
    CaseError,
    Coverage,
    check_geometry,
    check_label,
    describe,
    describe_coverage,
    measure_coverage,
    repair_origin,
)
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


def head(shape=(16, 64, 48), reach=0.42) -> np.ndarray:
    """An ellipsoid of intensities from 300 to 379, axes (k, j, i), reaching so far from the middle."""
    at = np.indices(shape) - np.reshape(shape, (3, 1, 1, 1)) / 2 + 0.5
    inside = sum((a / (side * reach)) ** 2 for a, side in zip(at, shape, strict=True)) < 1
    noise = np.random.default_rng(0).integers(300, 380, shape)
    return np.where(inside, noise, 0).astype(np.int16)


def measured(image: np.ndarray) -> Coverage:
    return measure_coverage(image, crop(image).voxels)


def with_air(air, shape=(16, 64, 48)) -> np.ndarray:
    image = head(shape)
    return np.where(image == 0, air, image)


def noise(low: int, high: int) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, (16, 64, 48))


def in_a_larger_grid(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((3, 4), (9, 20), (11, 2)))


def framed(image: np.ndarray) -> np.ndarray:
    """A border of one voxel at the high end of the second axis."""
    changed = image.copy()
    changed[:, -1] = 7
    return changed


@pytest.mark.parametrize("larger", [lambda image: image, in_a_larger_grid])
@pytest.mark.parametrize(
    "image",
    [
        with_air(-1024).astype(np.int16),
        with_air(1e-6).astype(np.float32),
        with_air(np.nan).astype(np.float32),
        head() * 0.5 + 10.0,  # an intercept
        head() + noise(1, 20),
        with_air(noise(-1, 3)),  # one voxel of air in four is 0
        framed(head()),
    ],
)
def test_a_background_other_than_0_is_noticed_also_in_a_larger_grid(image, larger):
    assert not measured(larger(image)).is_background_zero


@pytest.mark.parametrize("shape", [(8, 9, 5), (1, 64, 48), (64, 1, 48)])
def test_a_background_is_noticed_in_few_planes_too(shape):
    assert not measured(with_air(-1, shape)).is_background_zero


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_a_border_on_one_side_is_noticed(axis, end):
    image = head().swapaxes(0, axis)
    image[end] = 7
    assert not measured(image.swapaxes(0, axis)).is_background_zero


@pytest.mark.parametrize(
    "image",
    [
        head(),
        in_a_larger_grid(head()),
        head((78, 120, 96)),
        head((1, 64, 48)),
        head((5, 7, 6)),
        crop(head()).voxels,  # the head touches every face
        head()[6:10],  # a few planes of its middle: faces are brain
        crop(head()[6:10]).voxels,
        head()[:, 20:],  # cut through
        crop(head((40, 64, 48))).voxels[4:-4, 5:-5, 4:-4],  # cut through on every side
        np.maximum(head(), np.pad([[[9]]], ((4, 11), (30, 33), (0, 47)))),  # one speck
        np.zeros((16, 64, 48), np.int16),
    ],
)
def test_a_head_alone_has_no_background(image):
    assert measured(image).is_background_zero


def test_the_background_is_told_with_what_counts_as_brain():
    coverages = {"t1": measured(head()), "t2": measured(with_air(-1024))}
    assert list(describe_coverage(coverages)) == [
        "t2 has a background other than 0: 100% of its voxels count as brain"
    ]


def shown(**counts: int) -> dict[str, Coverage]:
    return {name: Coverage(count, count / 9000, True) for name, count in counts.items()}


@pytest.mark.parametrize(
    ("counts", "partial"),
    [
        ({"t1": 1000, "t1ce": 990, "t2": 1010, "flair": 664}, ["flair covers 66%"]),
        ({"t1": 849, "t1ce": 1000, "t2": 1000, "flair": 1000}, ["t1 covers 85%"]),
        ({"t1": 851, "t1ce": 1000, "t2": 1000, "flair": 1000}, []),
        ({"t1": 1600, "t1ce": 1000, "t2": 990, "flair": 980}, []),  # t1 is the odd one
        ({"t1": 500, "flair": 1000}, ["t1 covers 50%"]),
        ({"flair": 1000}, []),
        ({}, []),
    ],
)
def test_a_modality_with_much_less_of_the_head_is_told(counts, partial):
    found = [text.split(" of ")[0] for text in describe_coverage(shown(**counts))]
    assert found == partial


def test_a_modality_with_a_background_does_not_make_the_others_look_small():
    coverages = shown(t1=1000, t2=1000) | {"flair": Coverage(9000, 1.0, False)}
    assert len(list(describe_coverage(coverages))) == 1


def four(affine=BRATS_AFFINE, **changes) -> dict[str, np.ndarray]:
    return dict.fromkeys(("t1", "t1ce", "t2", "flair"), affine) | changes


def moved(*millimetres: float) -> np.ndarray:
    affine = BRATS_AFFINE.copy()
    affine[:3, 3] = millimetres
    return affine


def test_the_origin_of_a_segmentation_alone_is_repaired_and_told():
    seg = volume(affine=moved(0, 0, 0))
    repaired, findings = repair_origin(seg, four())
    np.testing.assert_array_equal(repaired.affine, BRATS_AFFINE)
    assert repaired.voxels is seg.voxels
    assert findings == (
        "repaired: origin (0, 0, 0) of seg taken as (0, 239, 0), that of the four modalities",
    )


@pytest.mark.parametrize(
    ("affine", "affines"),
    [
        (BRATS_AFFINE, four()),
        (BRATS_AFFINE, four(flair=moved(0, 0, 0))),  # a modality is elsewhere
        (moved(0, 0, 0), four(flair=moved(0, 1, 0))),
        (moved(0, 0, 0), {"t1": BRATS_AFFINE, "t2": BRATS_AFFINE, "flair": BRATS_AFFINE}),
        (moved(0, 0, 0), {}),
        (np.eye(4), four()),  # other directions too
        (np.diag([-1.0, -1.0, 2.0, 1.0]), four()),
    ],
)
def test_any_other_disagreement_stays_as_it_is(affine, affines):
    seg = volume(affine=affine)
    assert repair_origin(seg, affines) == (seg, ())
