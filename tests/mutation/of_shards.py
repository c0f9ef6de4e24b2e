"""Damage to shards: bits of every part of the file, and values of its tables."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  # registers LZ4 with plain h5py
import numpy as np

from tests.mutation.mutant import Damage, Mutant, flip_bit, truncate
from tests.mutation.worlds import shards

READERS = (
    *("verify-deep", "verify", "fed", "eval", "rerun", "reuse", "central", "nnunet", "show-html"),
    *("resume", "report"),
)
SIGNATURES = {"btree": b"TREE", "symbols": b"SNOD", "heap": b"HEAP", "strings": b"GCOL"}

Edit = Callable[[h5py.File, Random], None]


def in_both(world: Path, random: Random, damage: Damage) -> None:
    """Damage a training shard and a test shard, so that whoever reads slices meets one."""
    for is_test in (False, True):
        damage(random.choice(shards(world / "cache", is_test=is_test)), random)


def flip_near(path: Path, random: Random, signature: bytes, length: int = 96) -> None:
    """Flip a bit in one of HDF5's own structures."""
    content = path.read_bytes()
    start = random.choice([found.start() for found in re.finditer(signature, content)])
    flip_bit(path, random, start, start + length)


def flip_header(path: Path, random: Random) -> None:
    """Flip a bit in the header of the root, a group or a dataset."""
    names: list[str] = ["/"]
    with h5py.File(path) as file:
        file.visit(names.append)
        address = h5py.h5o.get_info(file[random.choice(sorted(names))].id).addr
    flip_bit(path, random, address, address + 256)


def flip_chunk(path: Path, random: Random, name: str) -> None:
    """Flip a bit in a stored chunk."""
    with h5py.File(path) as file:
        chunks = file[name].id
        chunk = chunks.get_chunk_info(random.randrange(chunks.get_num_chunks()))
    flip_bit(path, random, chunk.byte_offset, chunk.byte_offset + chunk.size)


def edit(path: Path, random: Random, change: Edit) -> None:
    """Change a shard through h5py, so that its structure stays valid."""
    with h5py.File(path, "r+") as file:
        change(file, random)


def add(name: str, step: float) -> Edit:
    """Change one number of a table."""

    def change(file: h5py.File, random: Random) -> None:
        values = file[name][...]
        position = random.randrange(values.size)
        values.flat[position] = (
            ~values.flat[position] if values.dtype == bool else values.flat[position] + step
        )
        file[name][...] = values

    return change


def put(name: str, value: Any) -> Edit:
    """Set one entry of a table."""

    def change(file: h5py.File, random: Random) -> None:
        file[name][random.randrange(len(file[name]))] = value

    return change


def attribute(name: str, value: Any) -> Edit:
    def change(file: h5py.File, random: Random) -> None:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value

    return change


def rename(name: str) -> Edit:
    return lambda file, random: file.move(name, f"{name}_old")


def delete(name: str) -> Edit:
    return lambda file, random: file.__delitem__(name)


def shorten(name: str) -> Edit:
    """Drop the last row of a table."""

    def change(file: h5py.File, random: Random) -> None:
        values = file[name][:-1]
        del file[name]
        file[name] = values

    return change


def retype(name: str, dtype: str) -> Edit:
    """Store a table's numbers as another type."""

    def change(file: h5py.File, random: Random) -> None:
        values = file[name][...]
        del file[name]
        if dtype == "S8":
            values = np.full(values.shape, b"x", "S8")
        file[name] = values.astype(dtype)

    return change


def become_group(name: str) -> Edit:
    def change(file: h5py.File, random: Random) -> None:
        del file[name]
        file.create_group(name)

    return change


def huge(name: str) -> Edit:
    """Declare 2**40 rows, of which nothing is stored."""

    def change(file: h5py.File, random: Random) -> None:
        dataset = file[name]
        tail, dtype = dataset.shape[1:], dataset.dtype
        del file[name]
        file.create_dataset(name, (2**40, *tail), dtype, chunks=(1, *tail))

    return change


