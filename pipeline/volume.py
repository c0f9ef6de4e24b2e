"""NIfTI files to arrays and back: the only room that knows nibabel and SimpleITK.

Files are recognised by their first bytes, not by their names: Kaggle mirrors of BraTS hold `.nii`
files that are gzip and the reverse.
"""

import gzip
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip, isal_zlib
from jaxtyping import Bool, Float, Float32, Num, Shaped
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from cache_schema.geometry import MAX_SIDE, MAX_VOXELS
from cache_schema.reading import open_regular, read_bytes
from pipeline.file_kind import START_BYTES, is_nifti, is_nifti2, recognise

GZIP_MAGIC: Final = b"\x1f\x8b"
MAX_INFLATION: Final = 1032
"""What deflate can gain at most; a size beyond it comes from a damaged file."""
COMPRESSION: Final = 2
"""Where time counts; the probabilities of a whole volume are 107 MB, its four modalities 143 MB."""
SLACK_BYTES: Final = 2**20
"""What a file may have behind its last voxel."""
HEAD_BYTES: Final = 2**16
"""Of a file, packed or not, that tell its header."""
MAX_OFFSET: Final = 2**24
"""Of the first voxel; before it lie a header and texts."""
MAX_DAMAGED_BYTES: Final = 2**28
"""Of a file whose header tells nothing; a volume of BraTS in double precision has a quarter of it."""
NUMBERS: Final = "biuf"
"""Kinds of voxels that an intensity or a label can be; NIfTI also has colours and complex numbers."""

BRATS_AXES: Final = axcodes2ornt(("L", "P", "S"))
"""Where i, j and k of BraTS point: the patient's left, back and top."""
AS_IT_IS: Final = np.array([[0, 1], [1, 1], [2, 1]])
"""The turn that changes nothing: every axis in its place, none flipped."""
_BRATS_SIGNS: Final = np.diag([-1.0, -1.0, 1.0])
"""Those of an affine with these axes whose grid is not oblique."""
MAX_CONDITION: Final = 1e6
"""A longest step of the voxel grid over its shortest beyond this leaves no three axes."""

_PRIVATE: Final = (
    *("aux_file", "db_name", "glmax", "glmin", "intent_code", "intent_name"),
    *("intent_p1", "intent_p2", "intent_p3"),
)
"""Fields of a header that a mask does not take over from its scan."""

_UNREADABLE: Final[tuple[type[Exception], ...]] = (
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    isal_zlib.error,  # type: ignore[assignment]  # its stub takes the class for an instance
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
    MemoryError,  # a damaged header may ask for any size
)

UNREADABLE: Final = "is not a readable NIfTI file"

# What nibabel finds odd about a header is said in our words if it matters.
nib.imageglobals.logger.setLevel(logging.CRITICAL + 1)


class VolumeError(ValueError):
    """A file is not a readable 3D NIfTI volume; the case is to be quarantined with this message."""


@dataclass(frozen=True)
class Volume:
    """A 3D image in its own voxel grid.

    Attributes:
        voxels: Values as stored; integers stay integers. Axes i, j, k are those of the file, until
            they are brought to BraTS's.
        affine: Voxel indices to millimetres, RAS+ as nibabel gives it.
    """

    voxels: Num[np.ndarray, "i j k"]
    affine: Float[np.ndarray, "4 4"]


def decode_nifti(content: bytes) -> Volume:
    """Read a NIfTI volume from a file's bytes, inflating them first if they are gzip.

    Args:
        content: The whole file, `.nii` or `.nii.gz`.

    Returns:
        The volume; singleton fourth axes are dropped.

    Raises:
        VolumeError: If the bytes are truncated, not NIfTI, not three-dimensional, or no real numbers;
            of another kind of file it says which.
    """
    header = _read_header(BytesIO(content))
    if header.get_data_dtype().kind not in NUMBERS:
        name = nib.nifti1.data_type_codes.label[int(header["datatype"])]
        raise VolumeError(f"has voxels of type {name}, not numbers")
    most = _count_bytes(header) + SLACK_BYTES
    try:
        raw = _inflate(content, most) if content.startswith(GZIP_MAGIC) else content
        voxels = _view_voxels(raw, header)
    except _UNREADABLE as error:
        raise VolumeError(_say_unreadable(BytesIO(content), error)) from error
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise VolumeError(f"has {voxels.ndim} axes, not 3")
    return Volume(voxels, _find_affine(header))


