"""NIfTI in and out, held against nibabel and SimpleITK."""

import gzip
import io
import os
import struct
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.planes import open_planes
from pipeline.volume import (
    Volume,
    VolumeError,
    bring_to_brats_axes,
    check_like,
    correct_bias_field,
    decode_nifti,
    encode_like,
    encode_nifti,
    has_brats_axes,
    read_affine,
    read_file,
    read_header,
    read_shape,
    restore_axes,
)

BRATS = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])
VOXELS = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)


def nifti(voxels: np.ndarray, affine: np.ndarray = BRATS) -> bytes:
    return nib.Nifti1Image(voxels, affine).to_bytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_and_gzip_bytes_are_told_apart_by_what_they_are(pack):
    volume = decode_nifti(pack(nifti(VOXELS)))
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.affine, BRATS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_what_is_encoded_is_decoded(dtype):
    volume = decode_nifti(encode_nifti(VOXELS.astype(dtype), BRATS))
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert volume.voxels.dtype == dtype
    np.testing.assert_array_equal(volume.affine, BRATS)


def test_simpleitk_reads_brats_geometry_from_what_is_encoded(tmp_path):
    (tmp_path / "v.nii.gz").write_bytes(encode_nifti(VOXELS, BRATS))
    image = sitk.ReadImage(str(tmp_path / "v.nii.gz"))
    assert image.GetSize() == (5, 4, 3)
    assert image.GetSpacing() == (1.0, 1.0, 1.0)
    assert image.GetOrigin() == (0.0, -239.0, 0.0)
    assert image.GetDirection() == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, VOXELS)


def test_simpleitk_reads_unequal_spacings_axes_and_origin(tmp_path):
    # i runs to the front at 0.5 mm, j down at 2 mm, k to the right at 3 mm; RAS+.
    affine = np.array([[0, 0, 3.0, -7], [0.5, 0, 0, 11], [0, -2.0, 0, 13], [0, 0, 0, 1]])
    (tmp_path / "v.nii.gz").write_bytes(encode_nifti(VOXELS, affine))
    image = sitk.ReadImage(str(tmp_path / "v.nii.gz"))
    assert image.GetSpacing() == pytest.approx((0.5, 2.0, 3.0))
    assert image.GetOrigin() == pytest.approx((7.0, -11.0, 13.0))
    point = image.TransformIndexToPhysicalPoint((4, 1, 2))
    assert point == pytest.approx((1.0, -13.0, 11.0))  # RAS (-7+6, 11+2, 13-2), x and y negated
    assert image.GetPixel((4, 1, 2)) == VOXELS[4, 1, 2]


def test_sform_and_qform_agree():
    image = nib.Nifti1Image.from_bytes(gzip.decompress(encode_nifti(VOXELS, BRATS)))
    np.testing.assert_array_equal(image.get_sform(), image.get_qform())
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units() == ("mm", "sec")


def test_the_same_voxels_give_the_same_bytes_without_a_time():
    content = encode_nifti(VOXELS, BRATS)
    assert content == encode_nifti(VOXELS.copy(), BRATS.copy())
    assert content[4:8] == b"\0\0\0\0"  # MTIME of RFC 1952


@pytest.mark.parametrize("slope", [1.0, 2.0])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [([("R", "u1"), ("G", "u1"), ("B", "u1")], "RGB"), (np.complex64, "complex64")],
)
def test_colours_and_complex_numbers_are_no_intensities(dtype, name, slope):
    image = nib.Nifti1Image(np.zeros((5, 4, 3), dtype), BRATS)
    content = bytearray(image.to_bytes())
    content[112:116] = np.float32(slope).tobytes()  # scl_slope
    with pytest.raises(VolumeError, match=f"has voxels of type {name}, not numbers"):
        decode_nifti(bytes(content))


