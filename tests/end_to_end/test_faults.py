"""One tree with every fault at once, prepared by the real command: nothing mis-paired, nothing lost.

The phantom's files are marked first: no two cases have the same segmentation, no two modalities of a
case the same background, so a file that is taken for another one shows.
"""

import csv
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  # registers LZ4 with plain h5py
import nibabel as nib
import numpy as np
import pytest

from pipeline.cohorts import discover
from pipeline.identity import identify
from pipeline.phantom.archives import write_phantom

ROOT = Path(__file__).parents[2]
SHAPE = (24, 20, 16)
MODALITIES = ("t1", "t1ce", "t2", "flair")
CASE_355 = "BraTS20_Training_355"
SEGMENTATION_355 = "W39_1998.09.19_Segm.nii"

Files = dict[str, Path]
"""Where the files of a case are, by modality or `seg`."""


def prep(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `prep` in a fresh interpreter, as its console script does."""
    return subprocess.run(
        [sys.executable, "-c", "import cli; cli.run_prep()", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read voxels and affine of a file with nibabel, whatever its name says about gzip."""
    content = path.read_bytes()
    raw = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    image = nib.Nifti1Image.from_bytes(raw)
    return np.asarray(image.dataobj).copy(), image.affine


def write(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    content = nib.Nifti1Image(voxels, affine).to_bytes()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


def change(path: Path, alter: Callable[[np.ndarray], np.ndarray]) -> None:
    voxels, affine = read(path)
    write(path, alter(voxels), affine)


def move(files: Files, role: str, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    files[role] = files[role].rename(target)


def rename_folder(files: Files, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    files["t1"].parent.rename(target)
    files.update({role: target / path.name for role, path in files.items()})


# What mirrors do to sound cases: every one of them is stored.


def misname_segmentation(files: Files) -> None:
    rename_folder(files, files["t1"].parent.with_name(CASE_355))
    for role in MODALITIES:
        move(files, role, files[role].with_name(f"{CASE_355}_{role}.nii"))
        plain = gzip.decompress(files[role].read_bytes())
        files[role].write_bytes(plain)
    move(files, "seg", files["seg"].with_name(SEGMENTATION_355))


def wrap_in_folder(files: Files) -> None:
    """Kaggle: `<case>_flair.nii/` is a folder that holds one file of another name."""
    plain = gzip.decompress(files["flair"].read_bytes())
    name = files["flair"].name.removesuffix(".gz")
    move(files, "flair", files["flair"].parent / name / "Brats17_TCIA_000_1_flair.nii")
    files["flair"].write_bytes(plain)


def lie_about_gzip(files: Files) -> None:
    move(files, "t1", files["t1"].with_name(files["t1"].name.removesuffix(".gz")))
    move(files, "seg", files["seg"].with_name(files["seg"].name.removesuffix(".gz")))
    files["t2"].write_bytes(gzip.decompress(files["t2"].read_bytes()))


def mix_extensions(files: Files) -> None:
    for role in ("t1ce", "seg"):
        plain = gzip.decompress(files[role].read_bytes())
        move(files, role, files[role].with_name(files[role].name.removesuffix(".gz")))
        files[role].write_bytes(plain)


def lower(files: Files) -> None:
    rename_folder(files, files["t1"].parent.with_name(files["t1"].parent.name.lower()))
    for role in files:
        move(files, role, files[role].with_name(files[role].name.lower()))


def upper(files: Files) -> None:
    rename_folder(files, files["t1"].parent.with_name(files["t1"].parent.name.upper()))
    for role in files:
        move(files, role, files[role].with_name(files[role].name.upper()))


def nest(files: Files) -> None:
    folder = files["t1"].parent
    data = next(parent for parent in folder.parents if parent.name == "data")
    rename_folder(files, data / "archive (1)" / "archive" / "BraTS" / "BraTS" / folder.name)


def strew(files: Files) -> None:
    """Put beside a case what does not belong to it, masks among it."""
    folder = files["seg"].parent
    _, affine = read(files["seg"])
    for name in (
        "BraTS20_Training_999_seg.nii.gz",
        f"{folder.name}_seg (1).nii.gz",
        f"._{folder.name}_seg.nii.gz",
        f"{folder.name}_t1_seg.nii.gz",
    ):
        write(folder / name, np.zeros(SHAPE, np.uint8), affine)
    (folder / "Thumbs.db").write_bytes(b"\0")


def store_twice(files: Files) -> None:
    """A second segmentation under the same name, `.nii` beside `.nii.gz`: the first by name counts."""
    voxels, affine = read(files["seg"])
    second = files["seg"]
    files["seg"] = second.with_name(second.name.removesuffix(".gz"))
    write(files["seg"], voxels, affine)
    write(second, np.full(SHAPE, 2, np.uint8), affine)


def lose_t1(files: Files) -> None:
    files.pop("t1").unlink()  # `_t1ce` is still there and must not stand in for it


def store_labels_as_float(files: Files) -> None:
    change(files["seg"], lambda voxels: voxels.astype(np.float32))


SOUND: dict[str, Callable[[Files], None]] = {
    function.__name__: function
    for function in (
        misname_segmentation,
        wrap_in_folder,
        lie_about_gzip,
        mix_extensions,
        lower,
        upper,
        nest,
        strew,
        store_twice,
        lose_t1,
        store_labels_as_float,
    )
}

# What makes a case useless: every one of them is quarantined.


def use_label_3(files: Files) -> None:
    change(files["seg"], lambda voxels: np.where(voxels == 1, 3, voxels).astype(np.uint8))


def crop_t2(files: Files) -> None:
    change(files["t2"], lambda voxels: voxels[:, :, :-1])


def shift_flair(files: Files) -> None:
    voxels, affine = read(files["flair"])
    affine[0, 3] += 5.0
    write(files["flair"], voxels, affine)


def put_nan_into_t1ce(files: Files) -> None:
    def spoil(voxels: np.ndarray) -> np.ndarray:
        spoilt = voxels.astype(np.float32)
        spoilt[SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] // 2] = np.nan
        return spoilt

    change(files["t1ce"], spoil)


def empty_brain(files: Files) -> None:
    for role in MODALITIES:
        change(files[role], np.zeros_like)


def truncate_t2(files: Files) -> None:
    content = files["t2"].read_bytes()
    files["t2"].write_bytes(content[: len(content) * 2 // 3])


def truncate_plain_t1(files: Files) -> None:
    plain = gzip.decompress(files["t1"].read_bytes())
    files["t1"].write_bytes(plain[: len(plain) * 2 // 3])


def flip_a_bit_of_seg(files: Files) -> None:
    """Damage that only gzip's checksum can tell."""
    content = bytearray(gzip.compress(gzip.decompress(files["seg"].read_bytes()), compresslevel=0))
    content[len(content) // 2] ^= 4
    files["seg"].write_bytes(bytes(content))


def empty_flair_file(files: Files) -> None:
    files["flair"].write_bytes(b"")


def lose_segmentation(files: Files) -> None:
    files.pop("seg").unlink()


FAULTS: dict[str, tuple[Callable[[Files], None], str]] = {
    function.__name__: (function, reason)
    for function, reason in (
        (use_label_3, r"^segmentation has labels \[3\]"),
        (crop_t2, r"^t2 has shape \(24, 20, 15\), seg \(24, 20, 16\)"),
        (shift_flair, r"^flair and seg have different affines"),
        (put_nan_into_t1ce, r"^t1ce has voxels that are not finite"),
        (empty_brain, r"^t1 is empty"),
        (truncate_t2, r"^t2 is not a readable NIfTI file"),
        (truncate_plain_t1, r"^t1 is not a readable NIfTI file"),
        (flip_a_bit_of_seg, r"^seg is not a readable NIfTI file"),
        (empty_flair_file, r"^flair is not a readable NIfTI file"),
        (lose_segmentation, r"^no segmentation file"),
    )
}
VALIDATION_CASE = "BraTS20_Validation_001"


@dataclass(frozen=True)
class Tree:
    """A tree of archives of which everything is known.

    Attributes:
        root: Its folder.
        files: Where the files of each case are.
        struck: The case that each of `SOUND` and `FAULTS` was done to.
        people: The cases of each person.
    """

    root: Path
    files: dict[str, Files]
    struck: dict[str, str]
    people: list[set[str]]

    @property
    def faulty(self) -> set[str]:
        return {self.struck[name] for name in FAULTS} | {VALIDATION_CASE}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Tree:
    root = tmp_path_factory.mktemp("faults") / "data"
    write_phantom(root, num_patients=12, shape=SHAPE, seed=3)
    files = {
        path.parent.name: {
            role: path.with_name(f"{path.parent.name}_{role}.nii.gz")
            for role in (*MODALITIES, "seg")
        }
        for path in sorted(root.rglob("*_seg.nii.gz"))
    }
    for number, own in enumerate(files.values()):
        mark(own, number)
    people = read_people(root)
    names = sorted(files)
    random.Random(2020).shuffle(names)
    names.sort(key=lambda name: not name.startswith("BraTS20_"))  # 355 is one of 2020
    struck = dict(zip((*SOUND, *FAULTS), names, strict=False))
    assert len(struck) == len(SOUND) + len(FAULTS)
    for name, case_id in struck.items():
        (SOUND[name] if name in SOUND else FAULTS[name][0])(files[case_id])
    rename_355(files, struck, people)
    add_validation_case(root, files)
    (root / "README.txt").write_text("unpacked by hand")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._MICCAI_BraTS2020_TrainingData").write_bytes(b"\0")
    return Tree(root, files, struck, people)


def mark(files: Files, number: int) -> None:
    """Make a case's segmentation and its modalities' backgrounds unlike those of any other.

    T1 stays as it is: by its voxels a person is known in several years.
    """

    def relabel(voxels: np.ndarray) -> np.ndarray:
        healthy = np.flatnonzero(voxels == 0)
        voxels.flat[healthy[len(healthy) // 2 + number]] = 2
        return voxels

    def puncture(shift: int) -> Callable[[np.ndarray], np.ndarray]:
        def alter(voxels: np.ndarray) -> np.ndarray:
            brain = np.flatnonzero(voxels)
            voxels.flat[brain[3 * number + shift]] = 0
            return voxels

        return alter

    change(files["seg"], relabel)
    for shift, role in enumerate(("t1ce", "t2", "flair")):
        change(files[role], puncture(shift))


def read_people(root: Path) -> list[set[str]]:
    with (root / "MICCAI_BraTS2020_TrainingData" / "name_mapping.csv").open() as file:
        rows = list(csv.DictReader(file))
    years = ("BraTS_2018_subject_ID", "BraTS_2019_subject_ID", "BraTS_2020_subject_ID")
    return [{row[year] for year in years} - {"NA"} for row in rows]


def rename_355(files: dict[str, Files], struck: dict[str, str], people: list[set[str]]) -> None:
    before = struck["misname_segmentation"]
    struck["misname_segmentation"] = CASE_355
    files[CASE_355] = files.pop(before)
    person = next(cases for cases in people if before in cases)
    person.remove(before)
    person.add(CASE_355)


def add_validation_case(root: Path, files: dict[str, Files]) -> None:
    healthy = next(own for own in files.values() if len(own) == 5)
    folder = root / "MICCAI_BraTS2020_ValidationData" / VALIDATION_CASE
    folder.mkdir(parents=True)
    files[VALIDATION_CASE] = {}
    for role in MODALITIES:
        target = folder / f"{VALIDATION_CASE}_{role}.nii.gz"
        voxels, affine = read(healthy[role])
        # Another person than those of the training archives.
        write(target, voxels[::-1].copy(), affine)
        files[VALIDATION_CASE][role] = target


@dataclass(frozen=True)
class Prepared:
    """What `prep partition` made of the tree."""

    cache: Path
    result: subprocess.CompletedProcess[str]
    manifest: dict[str, Any]

    @property
    def reasons(self) -> dict[str, str]:
        return {entry["case_id"]: entry["reason"] for entry in self.manifest["quarantined"]}

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        return {case["case_id"]: case for case in self.manifest["cases"]}


PARTITION = ("--clients", 3, "--test-fraction", 0.2, "--geometry", "any", "--missing", "zero")


@pytest.fixture(scope="module")
def prepared(tree, tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    result = prep("partition", tree.root, *PARTITION, "--shard-cases", 3, cwd=folder)
    assert (folder / "cache/manifest.json").exists(), result.stderr
    manifest = json.loads((folder / "cache/manifest.json").read_text())
    return Prepared(folder / "cache", result, manifest)


def test_a_run_that_quarantined_cases_exits_with_3_and_names_them(prepared, tree):
    assert prepared.result.returncode == 3
    lines = prepared.result.stderr.splitlines()
    assert {line.split()[1].rstrip(":") for line in lines} == tree.faulty
    assert len(lines) == len(tree.faulty)
    assert all(line.startswith("quarantined ") for line in lines)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_case_is_quarantined_with_a_reason_that_names_the_file(prepared, tree, fault):
    assert re.search(FAULTS[fault][1], prepared.reasons[tree.struck[fault]])


def test_a_validation_case_is_left_out_for_want_of_a_segmentation(prepared):
    assert prepared.reasons[VALIDATION_CASE] == "no segmentation file"


def test_all_other_cases_are_stored(prepared, tree):
    assert prepared.cases.keys() == tree.files.keys() - tree.faulty
    assert prepared.reasons.keys() == tree.faulty


def test_the_repair_of_case_355_is_recorded(prepared):
    action = f"{SEGMENTATION_355} taken as seg"
    assert prepared.manifest["repairs"] == [{"case_id": CASE_355, "action": action}]
    assert not any("ignored" in finding for finding in prepared.cases[CASE_355]["findings"])


def test_every_stray_file_is_a_finding(prepared, tree):
    folder = tree.files[tree.struck["strew"]]["seg"].parent
    known = {path.name for path in tree.files[tree.struck["strew"]].values()}
    strays = {path.name for path in folder.iterdir()} - known
    assert len(strays) == 5
    strays -= {"Thumbs.db", f"._{folder.name}_seg.nii.gz"}  # what systems leave behind
    assert len(strays) == 3
    findings = prepared.cases[tree.struck["strew"]]["findings"]
    assert {f for f in findings if "ignored" in f} == {
        f"{name} ignored: not a file of this case" for name in strays
    }


def test_a_second_file_for_a_modality_is_a_finding(prepared, tree):
    case_id = tree.struck["store_twice"]
    name = tree.files[case_id]["seg"].name
    expected = f"{name}.gz ignored: {name} was taken as seg"
    assert expected in prepared.cases[case_id]["findings"]


def test_cases_without_strays_have_no_finding_about_files(prepared, tree):
    odd = {
        case_id
        for case_id, case in prepared.cases.items()
        if any("ignored" in finding for finding in case["findings"])
    }
    assert odd == {tree.struck["strew"], tree.struck["store_twice"]}


def test_an_absent_modality_is_recorded_and_t1ce_does_not_stand_in_for_t1(prepared, tree):
    absent = {c: case["present"] for c, case in prepared.cases.items() if not all(case["present"])}
    assert absent == {tree.struck["lose_t1"]: [False, True, True, True]}


def test_no_case_has_the_mask_or_the_image_of_another(prepared, tree):
    compared = set()
    for shard in prepared.manifest["shards"]:
        with h5py.File(prepared.cache / shard["path"]) as file:
            for number, case_id in enumerate(file["cases/case_id"].asstr()[:]):
                rows = slice(file["cases/first_row"][number], file["cases/stop_row"][number])
                compare(file, rows, tree.files[case_id])
                compared.add(case_id)
    assert compared == tree.files.keys() - tree.faulty


def compare(file: h5py.File, rows: slice, files: Files) -> None:
    """Hold the stored slices of a case against its files, read with nibabel."""
    planes = file["z"][rows]
    label = np.zeros(SHAPE, np.uint8)
    label[:, :, planes] = file["label"][rows].transpose(1, 2, 0)
    np.testing.assert_array_equal(label, read(files["seg"])[0])
    for channel, role in enumerate(MODALITIES):
        image = np.zeros(SHAPE, np.float16)
        image[:, :, planes] = file["image"][rows, channel].transpose(1, 2, 0)
        if role not in files:
            assert not image.any()
            continue
        source = read(files[role])[0].astype(np.float64)
        brain = source[source != 0]
        scores = np.where(source != 0, (source - brain.mean()) / brain.std(), 0.0)
        # Where a brain voxel has exactly the mean of its brain, its score is 0 too.
        np.testing.assert_array_equal(image != 0, scores.astype(np.float16) != 0)
        np.testing.assert_allclose(image, scores, rtol=1e-3, atol=1e-3)


def test_the_marks_are_such_that_a_mixed_up_file_would_show(tree):
    segmentations = set()
    stored = {name: own for name, own in tree.files.items() if name not in tree.faulty}
    for files in stored.values():
        segmentations.add(read(files["seg"])[0].astype(np.uint8).tobytes())
        masks = {(read(files[role])[0] != 0).tobytes() for role in files}
        assert len(masks) == len(files)
    assert len(segmentations) == len(stored)


def test_every_person_is_known_in_every_year_even_where_355_is_not_in_the_mapping(prepared, tree):
    patients = [
        {prepared.cases[c]["patient_id"] for c in p if c in prepared.cases} for p in tree.people
    ]
    assert {len(names) for names in patients} <= {0, 1}
    named = [name for names in patients for name in names]
    assert len(named) == len(set(named)) > 1
    owners: dict[str, set[Any]] = {}
    for case in prepared.cases.values():
        owners.setdefault(case["patient_id"], set()).add(case["client"])
    assert {len(clients) for clients in owners.values()} == {1}


def test_the_cache_agrees_with_its_manifest(prepared, tmp_path):
    result = prep("verify", "--deep", prepared.cache, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_quarantined_cases_can_be_allowed(prepared, tree, tmp_path):
    cache = shutil.copytree(prepared.cache, tmp_path / "cache")
    command = ("partition", tree.root, *PARTITION, "--shard-cases", 3, "--allow-quarantined")
    assert prep(*command, cwd=tmp_path).returncode == 0
    assert (cache / "manifest.json").read_bytes() == (prepared.cache / "manifest.json").read_bytes()


def test_a_scan_names_the_same_faults_repairs_and_findings(prepared, tree, tmp_path):
    command = ("scan", tree.root, "--geometry", "any", "--json", "report.json")
    assert prep(*command, cwd=tmp_path).returncode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: faults[0] for name, faults in report["faults"].items()} == prepared.reasons
    assert report["repairs"] == {CASE_355: [f"{SEGMENTATION_355} taken as seg"]}
    assert report["absent"] == {tree.struck["lose_t1"]: ["t1"]}
    stored = {name: case["findings"] for name, case in prepared.cases.items() if case["findings"]}
    assert {n: f for n, f in report["findings"].items() if n not in prepared.reasons} == stored


def test_a_case_in_two_places_is_refused_naming_both_folders(tmp_path):
    write_phantom(tmp_path / "data", num_patients=4, shape=SHAPE)
    first = tmp_path / "data" / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_002"
    second = tmp_path / "data" / "copies" / "braTS20_training_002"
    shutil.copytree(first, second)
    result = prep("partition", "data", *PARTITION, cwd=tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert str(first.relative_to(tmp_path)) in line
    assert str(second.relative_to(tmp_path)) in line
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def unmapped(tmp_path) -> Path:
    """One person in 2018, 2019 and 2020 and others besides, without a name mapping."""
    write_phantom(tmp_path / "data", num_patients=5, shape=SHAPE)
    for path in (tmp_path / "data").rglob("name_mapping.csv"):
        path.unlink()
    return tmp_path / "data"


def patients_by_cases(root: Path) -> set[frozenset[str]]:
    owned: dict[str, set[str]] = {}
    for case in identify(discover([root])):
        owned.setdefault(case.patient_id, set()).add(case.case_id)
    return {frozenset(cases) for cases in owned.values()}


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:99])


@pytest.mark.parametrize("how", [damage, Path.unlink], ids=["damaged", "absent"])
def test_a_person_is_known_by_voxels_though_t1_of_one_year_is_of_no_use(unmapped, how):
    before = patients_by_cases(unmapped)
    person = sorted(next(cases for cases in before if len(cases) == 3))
    (path,) = unmapped.rglob(f"{person[0]}_t1.nii.gz")
    how(path)
    assert patients_by_cases(unmapped) == before


@pytest.mark.parametrize(
    "how", [lambda path: path.write_bytes(b""), empty_brain], ids=["empty file", "empty brain"]
)
def test_two_people_are_not_one_because_both_have_an_empty_image(unmapped, how):
    before = patients_by_cases(unmapped)
    for cases in sorted(map(sorted, before))[:2]:
        (path,) = unmapped.rglob(f"{cases[0]}_t1.nii.gz")
        if how is empty_brain:
            change(path, np.zeros_like)
        else:
            how(path)
    # Nobody is in one year twice.
    assert all(len({c[:7] for c in own}) == len(own) for own in patients_by_cases(unmapped))


def files_by_case(root: Path) -> dict[str, set[str]]:
    return {case.case_id: set(case.files) for case in discover([root]).cases}


def nest_in_itself(folder: Path) -> None:
    """Kaggle again: an archive unpacked into a folder of its own name."""
    aside = folder.rename(folder.with_name("aside"))
    folder.mkdir()
    aside.rename(folder / folder.name)


def unpack_on_a_mac(folder: Path) -> None:
    shadow = folder.parents[1] / "__MACOSX" / folder.parent.name / folder.name
    shadow.mkdir(parents=True)
    (shadow / f"._{folder.name}_t1.nii.gz").write_bytes(b"\0\5\x16\7")


def wrap_and_look_with_finder(folder: Path) -> None:
    mirror = folder / f"{folder.name}_flair.nii"
    mirror.mkdir()
    (folder / f"{folder.name}_flair.nii.gz").rename(mirror / "Brats17_flair.nii")
    (mirror / ".DS_Store").write_bytes(b"Bud1")


@pytest.mark.parametrize("mirror", [nest_in_itself, unpack_on_a_mac, wrap_and_look_with_finder])
def test_no_file_is_lost_to_a_mirror(mirror, unmapped):
    before = files_by_case(unmapped)
    mirror(unmapped / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_002")
    assert files_by_case(unmapped) == before