def read_affine(content: bytes) -> Float[np.ndarray, "4 4"]:
    """Read where a volume's voxels lie from the first bytes of its file.

    Args:
        content: A file as `decode_nifti` takes it.

    Returns:
        Voxel indices to millimetres, RAS+, for the axes as stored.

    Raises:
        VolumeError: If the file does not begin like a NIfTI volume that says where it lies.
    """
    return _find_affine(_read_header(BytesIO(content)))


def read_file(path: Path) -> bytes:
    """Read a file that should be a NIfTI volume as it lies on disk; what it holds shows when it is decoded.

    Raises:
        OSError: If it cannot be read, or is larger than its header tells.
    """
    return read_bytes(path, most=_most_bytes(path))


def _most_bytes(path: Path) -> int:
    """Bound a file by its header, without which it is no volume, but its bytes tell damaged files apart."""
    with open_regular(path) as file:
        try:
            return _count_bytes(_read_header(file)) + SLACK_BYTES
        except _UNREADABLE:
            return MAX_DAMAGED_BYTES


def _find_affine(header: nib.nifti1.Nifti1Header) -> Float[np.ndarray, "4 4"]:
    """Read where voxels lie: the sform, else the qform."""
    if not (header["sform_code"] or header["qform_code"]):
        raise VolumeError(
            "has neither sform nor qform, so nobody knows where its axes point; store one of them"
        )
    affine = _best_affine(header)
    if not np.isfinite(affine).all():
        raise VolumeError("has no finite affine")
    return affine


def _best_affine(header: nib.nifti1.Nifti1Header) -> Float[np.ndarray, "4 4"]:
    try:
        with np.errstate(all="ignore"):  # of a damaged header nothing is finite
            return np.asarray(header.get_best_affine(), np.float64)
    except _UNREADABLE as error:
        raise VolumeError(f"has no affine ({_one_line(error)})") from error


def _count_bytes(header: nib.nifti1.Nifti1Header) -> int:
    """Count the bytes that a file has up to its last voxel, as its header tells.

    Raises:
        VolumeError: If it tells of voxels as no scan has them.
    """
    shape, offset = header.get_data_shape(), float(header["vox_offset"])
    num_voxels = math.prod(shape)
    if not all(0 <= side <= MAX_SIDE for side in shape) or num_voxels > MAX_VOXELS:
        sides = " x ".join(map(str, shape))
        raise VolumeError(f"{UNREADABLE} (its header claims {sides} voxels, as no scan has)")
    if not 0 <= offset <= MAX_OFFSET:  # nor is NaN
        raise VolumeError(f"{UNREADABLE} (its header claims that voxels begin at byte {offset:g})")
    size: int = num_voxels * header.get_data_dtype().itemsize
    return int(offset) + size


def _inflate(content: bytes, most: int) -> bytes:
    """Inflate a gzip file, in one go if its last bytes tell the size, as they do for one member.

    Raises:
        ValueError: If there are more bytes than there can be; no more are inflated.
    """
    size = int.from_bytes(content[-4:], "little")
    if size <= min(most, MAX_INFLATION * len(content)):
        member = isal_zlib.decompressobj(wbits=31)
        raw: bytes = member.decompress(content, size + 1)
        if member.eof and not member.unused_data:
            return raw
    whole: bytes = igzip.IGzipFile(fileobj=BytesIO(content)).read(most + 1)
    if len(whole) > most:
        raise ValueError(f"it holds more than the {most:,} bytes that its header tells of")
    return whole


def _image_class(start: bytes) -> type[nib.nifti1.Nifti1Image]:
    """Choose between NIfTI-1 and NIfTI-2, whose headers differ.

    Raises:
        ImageFileError: If it is neither; nibabel would take the first half of a pair for a volume.
    """
    if not is_nifti(start):
        raise nib.filebasedimages.ImageFileError("it does not begin like one")
    return nib.nifti2.Nifti2Image if is_nifti2(start) else nib.nifti1.Nifti1Image


def _say_unreadable(file: BufferedIOBase, error: Exception) -> str:
    """Say what a file is that is no NIfTI volume, or else why it could not be read."""
    try:
        kind = recognise(_read_start(file))
    except _UNREADABLE:
        kind = None
    return f"{UNREADABLE} ({f'it is {kind}' if kind else _one_line(error)})"