def test_scaled_integers_become_the_values_that_they_stand_for():
    image = nib.Nifti1Image(VOXELS, BRATS)
    image.header.set_slope_inter(0.5, 10)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([0.5, 10], "<f4").tobytes()  # scl_slope, scl_inter
    np.testing.assert_allclose(decode_nifti(bytes(raw)).voxels, VOXELS * 0.5 + 10)


def test_a_fourth_axis_of_length_one_is_dropped():
    volume = decode_nifti(nifti(VOXELS[..., None]))
    np.testing.assert_array_equal(volume.voxels, VOXELS)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3, 2)])
def test_what_has_not_three_axes_is_refused(shape):
    with pytest.raises(VolumeError, match=f"has {len(shape)} axes, not 3"):
        decode_nifti(nifti(np.zeros(shape, np.int16)))


@pytest.mark.parametrize("keep", [30, 0.5, -8, -1])
def test_truncated_gzip_is_refused(keep):
    content = gzip.compress(nifti(np.random.default_rng(0).integers(0, 999, (9, 9, 9), np.int16)))
    length = int(keep * len(content)) if isinstance(keep, float) else keep
    with pytest.raises(VolumeError, match="not a readable NIfTI file"):
        decode_nifti(content[:length])


def test_a_wrong_checksum_is_refused():
    content = bytearray(gzip.compress(nifti(VOXELS)))
    content[-6] ^= 1
    with pytest.raises(VolumeError, match="not a readable NIfTI file"):
        decode_nifti(bytes(content))


def test_truncated_plain_bytes_are_refused():
    with pytest.raises(VolumeError, match="not a readable NIfTI file"):
        decode_nifti(nifti(VOXELS)[:-1])


def test_bytes_that_are_not_nifti_are_refused():
    with pytest.raises(VolumeError, match="not a readable NIfTI file"):
        decode_nifti(b"not a header " * 40)


@pytest.mark.parametrize(
    "content", [b"", b"short", gzip.compress(b"")], ids=["empty", "short", "empty gzip"]
)
def test_less_than_a_header_is_refused(content):
    with pytest.raises(VolumeError, match="not a readable NIfTI file"):
        decode_nifti(content)


def test_a_header_that_claims_more_voxels_than_there_are_is_refused():
    raw = bytearray(nifti(VOXELS))
    raw[42:48] = b"\xff\x7f" * 3
    with pytest.raises(VolumeError, match="not a readable NIfTI file"):
        decode_nifti(bytes(raw))


def test_the_reason_is_one_line():
    with pytest.raises(VolumeError) as caught:
        decode_nifti(nifti(VOXELS)[:-1])
    assert "\n" not in str(caught.value)


def test_an_affine_that_is_not_finite_is_refused():
    raw = bytearray(nifti(VOXELS))
    raw[280:284] = np.array([np.nan], "<f4").tobytes()  # srow_x[0]
    with pytest.raises(VolumeError, match="no finite affine"):
        decode_nifti(bytes(raw))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_shape_is_read_without_the_voxels(tmp_path, pack):
    path = tmp_path / "v.nii"
    path.write_bytes(pack(nifti(VOXELS)[:400]))
    assert read_shape(path) == (5, 4, 3)


def test_a_shape_of_four_axes_is_that_of_the_first_three(tmp_path):
    (tmp_path / "v.nii").write_bytes(nifti(VOXELS[..., None]))
    assert read_shape(tmp_path / "v.nii") == (5, 4, 3)


@pytest.mark.parametrize(
    "content",
    [b"not a header " * 40, gzip.compress(nifti(VOXELS))[:20], None],
    ids=["text", "truncated gzip", "no file"],
)
def test_a_shape_that_cannot_be_read_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "v.nii").write_bytes(content)
    with pytest.raises(VolumeError, match=r"v\.nii is not a readable NIfTI file"):
        read_shape(tmp_path / "v.nii")


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")], ids=["empty", "empty gzip"])
def test_a_shape_of_an_empty_file_names_the_file(tmp_path, content):
    (tmp_path / "v.nii").write_bytes(content)
    with pytest.raises(VolumeError, match=r"v\.nii is not a readable NIfTI file"):
        read_shape(tmp_path / "v.nii")