EDITS: dict[str, Edit] = {
    "affine": add("cases/affine", 0.5),
    "affine nan": add("cases/affine", float("nan")),
    "shape": add("cases/shape", 1),
    "shape negative": add("cases/shape", -1000),
    "shape huge": add("cases/shape", 2**40),
    "mean": add("cases/mean", 1.0),
    "std": add("cases/std", 1.0),
    "first row": add("cases/first_row", 1),
    "first row negative": add("cases/first_row", -1),
    "stop row": add("cases/stop_row", -1),
    "stop row beyond": add("cases/stop_row", 10**6),
    "case checksum": add("cases/checksum", 1),
    "present": add("cases/present", 1),
    "z": add("z", 1),
    "z negative": add("z", -100),
    "label voxels": add("label_voxels", 1),
    "row checksum": add("checksum", 1),
    "case index": add("case_index", 1),
    "case id": put("cases/case_id", "Brats18_Nobody_1"),
    "case id escapes": put("cases/case_id", "../../../escaped"),
    "case id long": put("cases/case_id", "x" * 5_000_000),
    "patient id": put("cases/patient_id", "nobody"),
    "cohort": put("cases/cohort", "brats2017"),
    "grade": put("cases/grade", "IV"),
    "site": put("cases/site", "elsewhere"),
    "key": put("cases/key", "0" * 64),
    "text not utf-8": put("cases/case_id", b"\xff\xfe\x80"),
    "client": attribute("client", 1_000),
    "client test": attribute("client", -1),
    "client text": attribute("client", "one"),
    "client array": attribute("client", [0, 1]),
    "client absent": attribute("client", None),
    "fingerprint": attribute("fingerprint", "0" * 64),
    "fingerprint absent": attribute("fingerprint", None),
    "schema": attribute("schema", "other"),
    "schema version": attribute("schema_version", 99),
    "schema version text": attribute("schema_version", "one"),
    "modalities": attribute("modalities", ["t2", "t1", "t1ce", "flair"]),
    "label convention": attribute("label_convention", "brats2023"),
    "image renamed": rename("image"),
    "label renamed": rename("label"),
    "cases renamed": rename("cases"),
    "z deleted": delete("z"),
    "case ids deleted": delete("cases/case_id"),
    "affine deleted": delete("cases/affine"),
    "z shortened": shorten("z"),
    "label voxels shortened": shorten("label_voxels"),
    "checksums shortened": shorten("checksum"),
    "case ids shortened": shorten("cases/case_id"),
    "affine shortened": shorten("cases/affine"),
    "z as text": retype("z", "S8"),
    "z as floats": retype("z", "f4"),
    "checksum as floats": retype("checksum", "f8"),
    "affine as integers": retype("cases/affine", "i4"),
    "first row as text": retype("cases/first_row", "S8"),
    "image as doubles": retype("image", "f8"),
    "label as words": retype("label", "i4"),
    "z a group": become_group("z"),
    "image a group": become_group("image"),
    "image huge": huge("image"),
    "z huge": huge("z"),
}


def mutants(repeats: int) -> Iterator[Mutant]:
    """Yield damage to shards, that by chance `repeats` times."""
    by_chance: dict[str, Damage] = {
        "superblock bit": partial(flip_bit, start=0, stop=96),
        "any bit": flip_bit,
        "header bit": flip_header,
        "image bit": partial(flip_chunk, name="image"),
        "label bit": partial(flip_chunk, name="label"),
        "z bit": partial(flip_chunk, name="z"),
        "checksum bit": partial(flip_chunk, name="checksum"),
        "cut": truncate,
        **{f"{k} bit": partial(flip_near, signature=s) for k, s in SIGNATURES.items()},
    }
    for kind, damage in by_chance.items():
        own = partial(in_both, damage=damage)
        yield from (Mutant("shard", kind, k, own, READERS) for k in range(repeats))
    for kind, change in EDITS.items():
        own = partial(in_both, damage=partial(edit, change=change))
        yield from (Mutant("shard", kind, k, own, READERS) for k in range(max(1, repeats // 4)))