def _read_start(file: BufferedIOBase) -> bytes:
    """Read the first bytes of a file, inflated if it is gzip; what may follow in it is not looked at."""
    file.seek(0)
    return open_inflated(BytesIO(file.read(HEAD_BYTES))).read(START_BYTES)


def open_inflated(file: BufferedIOBase) -> BufferedIOBase:
    """Go to the beginning of a file, and let what is read from there be inflated if it is gzip."""
    file.seek(0)
    is_compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    return igzip.IGzipFile(fileobj=file) if is_compressed else file


def _view_voxels(raw: bytes, header: nib.nifti1.Nifti1Header) -> np.ndarray:
    """View the voxels where they lie, without a copy, unless the header asks for scaling."""
    proxy = nib.arrayproxy.ArrayProxy(BytesIO(raw), header)
    if (proxy.slope, proxy.inter) != (1, 0):
        return np.asanyarray(proxy)
    flat = np.frombuffer(raw, proxy.dtype, math.prod(proxy.shape), proxy.offset)
    return flat.reshape(proxy.shape, order="F")


@dataclass(frozen=True)
class Header:
    """What the first bytes of a NIfTI file tell of its voxels.

    Attributes:
        shape: Voxels along each axis, singleton axes beyond the third dropped.
        dtype: Of the voxels as stored, with their byte order.
        offset: Bytes before the first voxel.
        slope: What a stored value is multiplied by.
        inter: What is added then.
        affine: Voxel indices to millimetres, RAS+; nibabel's default if the file does not tell.
        description: The header's text of at most 80 characters.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: Float[np.ndarray, "4 4"]
    description: str

    @property
    def most_bytes(self) -> int:
        """Bytes that the file has at most, packed or not."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize + SLACK_BYTES


def read_header(file: BufferedIOBase) -> Header:
    """Read the header of a NIfTI file, compressed or not.

    Raises:
        VolumeError: If the file does not begin like one, or holds no real numbers.
    """
    header = _read_header(file)
    affine = _best_affine(header)
    try:
        slope, inter = header.get_slope_inter()
        found = Header(
            shape=_without_single_axes(header.get_data_shape()),
            dtype=header.get_data_dtype(),
            offset=int(header.get_data_offset()),
            slope=1.0 if slope is None else float(slope),
            inter=0.0 if inter is None else float(inter),
            affine=affine,
            description=bytes(header["descrip"].item()).decode("latin-1"),
        )
    except _UNREADABLE as error:
        raise VolumeError(_say_unreadable(file, error)) from error
    if found.dtype.kind not in NUMBERS:
        raise VolumeError("has voxels that are not numbers")
    return found


def _without_single_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


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
        source: A NIfTI file, `.nii` or `.nii.gz`; of NIfTI-2 the header is converted to NIfTI-1.
        voxels: Of the source's size; planes become the fourth axis.
        title: The new description, at most 80 characters.

    Raises:
        VolumeError: If the source cannot be read, or has no grid.
    """
    header = _read_nifti1_header(source)
    for name in _PRIVATE:
        header[name] = np.zeros((), header[name].dtype)
    header["descrip"] = title.encode()
    header["cal_min"], header["cal_max"] = 0, voxels.max(initial=0)
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    affine = _best_affine(header)  # before the shape changes: without a transform it depends on it
    try:
        with np.errstate(all="ignore"):  # of a transform that nobody looks at, numbers may be any
            image = nib.nifti1.Nifti1Image(voxels, affine, header)
    except _UNREADABLE as error:
        raise VolumeError(f"has a grid that no mask can take over ({_one_line(error)})") from error
    content: bytes = igzip.compress(image.to_bytes(), COMPRESSION, mtime=0)
    return content


def _read_header(file: BufferedIOBase) -> nib.nifti1.Nifti1Header:
    """Read a header of NIfTI-1 or NIfTI-2, without extensions, from the first bytes of a file.

    Raises:
        VolumeError: If there is none, or it tells of voxels as no scan has them.
    """
    try:
        start = _read_start(file)
        kind = _image_class(start).header_class
        header = kind(start[: kind.template_dtype.itemsize])  # type: ignore[no-untyped-call]
    except _UNREADABLE as error:
        raise VolumeError(_say_unreadable(file, error)) from error
    _count_bytes(header)
    return header


def _read_nifti1_header(source: bytes) -> nib.nifti1.Nifti1Header:
    """Read a file's header; that of NIfTI-2, which SimpleITK does not know, becomes NIfTI-1."""
    header = _read_header(BytesIO(source))
    if not is_nifti2(header.binaryblock):
        return header
    plain = nib.nifti1.Nifti1Header()
    with np.errstate(all="ignore"):  # a number beyond single precision becomes infinite
        for name in set(header.keys()) & set(plain.keys()) - {"sizeof_hdr", "magic", "vox_offset"}:
            plain[name] = header[name]
    return plain