def test_n4_flattens_a_smooth_field_and_leaves_the_background_at_0():
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in (36, 32, 28)), indexing="ij")
    brain = i**2 + j**2 + k**2 < 0.8
    tissue = np.where(brain, np.where(i * j > 0, 400.0, 700.0), 0.0)
    drifted = np.rint(tissue * np.exp(0.5 * i - 0.3 * k)).astype(np.int16)
    corrected = correct_bias_field(drifted, brain)
    assert corrected.dtype == np.float32
    assert not corrected[~brain].any()

    def variation(image: np.ndarray) -> float:
        """Standard deviation over mean within one tissue: 0 without a field."""
        values = image[brain & (i * j > 0)]
        return float(values.std() / values.mean())

    assert variation(drifted) > 0.2
    assert variation(corrected) < 0.4 * variation(drifted)


def test_a_gzip_file_of_several_members_is_read_whole():
    content = nifti(VOXELS)
    packed = gzip.compress(content[:400]) + gzip.compress(content[400:])
    np.testing.assert_array_equal(decode_nifti(packed).voxels, VOXELS)


def in_members(content: bytes, *sizes: int) -> bytes:
    """Compress a file in pieces of these sizes, each a gzip member; the last takes the rest."""
    stops = np.cumsum(sizes).tolist()
    pieces = zip([0, *stops], [*stops, len(content)], strict=True)
    return b"".join(gzip.compress(content[start:stop]) for start, stop in pieces)


