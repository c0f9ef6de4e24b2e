"""One case to its slices: right axes, right planes, right numbers."""

import gzip
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cache_schema.shard import CaseSlices
from pipeline.case import Preprocessing, prepare_case, read_sources, source_key
from pipeline.cohorts import Case
from pipeline.quality import BRATS_AFFINE, CaseError

MODALITIES = ("t1", "t1ce", "t2", "flair")
SHAPE = (5, 7, 6)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SETTINGS = Preprocessing("zscore", bias_correct=False, geometry="any", plane=(5, 7))
CASE = Case("BraTS20_Training_001", "brats2020", Path(), {}, "CBICA_AAB_1", "HGG", "CBICA")


def nifti(voxels: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes(), 1)


def volumes() -> dict[str, np.ndarray]:
    """Four modalities with brain in the planes z = 1 to 4, of flair alone in z = 1, and a lesion."""
    generator = np.random.default_rng(0)
    images = {}
    for number, name in enumerate(MODALITIES):
        image = np.zeros(SHAPE, np.int16)
        first = 1 if name == "flair" else 2
        image[1:4, 2:6, first:5] = generator.integers(100, 900, (3, 4, 5 - first)) + number
        images[name] = image
    seg = np.zeros(SHAPE, np.uint8)
    seg[1, 2, 2], seg[2, 3:5, 3], seg[3, 5, 4] = 1, 2, 4
    return images | {"seg": seg}


def sources(**changes: np.ndarray | bytes | None) -> dict[str, bytes]:
    """The files of the case; a change of None takes a file away."""
    files = {**volumes(), **changes}
    return {
        role: content if isinstance(content, bytes) else nifti(content)
        for role, content in files.items()
        if content is not None
    }


def images_of(prepared: CaseSlices) -> np.ndarray:
    return np.stack([image for image, _ in prepared.slices])


def labels_of(prepared: CaseSlices) -> np.ndarray:
    return np.stack([label for _, label in prepared.slices])


def test_height_is_the_first_and_width_the_second_voxel_axis():
    images = volumes()
    prepared = prepare_case(CASE, sources(), SETTINGS)
    assert images_of(prepared).shape == (4, 4, 5, 7)
    for row, z in enumerate(prepared.z):
        np.testing.assert_array_equal(labels_of(prepared)[row], images["seg"][:, :, z])
        for channel, name in enumerate(MODALITIES):
            plane = images[name][:, :, z]
            np.testing.assert_array_equal(images_of(prepared)[row, channel] != 0, plane != 0)


def test_values_are_those_of_a_plain_zscore():
    prepared = prepare_case(CASE, sources(), SETTINGS)
    for channel, name in enumerate(MODALITIES):
        image = volumes()[name].astype(np.float64)
        inside = image[image != 0]
        expected = np.where(image != 0, (image - inside.mean()) / inside.std(), 0)
        np.testing.assert_array_equal(
            images_of(prepared)[:, channel].transpose(1, 2, 0),
            expected[:, :, 1:5].astype(np.float16),
        )
        assert prepared.mean[channel] == pytest.approx(inside.mean())
        assert prepared.std[channel] == pytest.approx(inside.std())


def test_slices_can_be_gone_through_again_and_do_not_share_memory():
    slices = prepare_case(CASE, sources(), SETTINGS).slices
    first = list(slices)
    for image, label in slices:
        image[:], label[:] = 7, 7
    again = list(slices)
    assert len(first) == len(again) == 4
    for (image, label), (image_again, label_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, image_again)
        np.testing.assert_array_equal(label, label_again)
        assert not np.any(image == 7)


def test_every_plane_with_brain_in_any_modality_is_kept():
    assert prepare_case(CASE, sources(), SETTINGS).z.tolist() == [1, 2, 3, 4]


def test_an_empty_plane_between_planes_with_brain_is_not_kept():
    images = {name: image for name, image in volumes().items() if name != "seg"}
    for image in images.values():
        image[:, :, 2] = 0
    seg = volumes()["seg"]
    seg[:, :, 2] = 0
    prepared = prepare_case(CASE, sources(**images, seg=seg), SETTINGS)
    assert prepared.z.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(labels_of(prepared)[1], seg[:, :, 3])


def test_a_plane_with_labels_but_no_brain_is_kept_and_noted():
    seg = volumes()["seg"]
    seg[0, 0, 5] = 2
    prepared = prepare_case(CASE, sources(seg=seg), SETTINGS)
    assert prepared.z.tolist() == [1, 2, 3, 4, 5]
    assert prepared.findings == "1 label voxels outside the brain"


def test_labels_in_one_modalitys_brain_are_not_outside():
    assert prepare_case(CASE, sources(), SETTINGS).findings == ""


