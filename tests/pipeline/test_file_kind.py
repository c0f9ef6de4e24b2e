"""What a file is that was taken for a NIfTI volume."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import nibabel as nib
import numpy as np
import pytest

from pipeline.file_kind import recognise
from pipeline.volume import VolumeError, decode_nifti, encode_like, read_shape

VOXELS = np.zeros((5, 4, 3), np.int16)


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("scan.nii"))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("scan.nii", b"scan")
    return file.getvalue()


def numpy_file() -> bytes:
    file = io.BytesIO()
    np.save(file, VOXELS)
    return file.getvalue()


def header_of_a_pair() -> bytes:
    return nib.Nifti1Pair(VOXELS, np.eye(4)).header.binaryblock


KINDS = {
    "empty": b"",
    "all zeros": bytes(5000),
    "HTML page": b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>",
    "XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "git-annex pointer": b"/annex/objects/SHA256E-s9--0.nii.gz\n",
    "JSON": json.dumps({"message": "Not Found"}).encode(),
    "text": "Zugriff verweigert: größer".encode(),
    "zip archive": zipped(),
    "tar archive": tar(),
    "bzip2 file": bz2.compress(b"scan"),
    "xz file": lzma.compress(b"scan"),
    "Zstandard file": b"\x28\xb5\x2f\xfd" + bytes(40),
    "DICOM file": bytes(128) + b"DICM" + bytes(40),
    "NRRD file": b"NRRD0004\ntype: short\n",
    "MGH file": np.array([1, 5, 4, 3, 1], ">i4").tobytes() + bytes(300),
    "NumPy file": numpy_file(),
    "HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "NIfTI pair .hdr and .img": header_of_a_pair(),
    "Analyze 7.5 header": nib.AnalyzeImage(VOXELS, np.eye(4)).header.binaryblock,
    "macOS": b"\x00\x05\x16\x07\x00\x02\x00\x00" + bytes(40),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_message_says_what_the_file_is(kind, pack, tmp_path):
    content = pack(KINDS[kind])
    with pytest.raises(VolumeError, match=f"is not a readable NIfTI file .*{kind}.*; ") as caught:
        decode_nifti(content)
    assert "\n" not in str(caught.value)
    with pytest.raises(VolumeError, match=kind):
        encode_like(content, VOXELS, title="labels")
    (tmp_path / "v.nii.gz").write_bytes(content)
    with pytest.raises(VolumeError, match=rf"v\.nii\.gz is not .*{kind}"):
        read_shape(tmp_path / "v.nii.gz")


def test_a_file_compressed_twice_is_named():
    twice = gzip.compress(gzip.compress(nib.Nifti1Image(VOXELS, np.eye(4)).to_bytes()))
    with pytest.raises(VolumeError, match="a gzip file inside a gzip file; unpack it once"):
        decode_nifti(twice)


def test_of_damaged_nifti_the_damage_is_said():
    content = nib.Nifti1Image(VOXELS, np.eye(4)).to_bytes()
    assert recognise(content) is None
    with pytest.raises(VolumeError, match="not a readable NIfTI file") as caught:
        decode_nifti(content[:-1])
    assert "it is" not in str(caught.value)


def test_unknown_bytes_are_not_guessed_at():
    assert recognise(b"\x00\x17\x02\xfe" * 300) is None