@pytest.mark.parametrize("size", [len(nifti(VOXELS)) // 2, 100, 1])
def test_members_of_equal_or_any_size_are_read_whole(size, tmp_path):
    content = nifti(VOXELS)
    # Half and half: the last member's size, which a file ends with, is that of the first one too.
    packed = in_members(content, *[size] * (len(content) // size - 1))
    np.testing.assert_array_equal(decode_nifti(packed).voxels, VOXELS)
    (tmp_path / "v.nii.gz").write_bytes(packed)
    assert read_shape(tmp_path / "v.nii.gz") == VOXELS.shape
    mask = decode_nifti(encode_like(packed, VOXELS.astype(np.uint8), title="labels"))
    np.testing.assert_array_equal(mask.affine, BRATS)


def test_the_empty_member_at_the_end_of_bgzip_is_no_end_too_early():
    content = nifti(VOXELS)
    packed = in_members(content, 352, len(content) - 352)  # the last one is empty
    np.testing.assert_array_equal(decode_nifti(packed + bytes(3)).voxels, VOXELS)


@pytest.mark.parametrize("cut", [1, 9, 20])
def test_a_truncated_last_member_is_refused(cut):
    content = nifti(VOXELS)
    with pytest.raises(VolumeError, match="not a readable NIfTI file"):
        decode_nifti(in_members(content, len(content) // 2)[:-cut])


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_nifti_2_is_read_and_its_mask_lies_where_it_lies(pack, tmp_path):
    image = nib.Nifti2Image(VOXELS, LEFT_HANDED)
    source = pack(image.to_bytes())
    volume = decode_nifti(source)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_array_equal(volume.affine, LEFT_HANDED)
    (tmp_path / "v.nii").write_bytes(source)
    assert read_shape(tmp_path / "v.nii") == (4, 5, 3)  # j runs to the patient's left
    (tmp_path / "mask.nii.gz").write_bytes(encode_like(source, LABELS, title="labels"))
    check_like(tmp_path / "mask.nii.gz", source, LABELS)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, LEFT_HANDED, rtol=1e-6)


def stored(axes: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """VOXELS in BraTS's place, with voxel axes taken in another order and some running backwards."""
    voxels = VOXELS.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = BRATS[:3, :3][:, axes] * signs
    start = [
        0 if sign > 0 else VOXELS.shape[axis] - 1 for axis, sign in zip(axes, signs, strict=True)
    ]
    corner = np.zeros(4)
    corner[list(axes)], corner[3] = start, 1
    affine[:, 3] = BRATS @ corner
    return Volume(np.ascontiguousarray(voxels), affine)


@pytest.mark.parametrize("signs", list(product([1, -1], repeat=3)))
@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_any_axes_are_brought_to_those_of_brats_and_back(axes, signs, tmp_path):
    volume = stored(axes, signs)
    brought = bring_to_brats_axes(volume)
    np.testing.assert_array_equal(brought.voxels, VOXELS)
    np.testing.assert_array_equal(brought.affine, BRATS)
    np.testing.assert_array_equal(restore_axes(brought.voxels, volume.affine), volume.voxels)
    planes = np.stack([brought.voxels, -brought.voxels], axis=-1)
    np.testing.assert_array_equal(restore_axes(planes, volume.affine)[..., 1], -volume.voxels)
    (tmp_path / "v.nii").write_bytes(nifti(volume.voxels, volume.affine))
    assert read_shape(tmp_path / "v.nii") == VOXELS.shape


def test_a_volume_in_the_axes_of_brats_stays_the_same_object():
    volume = Volume(VOXELS, BRATS)
    assert bring_to_brats_axes(volume) is volume


def test_voxels_are_brought_without_a_copy():
    volume = Volume(VOXELS, np.eye(4))
    assert np.shares_memory(bring_to_brats_axes(volume).voxels, VOXELS)
    assert np.shares_memory(restore_axes(VOXELS, np.eye(4)), VOXELS)


def test_of_an_oblique_grid_every_axis_counts_as_the_closest():
    # OBLIQUE's i runs to the front (0.8 of 1.0), j to the left (1.04 of 1.3), k up.
    brought = bring_to_brats_axes(Volume(VOXELS, OBLIQUE))
    np.testing.assert_array_equal(brought.voxels, VOXELS.transpose(1, 0, 2)[:, ::-1])
    for index in ((0, 0, 0), (3, 4, 2), (1, 2, 1)):
        j, i, k = index[0], VOXELS.shape[0] - 1 - index[1], index[2]
        np.testing.assert_allclose(brought.affine @ [*index, 1], OBLIQUE @ [i, j, k, 1], atol=1e-12)


@pytest.mark.parametrize("column", [0, 2])
def test_an_affine_without_three_axes_is_refused(column, tmp_path):
    affine = BRATS.copy()
    affine[:3, column] = affine[:3, 1]
    with pytest.raises(VolumeError, match="affine that leaves no three axes"):
        bring_to_brats_axes(Volume(VOXELS, affine))
    image = nib.Nifti1Image(VOXELS, BRATS)
    image.set_sform(affine, code=1)
    (tmp_path / "v.nii").write_bytes(image.to_bytes())
    with pytest.raises(VolumeError, match=r"v\.nii has an affine that leaves no three axes"):
        read_shape(tmp_path / "v.nii")


def test_a_volume_without_any_transform_is_refused():
    with pytest.raises(VolumeError, match="neither sform nor qform"):
        decode_nifti(scan(BRATS, 0, 0))


def test_a_gzip_file_padded_with_zeros_is_read():
    packed = gzip.compress(nifti(VOXELS)) + bytes(512)
    np.testing.assert_array_equal(decode_nifti(packed).voxels, VOXELS)


OBLIQUE = np.array(
    [[0.6, -1.04, 0, 11.3], [0.8, 0.78, 0, -7.1], [0, 0, 2.9, 3.3], [0, 0, 0, 1]]
)  # axes of 1.0, 1.3 and 2.9 mm, turned about z
LEFT_HANDED = OBLIQUE @ np.diag([-1.0, 1.0, 1.0, 1.0])
LABELS = np.random.default_rng(0).choice([0, 1, 2, 4], VOXELS.shape).astype(np.uint8)


def scan(affine: np.ndarray, sform: int, qform: int, endianness: str = "<") -> bytes:
    image = nib.Nifti1Image(VOXELS, affine, nib.Nifti1Header(endianness=endianness))
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine, qform)
    image.header.set_xyzt_units("micron", "sec")
    image.header["descrip"] = b"a person's name"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a person's name"))
    return image.to_bytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("affine", [BRATS, OBLIQUE, LEFT_HANDED])
def test_a_mask_lies_where_its_scan_lies(affine, codes, endianness, pack, tmp_path):
    source = scan(affine, *codes, endianness)
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(encode_like(pack(source), LABELS, title="labels"))
    check_like(path, pack(source), LABELS)
    (tmp_path / "scan.nii").write_bytes(source)
    ours, theirs = (sitk.ReadImage(str(tmp_path / name)) for name in ("mask.nii.gz", "scan.nii"))
    assert ours.GetOrigin() == theirs.GetOrigin()
    assert ours.GetSpacing() == theirs.GetSpacing()
    assert ours.GetDirection() == theirs.GetDirection()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours).T, LABELS)
    header, original = nib.load(path).header, nib.Nifti1Image.from_bytes(source).header
    for name in ("sform_code", "qform_code", "pixdim", "xyzt_units", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(header[name], original[name])


def test_a_mask_is_stored_plainly_and_takes_no_text_of_its_source():
    content = gzip.decompress(encode_like(scan(BRATS, 1, 1), LABELS, title="labels"))
    header = nib.Nifti1Header(content[:348])
    assert header.get_data_dtype() == np.uint8
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1.0, 0.0)
    assert (float(header["cal_min"]), float(header["cal_max"])) == (0.0, 4.0)
    assert header["descrip"] == b"labels"
    assert b"person" not in content
    assert len(content) == 352 + LABELS.size


def test_planes_of_probabilities_are_the_fourth_axis(tmp_path):
    planes = np.random.default_rng(0).random((*VOXELS.shape, 3)).astype(np.float32)
    path = tmp_path / "planes.nii.gz"
    path.write_bytes(encode_like(scan(OBLIQUE, 1, 1), planes, title="planes"))
    check_like(path, scan(OBLIQUE, 1, 1), planes)
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), planes)


def test_a_mask_elsewhere_or_with_other_labels_is_noticed(tmp_path):
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(encode_like(scan(OBLIQUE, 1, 1), LABELS, title="labels"))
    with pytest.raises(VolumeError, match="spacing, origin, direction"):
        check_like(path, scan(BRATS, 1, 1), LABELS)
    with pytest.raises(VolumeError, match="voxels"):
        check_like(path, scan(OBLIQUE, 1, 1), LABELS[::-1])


def test_a_sheared_grid_which_simpleitk_cannot_hold_is_said_in_one_line(tmp_path, capfd):
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    source = scan(sheared, 1, 0)
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(encode_like(source, LABELS, title="labels"))
    with pytest.raises(VolumeError, match=r"SimpleITK does not read .*orthonormal") as caught:
        check_like(path, source, LABELS)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_source_that_is_no_nifti_gives_no_mask():
    with pytest.raises(VolumeError, match="not a readable NIfTI file"):
        encode_like(b"not a header", LABELS, title="labels")


def with_header(content: bytes, *changes: tuple[int, str, object]) -> bytes:
    """Overwrite fields of a NIfTI-1 header: where, how packed, with what."""
    raw = bytearray(content)
    for place, form, value in changes:
        struct.pack_into(form, raw, place, value)
    return bytes(raw)


def bomb(start: bytes, size: int) -> bytes:
    """Pack a file that goes on with so many zeros, a thousandth on disk, whose last bytes tell its size."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        packed.write(start)
        for _ in range(size // 10**7):
            packed.write(bytes(10**7))
    return file.getvalue()


@contextmanager
def at_most(num_bytes: int):
    """Fail if a block takes more memory than that at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < num_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("told", [None, 100], ids=["honest", "lying"])
def test_a_gzip_file_is_inflated_no_further_than_its_header_tells(told):
    content = bomb(nifti(VOXELS), 10**8)
    if told is not None:
        content = content[:-4] + struct.pack("<I", told)
    with (
        at_most(2**25),
        pytest.raises(VolumeError, match=r"holds more than the 1,049,048 bytes that"),
    ):
        decode_nifti(content)


def test_a_bomb_of_several_members_is_inflated_no_further(tmp_path):
    members = gzip.compress(nifti(VOXELS)) + bomb(b"", 10**8) + gzip.compress(b"")
    with at_most(2**25), pytest.raises(VolumeError, match="holds more than"):
        decode_nifti(members)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_few_bytes_behind_the_last_voxel_do_no_harm(pack):
    volume = decode_nifti(pack(nifti(VOXELS) + bytes(1000)))
    np.testing.assert_array_equal(volume.voxels, VOXELS)


DIMENSIONS = [(42, "<h", 4097), (46, "<h", 32767), (44, "<h", -4)]
OFFSETS = [(108, "<f", value) for value in (1e30, 2.0**31, float("inf"), float("nan"), -352.0)]


@pytest.mark.parametrize("change", [*DIMENSIONS, *OFFSETS], ids=str)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "read", [decode_nifti, read_affine, lambda content: read_header(io.BytesIO(content))]
)
def test_a_header_that_tells_of_voxels_as_no_scan_has_them_is_refused(read, pack, change):
    content = pack(with_header(nifti(VOXELS), change))
    with at_most(2**24), pytest.raises(VolumeError, match="is not a readable NIfTI file"):
        read(content)