def test_a_larger_plane_is_padded_at_the_high_end():
    settings = replace(SETTINGS, plane=(9, 8))
    padded = prepare_case(CASE, sources(), settings)
    plain = prepare_case(CASE, sources(), SETTINGS)
    assert images_of(padded).shape == (4, 4, 9, 8)
    np.testing.assert_array_equal(images_of(padded)[..., :5, :7], images_of(plain))
    np.testing.assert_array_equal(labels_of(padded)[:, :5, :7], labels_of(plain))
    assert not images_of(padded)[..., 5:, :].any()
    assert not images_of(padded)[..., 7:].any()
    assert padded.shape == SHAPE


def test_a_plane_that_is_too_small_is_refused():
    for plane in ((4, 7), (5, 6)):
        with pytest.raises(CaseError, match=r"plane \(5, 7\) does not fit"):
            prepare_case(CASE, sources(), replace(SETTINGS, plane=plane))


def test_an_absent_modality_is_zeros_and_flagged():
    prepared = prepare_case(CASE, sources(t1ce=None), SETTINGS)
    assert prepared.present == (True, False, True, True)
    assert not images_of(prepared)[:, 1].any()
    assert images_of(prepared)[:, 2].any()
    assert (prepared.mean[1], prepared.std[1]) == (0.0, 1.0)


def test_the_affine_and_who_it_is_are_carried_along():
    prepared = prepare_case(CASE, sources(), SETTINGS)
    np.testing.assert_array_equal(prepared.affine, AFFINE)
    named = (prepared.case_id, prepared.patient_id, prepared.cohort, prepared.grade, prepared.site)
    assert named == ("BraTS20_Training_001", "CBICA_AAB_1", "brats2020", "HGG", "CBICA")


def test_a_volume_is_restored_from_its_slices():
    prepared = prepare_case(CASE, sources(), replace(SETTINGS, plane=(6, 8)))
    height, width, depth = prepared.shape
    volume = np.zeros((height, width, depth), np.uint8)
    volume[:, :, prepared.z] = labels_of(prepared)[:, :height, :width].transpose(1, 2, 0)
    np.testing.assert_array_equal(volume, volumes()["seg"])


def test_percentile_clips_before_it_scales():
    image = volumes()["t2"]
    image[2, 3, 3] = 20000
    inside = image[image != 0].astype(np.float64)
    low, high = np.percentile(inside, [0.5, 99.5])
    clipped = np.clip(inside, low, high)
    prepared = prepare_case(CASE, sources(t2=image), replace(SETTINGS, normalize="percentile"))
    assert prepared.mean[2] == pytest.approx(clipped.mean())
    assert images_of(prepared)[2, 2, 2, 3] == np.float16((high - clipped.mean()) / clipped.std())


def test_bias_correction_changes_values_but_not_the_background():
    generator = np.random.default_rng(0)
    image = np.zeros((20, 18, 16), np.int16)
    image[3:17, 3:15, 2:14] = generator.integers(400, 500, (14, 12, 12))
    image[3:17] = (image[3:17] * np.linspace(1, 2, 14)[:, None, None]).astype(np.int16)
    seg = np.zeros((20, 18, 16), np.uint8)
    files = {name: nifti(image) for name in MODALITIES} | {"seg": nifti(seg)}
    plain = prepare_case(CASE, files, replace(SETTINGS, plane=(20, 18)))
    settings = replace(SETTINGS, plane=(20, 18), bias_correct=True)
    corrected = prepare_case(CASE, files, settings)
    assert not np.array_equal(images_of(plain), images_of(corrected))
    assert not images_of(corrected)[:, 0][image.transpose(2, 0, 1)[plain.z] == 0].any()
    drift = [
        abs(images_of(c)[:, 0, 3:9].mean() - images_of(c)[:, 0, 11:17].mean())
        for c in (plain, corrected)
    ]
    assert drift[1] < 0.5 * drift[0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"t2": np.zeros(SHAPE, np.int16)}, "t2 is empty"),
        ({"t1ce": np.full(SHAPE, 7, np.int16)}, "t1ce is constant"),
        ({"flair": np.full(SHAPE, np.nan, np.float32)}, "flair has voxels that are not finite"),
        ({"seg": np.full(SHAPE, 3, np.uint8)}, r"labels \[3\]"),
        ({"t1": np.ones((7, 5, 6), np.int16)}, r"t1 has shape \(7, 5, 6\), seg \(5, 7, 6\)"),
        ({"t1": nifti(volumes()["t1"], np.eye(4))}, "t1 and seg have different affines"),
        ({"flair": nifti(volumes()["flair"])[:-20]}, "flair is not a readable NIfTI file"),
        ({"seg": nifti(volumes()["seg"])[:60]}, "seg is not a readable NIfTI file"),
    ],
)
def test_a_fault_names_its_file(fault, message):
    with pytest.raises(CaseError, match=message):
        prepare_case(CASE, sources(**fault), SETTINGS)


