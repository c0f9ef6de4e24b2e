"""NIfTI files to arrays and back: the only room that knows nibabel and SimpleITK.

Files are recognised by their first bytes, not by their names: Kaggle mirrors of BraTS hold `.nii`
files that are gzip and the reverse.
"""

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip, isal_zlib
from jaxtyping import Bool, Float, Float32, Num, Shaped

GZIP_MAGIC: Final = b"\x1f\x8b"
MAX_INFLATION: Final = 1032
"""What deflate can gain at most; a size beyond it comes from a damaged file."""
COMPRESSION: Final = 2
"""Where time counts; the probabilities of a whole volume are 107 MB, its four modalities 143 MB."""
NUMBERS: Final = "biuf"
"""Kinds of voxels that an intensity or a label can be; NIfTI also has colours and complex numbers."""

_UNREADABLE: Final[tuple[type[Exception], ...]] = (
    EOFError,
    OSError,
    ValueError,
    isal_zlib.error,  # type: ignore[assignment]  # its stub takes the class for an instance
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
    MemoryError,  # a damaged header may ask for any size
)


class VolumeError(ValueError):
    """A file is not a readable 3D NIfTI volume; the case is to be quarantined with this message."""


@dataclass(frozen=True)
class Volume:
    """A 3D image in its own voxel grid.

    Attributes:
        voxels: Values as stored, axes i, j, k of the NIfTI file; integers stay integers.
        affine: Voxel indices to millimetres, RAS+ as nibabel gives it.
    """

    voxels: Num[np.ndarray, "i j k"]
    affine: Float[np.ndarray, "4 4"]


def decode_nifti(content: bytes) -> Volume:
    """Read a NIfTI-1 volume from a file's bytes, inflating them first if they are gzip.

    Args:
        content: The whole file, `.nii` or `.nii.gz`.

    Returns:
        The volume; singleton fourth axes are dropped.

    Raises:
        VolumeError: If the bytes are truncated, not NIfTI, not three-dimensional, or no real numbers.
    """
    try:
        raw = _inflate(content) if content.startswith(GZIP_MAGIC) else content
        image = nib.nifti1.Nifti1Image.from_bytes(raw)
        kind = image.get_data_dtype().kind
        voxels = _view_voxels(raw, image) if kind in NUMBERS else None
    except _UNREADABLE as error:
        raise VolumeError(f"is not a readable NIfTI file ({_one_line(error)})") from error
    if voxels is None:
        name = nib.nifti1.data_type_codes.label[int(image.header["datatype"])]
        raise VolumeError(f"has voxels of type {name}, not numbers")
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise VolumeError(f"has {voxels.ndim} axes, not 3")
    if image.affine is None or not np.isfinite(image.affine).all():
        raise VolumeError("has no finite affine")
    return Volume(voxels, np.asarray(image.affine, np.float64))


def _inflate(content: bytes) -> bytes:
    """Inflate a gzip file, in one go if its last bytes tell the size, as they do for one member."""
    size = int.from_bytes(content[-4:], "little")
    if size <= MAX_INFLATION * len(content):
        raw: bytes = isal_zlib.decompress(content, wbits=31, bufsize=size + 1)
        if len(raw) == size:
            return raw
    whole: bytes = igzip.decompress(content)
    return whole


def _view_voxels(raw: bytes, image: nib.nifti1.Nifti1Image) -> np.ndarray:
    """View the voxels where they lie, without a copy, unless the header asks for scaling."""
    proxy = image.dataobj
    if not isinstance(proxy, nib.arrayproxy.ArrayProxy) or (proxy.slope, proxy.inter) != (1, 0):
        return np.asanyarray(proxy)
    flat = np.frombuffer(raw, proxy.dtype, math.prod(proxy.shape), proxy.offset)
    return flat.reshape(proxy.shape, order="F")


def encode_nifti(
    voxels: Shaped[np.ndarray, "i j k"],
    affine: Float[np.ndarray, "4 4"],
    *,
    fast: bool = False,
    title: str = "",
) -> bytes:
    """Write a volume as `.nii.gz` bytes; the same voxels always give the same bytes.

    Args:
        voxels: Any type that NIfTI-1 stores.
        affine: Voxel indices to millimetres, stored as both sform and qform.
        fast: Compress many times faster and a little less, into bytes that may be others on
            another kind of processor.
        title: The description in the header, at most 79 bytes.

    Returns:
        A gzip file's bytes, without a name or a time inside.
    """
    image = nib.nifti1.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = title.encode()
    if fast:
        content: bytes = igzip.compress(image.to_bytes(), COMPRESSION, mtime=0)
        return content
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def encode_like(source: bytes, voxels: Shaped[np.ndarray, "i j k *plane"], *, title: str) -> bytes:
    """Write voxels as `.nii.gz` bytes in the grid of another file, whose header they take over.

    Both transforms with their codes, spacings and units are those of the source. What describes the
    source's intensities is not, nor are its texts and extensions, which may name a person.

    Args:
        source: A NIfTI-1 file, `.nii` or `.nii.gz`.
        voxels: Of the source's size; planes become the fourth axis.
        title: The new description, at most 80 characters.

    Raises:
        VolumeError: If the source cannot be read.
    """
    header = _read_header(source)
    header.extensions.clear()
    for name in ("aux_file", "db_name", "intent_name"):
        header[name] = b""
    for name in ("intent_code", "intent_p1", "intent_p2", "intent_p3", "glmin", "glmax"):
        header[name] = 0
    header["descrip"] = title.encode()
    header["cal_min"], header["cal_max"] = 0, voxels.max(initial=0)
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    affine = (
        header.get_best_affine()
    )  # before the shape changes: without a transform it depends on it
    image = nib.nifti1.Nifti1Image(voxels, affine, header)
    content: bytes = igzip.compress(image.to_bytes(), COMPRESSION, mtime=0)
    return content


