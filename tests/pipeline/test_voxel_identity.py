"""One person's scans are known again however they are stored."""

import bz2
import gzip
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cohorts import Case, Inventory
from pipeline.identity import identify
from pipeline.volume import decode_nifti
from pipeline.voxel_identity import find_equal_scans, glance_at

BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
SHAPE = (14, 12, 9)


def head(seed: int) -> np.ndarray:
    """A head whose first planes are empty, of whole numbers below 2000, some of them odd."""
    random = np.random.default_rng(seed)
    voxels = np.zeros(SHAPE, np.int16)
    voxels[2:-2, 2:-2, 2:-1] = random.integers(1, 2000, (10, 8, 6))
    return voxels


@dataclass(frozen=True)
class Storage:
    """How a scan is stored."""

    dtype: str = "<i2"
    slope: float = 1.0
    inter: float = 0.0
    axes: str = "LPS"
    members: int = 1
    level: int = 6
    descrip: str = ""
    negative_zero: bool = False
    fourth_axis: bool = False

    def write(self, path: Path, voxels: np.ndarray) -> None:
        dtype = np.dtype(self.dtype)
        stored = (voxels - self.inter) / self.slope
        if self.negative_zero:
            stored = np.where(stored == 0, -0.0, stored)
        stored = stored.astype(dtype)
        seen = stored.astype(np.float64) * self.slope + self.inter
        assert np.array_equal(seen, voxels), "this form cannot hold these values"
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(self.axes)
        )
        stored = nib.orientations.apply_orientation(stored, turn)
        affine = BRATS_AFFINE @ nib.orientations.inv_ornt_aff(turn, voxels.shape)
        header = nib.Nifti1Header(endianness=">" if dtype.byteorder == ">" else "<")
        image = nib.Nifti1Image(stored[..., None] if self.fourth_axis else stored, affine, header)
        image.set_data_dtype(dtype)
        image.header["descrip"] = self.descrip.encode()
        raw = bytearray(image.to_bytes())
        # nibabel chooses slope and intercept itself; these are ours, at their places in the header.
        order = image.header.endianness
        raw[112:120] = np.array([self.slope, self.inter], f"{order}f4").tobytes()
        path.write_bytes(self.compress(bytes(raw)))

    def compress(self, raw: bytes) -> bytes:
        if self.level < 0:
            return raw
        cuts = np.linspace(0, len(raw), self.members + 1).astype(int)
        parts = [raw[a:b] for a, b in pairwise(cuts)]
        return b"".join(gzip.compress(part, self.level) for part in parts)


FORMS = {
    "plain": Storage(level=-1),
    "float32": Storage("<f4"),
    "float64": Storage("<f8"),
    "uint16": Storage("<u2"),
    "int32": Storage("<i4"),
    "uint32, big-endian": Storage(">u4"),
    "int64": Storage("<i8"),
    "big-endian": Storage(">i2"),
    "big-endian float32": Storage(">f4"),
    "halves": Storage("<i2", slope=0.5),
    "slope of a hundredth": Storage("<f8", slope=0.25, inter=-0.5),
    "intercept": Storage("<u2", inter=-1024.0),
    "other compression": Storage(level=1),
    "several members": Storage(members=5),
    "text": Storage(descrip="de-identified"),
    "minus zero": Storage("<f4", negative_zero=True),
    "fourth axis": Storage(fourth_axis=True),
    "RAS": Storage(axes="RAS"),
    "sagittal": Storage("<f4", axes="PSR"),
    "coronal, big-endian": Storage(">i4", axes="LIA"),
}


def case_of(folder: Path, name: str, files: dict[str, tuple[Storage, np.ndarray]]) -> Case:
    cohorts = {"Brats18": "brats2018", "BraTS19": "brats2019", "BraTS20": "brats2020"}
    paths = {}
    for modality, (storage, voxels) in files.items():
        paths[modality] = folder / f"{name}_{modality}.nii.gz"
        storage.write(paths[modality], voxels)
    return Case(name, cohorts[name[:7]], folder, paths)


def patients(*cases: Case) -> list[str]:
    return [case.patient_id for case in identify(Inventory(cases, ()))]


@pytest.mark.parametrize("form", FORMS)
def test_a_scan_stored_in_another_form_is_the_same_scan(form, tmp_path):
    cases = (
        case_of(tmp_path, "Brats18_A_1_1", {"t1": (Storage(), head(1))}),
        case_of(tmp_path, "BraTS20_Training_001", {"t1": (FORMS[form], head(1))}),
        case_of(tmp_path, "BraTS20_Training_002", {"t1": (FORMS[form], head(2))}),
    )
    assert patients(*cases) == ["A_1_1", "A_1_1", "BraTS20_Training_002"]


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_that_lost_its_affine_is_the_same_scan(form, tmp_path):
    one = case_of(tmp_path, "Brats18_A_1_1", {"t1": (FORMS[form], head(1))})
    voxels = decode_nifti(one.files["t1"].read_bytes()).voxels
    lost = tmp_path / "BraTS20_Training_001_t1.nii.gz"
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), lost)
    other = Case("BraTS20_Training_001", "brats2020", tmp_path, {"t1": lost})
    assert patients(one, other) == ["A_1_1", "A_1_1"]