def test_an_empty_modality_is_named_even_when_n4_runs_first():
    empty = np.zeros((20, 18, 16), np.int16)
    full = np.random.default_rng(0).integers(400, 500, empty.shape).astype(np.int16)
    files = {"t1": empty, "t1ce": full, "t2": full, "flair": full, "seg": empty.astype(np.uint8)}
    settings = replace(SETTINGS, plane=(20, 18), bias_correct=True)
    with pytest.raises(CaseError, match="t1 is empty"):
        prepare_case(CASE, {name: nifti(image) for name, image in files.items()}, settings)


@pytest.mark.parametrize("shape", [(20, 18, 3), (2, 18, 16)])
def test_n4_corrects_thin_volumes(shape):
    image = np.random.default_rng(0).integers(400, 500, shape).astype(np.int16)
    files = {name: nifti(image) for name in MODALITIES} | {"seg": nifti(image * np.uint8(0))}
    settings = replace(SETTINGS, plane=(20, 18), bias_correct=True)
    assert len(prepare_case(CASE, files, settings).z) == shape[2]


def test_a_modality_that_n4_cannot_correct_is_named():
    image = np.random.default_rng(0).integers(400, 500, (20, 18, 1)).astype(np.int16)
    files = {name: nifti(image) for name in MODALITIES} | {"seg": nifti(image * np.uint8(0))}
    settings = replace(SETTINGS, plane=(20, 18), bias_correct=True)
    with pytest.raises(CaseError, match=r"^t1 of \(1, 18, 20\) cannot be corrected by N4 \(\w"):
        prepare_case(CASE, files, settings)


def test_a_fourth_axis_of_length_one_is_no_fault():
    plain = prepare_case(CASE, sources(), SETTINGS)
    four = prepare_case(CASE, sources(t1=volumes()["t1"][..., None]), SETTINGS)
    np.testing.assert_array_equal(images_of(four), images_of(plain))


def test_compression_does_not_matter_to_the_voxels_but_to_the_key():
    packed = sources()
    plain = {role: gzip.decompress(content) for role, content in packed.items()}
    first, second = (prepare_case(CASE, files, SETTINGS) for files in (packed, plain))
    np.testing.assert_array_equal(images_of(first), images_of(second))
    assert first.key == source_key(packed) != second.key


def test_the_key_depends_on_content_and_role_alone():
    files = sources()
    assert source_key(dict(reversed(files.items()))) == source_key(files)
    swapped = {**files, "t1": files["t2"], "t2": files["t1"]}
    assert source_key(swapped) != source_key(files)


def test_the_fingerprint_depends_on_every_parameter():
    others = [
        replace(SETTINGS, normalize="percentile"),
        replace(SETTINGS, bias_correct=True),
        replace(SETTINGS, geometry="brats"),
        replace(SETTINGS, plane=(7, 5)),
    ]
    assert len({settings.fingerprint for settings in (SETTINGS, *others)}) == 5
    assert replace(SETTINGS).fingerprint == SETTINGS.fingerprint


def test_fingerprints_of_brats_geometry_are_those_of_version_1_and_others_are_not():
    settings = Preprocessing("zscore", bias_correct=False, geometry="brats", plane=(240, 240))
    assert settings.fingerprint == (
        "3d296a78ca8064e8cbe288906f62d28d5142ddf8999b057efa28b8b4fd0c4f83"
    )
    assert (
        replace(settings, geometry="any").fingerprint
        != (
            "ccdfb4b947106c58b26770b6e11c6b842547c11df02bf1f1b01b4809b5355bc1"  # before axes were looked at
        )
    )