def test_sides_that_each_may_be_and_together_not_are_refused(tmp_path):
    large = with_header(nifti(VOXELS), *[(42 + 2 * axis, "<h", 4000) for axis in range(3)])
    (tmp_path / "a.nii").write_bytes(large)
    with pytest.raises(VolumeError, match="claims 4000 x 4000 x 4000 voxels, as no scan has"):
        read_shape(tmp_path / "a.nii")


def test_axes_of_nifti_2_are_bounded_too():
    raw = bytearray(nib.Nifti2Image(VOXELS, BRATS).to_bytes())
    struct.pack_into("<q", raw, 24, 2**40)
    with pytest.raises(VolumeError, match="1099511627776 x 4 x 3 voxels"):
        decode_nifti(bytes(raw))


def test_texts_behind_a_header_are_not_read():
    raw = bytearray(nifti(VOXELS))
    raw[348] = 1  # there are extensions
    struct.pack_into("<f", raw, 108, 352 + 2**23)
    content = bytes(raw[:352]) + bytes(2**23) + bytes(raw[352:])
    with at_most(2**22):
        volume = decode_nifti(content)
    np.testing.assert_array_equal(volume.voxels, VOXELS)


@pytest.mark.parametrize("start", [nifti(VOXELS), b"", gzip.compress(nifti(VOXELS))], ids=range(3))
def test_a_sparse_file_of_50_gb_is_refused_unread(start, tmp_path):
    path = tmp_path / "t1.nii"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(50 * 10**9)
    with at_most(2**22), pytest.raises(OSError, match="larger than"):
        read_file(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_planes_of_a_sparse_file_are_not_looked_for(pack, tmp_path):
    (tmp_path / "t1.nii").write_bytes(pack(nifti(VOXELS)[:-1]))
    os.truncate(tmp_path / "t1.nii", 50 * 10**9)
    with (
        pytest.raises(VolumeError, match="larger than the 1,049,048 bytes"),
        open_planes(tmp_path / "t1.nii"),
    ):
        pass


def test_a_header_is_read_from_the_beginning_of_a_large_packed_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2**15, (64, 64, 64)).astype(np.int16)
    for level in (0, 1, 9):  # not compressed at all, too
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(noise), level))
        assert read_shape(tmp_path / "a.nii.gz") == (64, 64, 64)


