"""What a file is that should have been a NIfTI volume, told by its first bytes. Pure."""

from collections.abc import Callable
from typing import Final

START_BYTES: Final = 1024
"""All that `recognise` looks at."""

AGAIN: Final = "download it again"
UNPACK: Final = "unpack it"
CONVERT: Final = "convert it to .nii.gz"

_MAGIC: Final[tuple[tuple[int, bytes, str, str], ...]] = (
    (
        0,
        b"version https://git-lfs",
        "a git-LFS pointer",
        "fetch the file itself with `git lfs pull`",
    ),
    (
        0,
        b"version https://hawser",
        "a git-LFS pointer",
        "fetch the file itself with `git lfs pull`",
    ),
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", AGAIN),
    (0, b"\x1f\x8b", "a gzip file inside a gzip file", "unpack it once"),
    (0, b"BZh", "a bzip2 file", UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz file", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", UNPACK),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (128, b"DICM", "a DICOM file", CONVERT),
    (0, b"NRRD", "an NRRD file", CONVERT),
    (0, b"ObjectType", "a MetaImage header", CONVERT),
    (0, b"NDims", "a MetaImage header", CONVERT),
    (0, b"\x00\x00\x00\x01\x00\x00", "an MGH file", CONVERT),
    (0, b"CDF\x01", "a NetCDF or MINC file", CONVERT),
    (0, b"CDF\x02", "a NetCDF or MINC file", CONVERT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
    (0, b"\x93NUMPY", "a NumPy file", CONVERT),
    (0, b"\x89PNG", "a PNG picture", "give the volume"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "give the volume"),
    (0, b"%PDF", "a PDF document", "give the volume"),
    (0, b"\x00\x05\x16\x07", "what macOS keeps beside a file", "give the volume"),
    (344, b"ni1\x00", "the header of a NIfTI pair .hdr and .img", CONVERT),
    (4, b"ni2\x00", "the header of a NIfTI-2 pair .hdr and .img", CONVERT),
)
"""Where which bytes stand, what the file is then, and what to do about it."""

_HEADER_SIZES: Final = (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c")
"""348, in either byte order: how the headers of Analyze 7.5 and of NIfTI-1 begin."""

_TEXTS: Final[dict[str, Callable[[bytes], bool]]] = {
    f"an HTML page; {AGAIN}": lambda text: (
        b"<html" in text or text.startswith((b"<!doctype", b"<head", b"<!--"))
    ),
    f"an XML document; {AGAIN}": lambda text: text.startswith(b"<"),
    "a git-annex pointer; fetch the file itself with `git annex get`": lambda text: (
        b"/annex/objects/" in text.replace(b"\\", b"/")
    ),
    f"JSON; {AGAIN}": lambda text: text.startswith((b"{", b"[")),
    f"text; {AGAIN}": lambda _: True,
}
"""What text in small letters may be, and by what it is told; the first that is so counts."""


def recognise(start: bytes) -> str | None:
    """Name what a file is that is no NIfTI volume.

    Args:
        start: Its first `START_BYTES` bytes, inflated if they were gzip, or all that there are.

    Returns:
        A phrase such as `an HTML page; download it again`, or None if the bytes tell nothing or are
        those of a NIfTI file.
    """
    if is_nifti(start):
        return None
    for place, magic, kind, remedy in _MAGIC:
        if start[place : place + len(magic)] == magic:
            return f"{kind}; {remedy}"
    if start.startswith(_HEADER_SIZES) and len(start) >= 348:
        return f"an Analyze 7.5 header; {CONVERT}"
    return _recognise_text(start)


def is_nifti(start: bytes) -> bool:
    """Tell whether a file begins like a NIfTI-1 or NIfTI-2 volume of one file."""
    return start[344:348] == b"n+1\x00" or is_nifti2(start)


def is_nifti2(start: bytes) -> bool:
    """Tell whether a file begins like a NIfTI-2 volume of one file."""
    return start[4:8] == b"n+2\x00"


def _recognise_text(start: bytes) -> str | None:
    """Name what is no binary format."""
    if not any(start):
        return f"{'all zeros' if start else 'empty'}; {AGAIN}"
    if any(byte < 9 or 13 < byte < 32 for byte in start):
        return None
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next(phrase for phrase, is_so in _TEXTS.items() if is_so(text))
