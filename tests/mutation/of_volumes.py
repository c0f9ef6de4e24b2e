"""Damage to NIfTI files: each field of the header, and the gzip around it."""

import gzip
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from tests.mutation.commands import SCAN
from tests.mutation.mutant import Expected, Mutant, flip_bit, truncate

Change = Callable[[bytearray, Random], None]

FIELDS: dict[str, tuple[int, str]] = {
    "sizeof_hdr": (0, "<i"),
    "dim count": (40, "<h"),
    "dim 1": (42, "<h"),
    "dim 2": (44, "<h"),
    "dim 3": (46, "<h"),
    "dim 4": (48, "<h"),
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    "qfac": (76, "<f"),
    "pixdim 1": (80, "<f"),
    "pixdim 3": (88, "<f"),
    "vox_offset": (108, "<f"),
    "scl_slope": (112, "<f"),
    "scl_inter": (116, "<f"),
    "xyzt_units": (123, "<b"),
    "qform_code": (252, "<h"),
    "sform_code": (254, "<h"),
    "quatern_b": (256, "<f"),
    "srow_x": (280, "<f"),
    "srow_z": (324, "<f"),
    "magic": (344, "<i"),
}
"""Offset and type of the fields that mean something."""

INTEGERS = (0, -1, 1, 2, 7, 16, 32_767, 100)
FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-30, 3.7, 1e9)


def change_field(content: bytearray, random: Random, name: str) -> None:
    """Put another number into a field."""
    offset, kind = FIELDS[name]
    value = random.choice(FLOATS if kind == "<f" else INTEGERS)
    struct.pack_into(kind, content, offset, value if kind != "<b" else value % 100)


def description(content: bytearray, random: Random) -> None:
    content[148 + random.randrange(40)] = 0xFF


def cut_voxels(content: bytearray, random: Random) -> None:
    del content[random.randrange(352, len(content)) :]


def claim_much(content: bytearray, random: Random) -> None:
    """Declare a volume of 32767 x 32767 x 32767."""
    struct.pack_into("<hhh", content, 42, 32_767, 32_767, 32_767)


def _pick(world: Path, random: Random) -> tuple[Path, ...]:
    """Choose a modality: of the case that is predicted and, as the same file, of one that is prepared."""
    name = random.choice(("t1", "t1ce", "t2", "flair"))
    folders = sorted(world.rglob(Path(SCAN).name))
    return tuple(path for folder in folders for path in folder.glob(f"*_{name}.nii.gz"))


def edit(world: Path, random: Random, change: Change) -> None:
    """Change what is inside the gzip."""
    paths = _pick(world, random)
    content = bytearray(gzip.decompress(paths[0].read_bytes()))
    change(content, random)
    for path in paths:
        path.write_bytes(gzip.compress(bytes(content), mtime=0))


def edit_file(world: Path, random: Random, change: Callable[[Path, Random], None]) -> None:
    """Change the file itself; both by the same dice."""
    dice = random.random()
    for path in _pick(world, random):
        change(path, Random(dice))


def append(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes() + b"rubbish after the end")


def bomb(path: Path, random: Random) -> None:
    """A gzip that goes on for 3 GB after the volume it declares."""
    block = gzip.compress(bytes(2**26))
    path.write_bytes(path.read_bytes() + block * 48)


def sparse(path: Path, random: Random) -> None:
    """50 GB that take no room."""
    os.truncate(path, 50 * 10**9)


def empty(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def other_file(path: Path, random: Random) -> None:
    path.write_bytes(b"this is no volume\n" * 100)


FILES = {"append": append, "empty": empty, "other file": other_file, "bomb": bomb, "sparse": sparse}
COMMANDS = ("scan", "predict", "partition")


def mutants(repeats: int) -> Iterator[Mutant]:
    """Yield damage to volumes."""
    expected: Expected = "anything sound"
    for name in FIELDS:
        damage = partial(edit, change=partial(change_field, name=name))
        for k in range(repeats):
            yield Mutant("nifti", name, k, damage, COMMANDS, expected)
    once: dict[str, Change] = {
        "description": description,
        "claim": claim_much,
        "voxels cut": cut_voxels,
    }
    for kind, change in once.items():
        yield Mutant("nifti", kind, 0, partial(edit, change=change), COMMANDS, expected)
    for kind, change_file in FILES.items():
        yield Mutant("nifti", kind, 0, partial(edit_file, change=change_file), COMMANDS, expected)
    for k in range(repeats):
        for kind, change_file in {"gzip bit": flip_bit, "gzip cut": truncate}.items():
            yield Mutant(
                "nifti", kind, k, partial(edit_file, change=change_file), COMMANDS, expected
            )