@pytest.mark.parametrize("change", ["last voxel", "half a unit", "flipped", "one plane more"])
def test_a_scan_that_differs_is_another_scan(change, tmp_path):
    voxels = head(1).astype(np.float64)
    other = voxels.copy()
    if change == "last voxel":
        other[-3, -3, -2] += 1
    elif change == "half a unit":
        other[5, 5, 7] += 0.5
    elif change == "flipped":
        other = other[::-1]
    else:
        other = np.concatenate([other, np.zeros((14, 12, 1))], axis=2)
    cases = (
        case_of(tmp_path, "Brats18_A_1_1", {"t1": (Storage("<f8"), voxels)}),
        case_of(tmp_path, "BraTS20_Training_001", {"t1": (Storage("<f8"), other)}),
    )
    assert patients(*cases) == ["A_1_1", "BraTS20_Training_001"]


def test_the_sieve_alone_joins_nobody(tmp_path):
    # The first planes of these heads are equal far beyond what the sieve reads.
    voxels = np.zeros((80, 80, 12), np.int16)
    voxels[..., 1:-1] = np.random.default_rng(0).integers(1, 9, (80, 80, 10))
    other = voxels.copy()
    other[40, 40, 9] += 1
    cases = (
        case_of(tmp_path, "Brats18_A_1_1", {"t1": (Storage(), voxels)}),
        case_of(tmp_path, "BraTS20_Training_001", {"t1": (Storage(), other)}),
    )
    first, second = glance_at(cases)
    assert first.keys == second.keys
    assert list(find_equal_scans([first, second], lambda _: False)) == []
    assert patients(*cases) == ["A_1_1", "BraTS20_Training_001"]


def test_scans_of_nothing_tell_nothing(tmp_path):
    empty = np.zeros(SHAPE, np.int16)
    cases = (
        case_of(tmp_path, "Brats18_A_1_1", {"t1": (Storage(), empty)}),
        case_of(tmp_path, "BraTS20_Training_001", {"t1": (Storage("<f4"), empty)}),
    )
    assert patients(*cases) == ["A_1_1", "BraTS20_Training_001"]


@pytest.mark.parametrize("air", [np.nan, -1024.0, 1e-6])
def test_air_that_is_not_0_tells_nobody_from_nobody(air, tmp_path):
    def breathing(seed: int) -> np.ndarray:
        return np.where(head(seed) == 0, np.float32(air), head(seed)).astype(np.float32)

    paths = {}
    for name, seed, dtype in (
        ("Brats18_A_1_1", 1, "<f4"),
        ("BraTS20_Training_001", 1, ">f8"),
        ("BraTS20_Training_002", 2, "<f4"),
    ):
        paths[name] = tmp_path / f"{name}_t1.nii"
        image = nib.Nifti1Image(breathing(seed).astype(np.dtype(dtype)), BRATS_AFFINE)
        nib.save(image, paths[name])
    cases = [
        Case(name, "brats2018" if "18" in name[:7] else "brats2020", tmp_path, {"t1": path})
        for name, path in paths.items()
    ]
    assert patients(*cases) == ["A_1_1", "A_1_1", "BraTS20_Training_002"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b", b"no NIfTI", bz2.compress(b"x"), gzip.compress(bytes(400))],
    ids=["empty", "begin of gzip", "text", "bzip2", "gzip of zeros"],
)
def test_a_file_that_is_no_scan_tells_nothing(content, tmp_path):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(content)
    (glance,) = glance_at([Case("Brats18_A_1_1", "brats2018", tmp_path, {"t1": path})])
    assert glance.keys == frozenset()


def test_a_scan_that_is_cut_short_beyond_the_sieve_is_equal_to_none(tmp_path):
    voxels = np.random.default_rng(0).integers(1, 2000, (80, 80, 12)).astype(np.int16)
    cases = [
        case_of(tmp_path, name, {"t1": (Storage(), voxels)})
        for name in ("Brats18_A_1_1", "BraTS20_Training_001")
    ]
    path = cases[1].files["t1"]
    path.write_bytes(path.read_bytes()[:-5000])
    assert patients(*cases) == ["A_1_1", "BraTS20_Training_001"]


storages = st.builds(
    Storage,
    dtype=st.sampled_from(["<i2", ">i2", "<i4", "<f4", ">f4", "<f8", ">f8", "<i8"]),
    slope=st.sampled_from([1.0, 0.5, 0.25]),
    inter=st.sampled_from([0.0, -1024.0, 8.0]),
    axes=st.permutations(["LR", "PA", "SI"]).flatmap(
        lambda pairs: st.tuples(*map(st.sampled_from, pairs)).map("".join)
    ),
    members=st.integers(1, 4),
    level=st.sampled_from([-1, 1, 9]),
    descrip=st.text("abc ", max_size=9),
    negative_zero=st.booleans(),
    fourth_axis=st.booleans(),
)


@given(
    forms=st.lists(storages, min_size=6, max_size=6),
    shown=st.lists(st.sampled_from(["t1", "t1ce", "t2", "flair"]), min_size=6, max_size=6),
)
@settings(deadline=None, max_examples=60)
def test_nobody_is_two_people_and_no_two_are_one_whatever_the_storage(forms, shown):
    # Two people, each in three years, each year in a form of its own, with one modality at least.
    names = ("Brats18_{}_1_1", "BraTS19_{}_9_1", "BraTS20_Training_00{}")
    with TemporaryDirectory() as folder:
        cases = []
        for number, (storage, modality) in enumerate(zip(forms, shown, strict=True)):
            person, year = divmod(number, 3)
            name = names[year].format("AB"[person] if year < 2 else person)
            files = {"t1": (storage, head(person))} | {modality: (storage, head(person))}
            cases.append(case_of(Path(folder), name, files))
        found = patients(*cases)
    assert len(set(found[:3])) == len(set(found[3:])) == 1
    assert found[0] != found[3]