def reoriented(voxels: np.ndarray, codes: str, affine: np.ndarray = AFFINE) -> bytes:
    """The same scan stored with voxel axes that run to these sides, by nibabel."""
    image = nib.Nifti1Image(voxels, affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    return image.as_reoriented(turn).to_bytes()


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPI", "PIR", "ASL", "SRA"])
def test_other_axes_give_the_same_slices(codes):
    plain = prepare_case(CASE, sources(), SETTINGS)
    turned = prepare_case(
        CASE, {role: reoriented(each, codes) for role, each in volumes().items()}, SETTINGS
    )
    np.testing.assert_array_equal(images_of(turned), images_of(plain))
    np.testing.assert_array_equal(labels_of(turned), labels_of(plain))
    assert turned.z.tolist() == plain.z.tolist()
    np.testing.assert_array_equal(turned.affine, AFFINE)
    assert (turned.shape, turned.findings) == (SHAPE, "")


@pytest.mark.parametrize("role", ["seg", "t1", "flair"])
def test_one_file_in_other_axes_lies_in_the_same_grid(role):
    plain = prepare_case(CASE, sources(), SETTINGS)
    turned = prepare_case(CASE, sources(**{role: reoriented(volumes()[role], "SRA")}), SETTINGS)
    np.testing.assert_array_equal(images_of(turned), images_of(plain))
    np.testing.assert_array_equal(labels_of(turned), labels_of(plain))


@pytest.mark.parametrize("role", ["seg", "t2"])
def test_a_file_without_three_axes_is_refused(role):
    image = nib.Nifti1Image(volumes()[role], AFFINE)
    image.set_sform(np.diag([-1.0, -1.0, 0.0, 1.0]), code=1)
    with pytest.raises(CaseError, match=f"^{role} has an affine that leaves no three axes"):
        prepare_case(CASE, sources(**{role: image.to_bytes()}), SETTINGS)


def shifted(name: str, millimetres: float = 239.0) -> bytes:
    affine = AFFINE.copy()
    affine[1, 3] += millimetres
    return nifti(volumes()[name], affine)


def test_a_segmentation_whose_origin_alone_is_wrong_is_repaired():
    plain = prepare_case(CASE, sources(), SETTINGS)
    repaired = prepare_case(CASE, sources(seg=shifted("seg")), SETTINGS)
    assert repaired.findings == (
        "repaired: origin (0, 239, 0) of seg taken as (0, 0, 0), that of the four modalities"
    )
    np.testing.assert_array_equal(repaired.affine, AFFINE)
    np.testing.assert_array_equal(labels_of(repaired), labels_of(plain))


@pytest.mark.parametrize(
    "changes",
    [
        {"seg": shifted("seg"), "t2": None},  # three modalities are not four
        {"seg": shifted("seg"), "flair": shifted("flair", 1.0)},
        {"flair": shifted("flair")},
        {"seg": nifti(volumes()["seg"], np.eye(4))},  # its directions are others too
    ],
)
def test_any_other_disagreement_is_a_fault(changes):
    with pytest.raises(CaseError, match="have different affines"):
        prepare_case(CASE, sources(**changes), SETTINGS)


def test_under_brats_geometry_a_repaired_segmentation_is_held_against_brats():
    settings = Preprocessing("zscore", bias_correct=False, geometry="brats", plane=(240, 240))
    with pytest.raises(CaseError, match=r"shape \(5, 7, 6\) is not"):
        prepare_case(CASE, sources(seg=shifted("seg")), settings)
    voxels = np.zeros((240, 240, 155), np.uint8)
    voxels[100:103, 100:104, 70] = np.arange(12).reshape(3, 4)
    files = {name: nifti(voxels, BRATS_AFFINE) for name in MODALITIES}
    seg = nifti((voxels > 6).astype(np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0]))  # origin (0, 0, 0)
    prepared = prepare_case(CASE, {**files, "seg": seg}, settings)
    assert "repaired: origin (0, 0, 0) of seg taken as (0, 239, 0)" in prepared.findings
    np.testing.assert_array_equal(prepared.affine, BRATS_AFFINE)


def test_a_background_and_a_part_of_a_head_are_findings():
    air = volumes()["t2"]
    air[air == 0] = -1024
    cut = volumes()["flair"]
    cut[:, :, :3] = 0
    findings = prepare_case(CASE, sources(t2=air, flair=cut), SETTINGS).findings.splitlines()
    assert findings == [
        "t2 has a background other than 0: 100% of its voxels count as brain",
        "flair covers 67% of the head that the other modalities show",  # 2 of 3 planes
    ]


def test_sources_are_read_as_they_lie_on_disk(tmp_path):
    for role in ("seg", "t1"):
        (tmp_path / role).write_bytes(role.encode())
    case = replace(CASE, files={role: tmp_path / role for role in ("t1", "seg")})
    assert read_sources(case) == {"t1": b"t1", "seg": b"seg"}


def test_a_case_without_segmentation_is_refused(tmp_path):
    with pytest.raises(CaseError, match="no segmentation file"):
        read_sources(replace(CASE, files={"t1": tmp_path / "t1"}))


def test_a_file_that_vanished_is_named(tmp_path):
    with pytest.raises(CaseError, match=r"seg\.nii cannot be read \(No such file"):
        read_sources(replace(CASE, files={"seg": tmp_path / "seg.nii"}))