def check_like(path: Path, source: bytes, voxels: Shaped[np.ndarray, "i j k *plane"]) -> None:
    """Read a file back with SimpleITK and hold it against what it was to be.

    Args:
        path: What was written.
        source: The file whose grid it is to have, to the last bit.
        voxels: What it is to hold.

    Raises:
        VolumeError: If size, spacing, origin, direction or a voxel differ, or SimpleITK cannot read them.
    """
    with TemporaryDirectory() as folder, _silent_itk():
        original = Path(folder, "source.nii")  # its header, all that is looked at
        original.write_bytes(_read_nifti1_header(source).binaryblock + bytes(4))
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

    Args:
        path: A file as `decode_nifti` takes it.

    Returns:
        Voxels along i, j and k once the volume is brought to BraTS's axes.

    Raises:
        VolumeError: If the file does not begin like a NIfTI volume of three axes.
    """
    try:
        with open_regular(path) as file:
            header = _read_header(file)
        return _brought_shape(header)
    except OSError as error:
        raise VolumeError(f"{path} {UNREADABLE} ({_one_line(error)})") from error
    except VolumeError as error:
        raise VolumeError(f"{path} {error}") from error


def _brought_shape(header: nib.nifti1.Nifti1Header) -> tuple[int, int, int]:
    shape = header.get_data_shape()[:3]
    if len(shape) < 3:
        raise VolumeError(f"has {len(shape)} axes, not 3")
    order = np.argsort(_turn(_find_affine(header))[:, 0])
    i, j, k = (int(shape[axis]) for axis in order)
    return i, j, k


def has_brats_axes(affine: Float[np.ndarray, "4 4"]) -> bool:
    """Tell whether voxel axes point where those of BraTS do.

    Raises:
        VolumeError: If the affine leaves no three axes.
    """
    if np.array_equal(np.sign(affine[:3, :3]), _BRATS_SIGNS):  # most files; ten times as fast
        steps = np.abs(np.diag(affine)[:3])
        if steps.max() < MAX_CONDITION * steps.min():
            return True
    return bool(np.array_equal(_turn(affine), AS_IT_IS))


def bring_to_brats_axes(volume: Volume) -> Volume:
    """Reorder and flip a volume's voxel axes as in BraTS: i to the patient's left, j to the back, k up.

    Nothing is resampled: of an oblique grid each axis counts as the one that it is closest to.

    Args:
        volume: In any voxel axes.

    Returns:
        The same voxels at the same places, viewed without a copy; the volume itself if it is so already.

    Raises:
        VolumeError: If the affine leaves no three axes.
    """
    if has_brats_axes(volume.affine):
        return volume
    turn = _turn(volume.affine)
    affine = volume.affine @ inv_ornt_aff(turn, volume.voxels.shape) + 0.0  # no -0.0
    return Volume(apply_orientation(volume.voxels, turn), affine)


def restore_axes(
    voxels: Shaped[np.ndarray, "i j k *plane"], affine: Float[np.ndarray, "4 4"]
) -> Shaped[np.ndarray, "first second third *plane"]:
    """Undo `bring_to_brats_axes` for voxels that go beside a source.

    Args:
        voxels: In BraTS's axes.
        affine: That of the source as stored.

    Returns:
        The voxels in the source's own axes, viewed without a copy.
    """
    turn = ornt_transform(BRATS_AXES, io_orientation(affine))
    restored: np.ndarray = apply_orientation(voxels, turn)
    return restored


def _turn(affine: Float[np.ndarray, "4 4"]) -> np.ndarray:
    """Tell for each voxel axis which axis it becomes, and whether it is flipped."""
    is_finite = np.isfinite(affine).all()  # LAPACK would print what it finds wrong
    if not (is_finite and np.linalg.cond(affine[:3, :3]) < MAX_CONDITION):
        raise VolumeError("has an affine that leaves no three axes; correct its sform and qform")
    turn: np.ndarray = ornt_transform(io_orientation(affine), BRATS_AXES)
    return turn


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