def _read_header(content: bytes) -> nib.nifti1.Nifti1Header:
    raw = BytesIO(content)
    try:
        file = igzip.IGzipFile(fileobj=raw) if content.startswith(GZIP_MAGIC) else raw
        header: nib.nifti1.Nifti1Header = nib.nifti1.Nifti1Header.from_fileobj(file)
    except _UNREADABLE as error:
        raise VolumeError(f"is not a readable NIfTI file ({_one_line(error)})") from error
    return header


def check_like(path: Path, source: bytes, voxels: Shaped[np.ndarray, "i j k *plane"]) -> None:
    """Read a file back with SimpleITK and hold it against what it was to be.

    Args:
        path: What was written.
        source: The file whose grid it is to have, to the last bit.
        voxels: What it is to hold.

    Raises:
        VolumeError: If size, spacing, origin, direction or a voxel differ, or SimpleITK cannot read them.
    """
    name = "source.nii.gz" if source.startswith(GZIP_MAGIC) else "source.nii"
    with TemporaryDirectory() as folder, _silent_itk():
        original = Path(folder, name)
        original.write_bytes(source)
        try:
            expected, found = (_read_grid(each) for each in (original, path))
            stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except RuntimeError as error:
            reason = _one_line(error).rpartition("ITK ERROR: ")[2]
            raise VolumeError(f"has a grid that SimpleITK does not read ({reason})") from error
    differing = [name for name, values in expected.items() if values != found[name]]
    if differing or not np.array_equal(stored.T, voxels):
        raise VolumeError(f"does not come back as written: {', '.join(differing) or 'voxels'}")


@contextmanager
def _silent_itk() -> Iterator[None]:
    """Keep ITK from printing what it finds odd about a source's header; the mask has the same."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _read_grid(path: Path) -> dict[str, list[float]]:
    """Read where SimpleITK sees the first three axes of a file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    axes = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (axes, axes))
    return {
        "size": list(map(float, reader.GetSize()[:3])),
        "spacing": list(reader.GetSpacing()[:3]),
        "origin": list(reader.GetOrigin()[:3]),
        "direction": direction[:3, :3].ravel().tolist(),
    }


def correct_bias_field(
    image: Num[np.ndarray, "i j k"], brain: Bool[np.ndarray, "i j k"]
) -> Float32[np.ndarray, "i j k"]:
    """Remove the smooth intensity drift of an MR coil by N4.

    The field is estimated on a grid four times coarser and applied at full size. Tustison et al.
    (2010), doi:10.1109/TMI.2010.2046908, as implemented in SimpleITK.

    Args:
        image: One modality in scanner units.
        brain: True inside the brain.

    Returns:
        The corrected image, exactly 0 outside `brain`.

    Raises:
        VolumeError: If N4 finds no field, as in a volume of a single plane; leave it out, or correct none.
    """
    fine = sitk.GetImageFromArray(np.ascontiguousarray(image, np.float32))
    mask = sitk.GetImageFromArray(np.ascontiguousarray(brain, np.uint8))
    shrink = [max(1, min(4, side // 2)) for side in fine.GetSize()]  # N4 needs two points an axis
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50, 50, 30, 20])
    n4.SetNumberOfThreads(1)
    try:
        n4.Execute(sitk.Shrink(fine, shrink), sitk.Shrink(mask, shrink))
        field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(fine))
    except RuntimeError as error:
        reason = _one_line(error).rpartition("ITK ERROR: ")[2]
        raise VolumeError(f"of {brain.shape} cannot be corrected by N4 ({reason})") from error
    corrected = np.where(brain, image / np.exp(field), 0.0)
    return corrected.astype(np.float32)


def read_shape(path: Path) -> tuple[int, int, int]:
    """Read a volume's size from the first bytes of its file.

    Raises:
        VolumeError: If the file does not begin like a NIfTI-1 volume of three axes.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
        with igzip.open(path, "rb") if compressed else path.open("rb") as file:
            header = nib.nifti1.Nifti1Header.from_fileobj(file)
        i, j, k = header.get_data_shape()[:3]
    except _UNREADABLE as error:
        raise VolumeError(f"{path} is not a readable NIfTI file ({_one_line(error)})") from error
    return int(i), int(j), int(k)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