def test_a_pipe_in_place_of_a_scan_is_refused(tmp_path):
    os.mkfifo(tmp_path / "t1.nii")
    with pytest.raises(OSError, match="a pipe"):
        read_file(tmp_path / "t1.nii")
    with pytest.raises(VolumeError, match="a pipe"):
        read_shape(tmp_path / "t1.nii")


def test_a_file_is_read_as_it_lies_on_disk_whether_sound_or_not(tmp_path):
    for content in (nifti(VOXELS), gzip.compress(nifti(VOXELS)), b"", b"\x1f\x8bx", b"text" * 1000):
        (tmp_path / "t1.nii").write_bytes(content)
        assert read_file(tmp_path / "t1.nii") == content


def test_numbers_of_a_qform_that_turn_nowhere_are_a_fault_of_the_file():
    image = nib.Nifti1Image(VOXELS, BRATS)
    image.set_sform(None, 0)
    image.set_qform(BRATS, 1)
    raw = with_header(image.to_bytes(), (256, "<f", 3.0))  # quaternions are at most 1
    with pytest.raises(VolumeError, match="has no affine"):
        decode_nifti(raw)


@pytest.mark.parametrize("change", [(280, "<f", float("nan")), (300, "<f", float("inf"))], ids=str)
def test_a_transform_without_numbers_is_a_fault_of_the_file_in_every_reader(change, tmp_path):
    raw = with_header(nifti(VOXELS), change)
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(VolumeError, match="has no finite affine"):
        decode_nifti(raw)
    with pytest.raises(VolumeError, match="has no finite affine"):
        read_shape(tmp_path / "a.nii")
    with pytest.raises(VolumeError, match="leaves no three axes"):
        has_brats_axes(read_header(io.BytesIO(raw)).affine)


def test_a_grid_without_numbers_is_taken_over_by_no_mask():
    raw = with_header(nifti(VOXELS), (280, "<f", float("nan")))
    with pytest.raises(VolumeError, match="has a grid that no mask can take over"):
        encode_like(raw, VOXELS.astype(np.uint8), title="labels")


@pytest.mark.parametrize("place", [76, 80, 256, 260, 264, 268])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_second_transform_that_nobody_looks_at_says_nothing(place, value):
    raw = with_header(nifti(VOXELS), (place, "<f", value))  # warnings are errors here
    assert decode_nifti(encode_like(raw, VOXELS.astype(np.uint8), title="labels")).voxels.any()


def test_nibabel_prints_nothing_about_odd_headers(tmp_path):
    odd = with_header(
        nifti(VOXELS), (70, "<h", 512), (72, "<h", 99), (80, "<f", -1.0), (123, "b", 90)
    )
    wrong = with_header(nifti(VOXELS), (70, "<h", 9999))
    for name, content in (("odd.nii", odd), ("wrong.nii", wrong)):
        (tmp_path / name).write_bytes(content)
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.volume import VolumeError, decode_nifti, read_shape\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    for read in (lambda: decode_nifti(path.read_bytes()), lambda: read_shape(path)):\n"
        "        try: read()\n"
        "        except VolumeError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "odd.nii", tmp_path / "wrong.nii"],
        capture_output=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("turned", [0.0, 0.02, 0.6])
@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, -1, 1), (-1, 1, 1), (-1, -1, -1)])
def test_axes_are_those_of_brats_by_their_signs_oblique_or_not(signs, turned):
    sine, cosine = np.sin(turned), np.cos(turned)
    oblique = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = oblique @ np.diag(np.array(signs) * [1.0, 1.0, 3.0])
    assert has_brats_axes(affine) == (signs == (-1, -1, 1))


def test_a_grid_without_a_third_step_has_no_axes_though_its_signs_are_those_of_brats():
    with pytest.raises(VolumeError, match="leaves no three axes"):
        has_brats_axes(np.diag([-1.0, -1.0, 1e-7, 1.0]))
