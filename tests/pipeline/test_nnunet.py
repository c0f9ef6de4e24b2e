"""An export for nnU-Net, held against the archives it came from and against nnU-Net's own code."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from cache_schema.errors import InputError
from cache_schema.files import replacing
from cache_schema.manifest import read_manifest, write_manifest
from pipeline.assemble import assemble_manifest
from pipeline.nnunet import export_nnunet, split_folds
from pipeline.shard_task import make_shard

NAME = "Dataset501_Small"
MODALITIES = ("t1", "t1ce", "t2", "flair")

# Runs nnU-Net in a process of its own: it has warnings, which are errors here. Its check reads cases in
# spawned processes, each of which imports torch; threads in their place do the same and save a minute.
ORACLE = r"""
import json, sys, types
from multiprocessing.pool import ThreadPool
from pathlib import Path
import numpy as np
from nnunetv2.experiment_planning import verify_dataset_integrity as verify
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    get_normalization_scheme,
)
from nnunetv2.utilities import utils
from nnunetv2.utilities.label_handling.label_handling import LabelManager

context = types.SimpleNamespace(Pool=ThreadPool)
verify.multiprocessing = types.SimpleNamespace(get_context=lambda _: context)
utils.Pool = ThreadPool

def complaint(folder):
    try:
        verify.verify_dataset_integrity(folder, num_processes=1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None

def normalised_again(folder):
    folder = Path(folder)
    names = json.loads((folder / "dataset.json").read_text())["channel_names"]
    label = sorted((folder / "labelsTr").iterdir())[0]
    case = label.name.removesuffix(".nii.gz")
    files = [str(folder / "imagesTr" / f"{case}_{int(number):04d}.nii.gz") for number in names]
    images, _ = SimpleITKIO().read_images(files)
    seg, _ = SimpleITKIO().read_seg(str(label))
    images, seg, _ = crop_to_nonzero(images, seg)
    change = 0.0
    for name, image in zip(names.values(), images):
        scheme = get_normalization_scheme(name)(use_mask_for_norm=True, intensityproperties={})
        change = max(change, float(abs(scheme.run(image.copy(), seg[0]) - image).max()))
    return [scheme.__class__.__name__, change, float(images.max())]

def repainted(folder):
    document = json.loads((Path(folder) / "dataset.json").read_text())
    manager = LabelManager(document["labels"], document["regions_class_order"])
    voxels = np.arange(4)
    planes = np.array([np.isin(voxels, region) for region in manager.all_regions], np.float32)
    painted = manager.convert_probabilities_to_segmentation(planes[:, None, None])
    return [list(document["labels"]), planes.astype(int).tolist(), np.ravel(painted).tolist()]

whole, regions, *broken = sys.argv[1:]
print(json.dumps({
    "whole": complaint(whole),
    "broken": [complaint(folder) for folder in broken],
    "again": normalised_again(whole),
    "repainted": repainted(regions),
}))
"""


@pytest.fixture(scope="module")
def exported(small_cache, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("raw") / NAME
    export_nnunet(small_cache, out)
    return out


@pytest.fixture(scope="module")
def verdicts(small_cache, exported, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("nnunet")
    export_nnunet(small_cache, folder / "Dataset502_Regions", regions=True)
    wrong, lacking = (
        shutil.copytree(exported, folder / f"Dataset503_{name}") for name in ("wrong", "lacking")
    )
    victim = sorted((wrong / "labelsTr").iterdir())[4]
    image = nib.load(victim)
    voxels = np.asarray(image.dataobj).copy()
    voxels[3, 4, 5] = 5
    nib.save(nib.Nifti1Image(voxels, image.affine), victim)
    sorted((lacking / "imagesTr").glob("*_0002.nii.gz"))[4].unlink()
    arguments = [exported, folder / "Dataset502_Regions", wrong, lacking]
    done = run(folder, sys.executable, "-c", ORACLE, *map(str, arguments))
    return json.loads(done.stdout.splitlines()[-1])


def run(folder: Path, *command: str, raw: Path | None = None) -> subprocess.CompletedProcess:
    places = {"nnUNet_raw": raw or folder, "nnUNet_preprocessed": folder / "preprocessed"}
    places["nnUNet_results"] = folder / "results"
    places["nnUNet_preprocessed"].mkdir(exist_ok=True)
    environment = os.environ | {name: str(place) for name, place in places.items()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_nnunets_own_check_passes_an_export(verdicts):
    assert verdicts["whole"] is None


def test_nnunets_own_check_refuses_a_label_of_5_and_a_channel_that_is_gone(verdicts):
    wrong, lacking = verdicts["broken"]
    assert "contained unexpected labels" in wrong
    assert "Some images have errors" in lacking


def test_nnunet_zscores_again_and_changes_next_to_nothing(verdicts):
    scheme, change, largest = verdicts["again"]
    assert scheme == "ZScoreNormalization"
    assert largest > 1.0
    assert change < 1e-3


def test_nnunet_gets_every_label_back_from_the_regions_it_covers(verdicts):
    labels, planes, painted = verdicts["repainted"]
    assert labels == ["background", "WT", "TC", "ET"]
    # Voxels of background, NEC, ED and ET; rows are whole tumour, core and enhancing tumour.
    assert planes == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert painted == [0, 1, 2, 3]


@pytest.mark.skipif(
    not os.environ.get("FEDUNETMM_SLOW"), reason="a minute; set FEDUNETMM_SLOW to run it"
)
def test_nnunet_plans_and_preprocesses_an_export_and_takes_its_folds_over(exported, tmp_path):
    command = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    options = [
        "-d",
        "501",
        "--verify_dataset_integrity",
        "-c",
        "3d_fullres",
        "-np",
        "1",
        "-npfp",
        "1",
        "--no_pbar",
    ]
    run(tmp_path, str(command), *options, raw=exported.parent)
    planned = tmp_path / "preprocessed" / NAME
    assert (planned / "splits_final.json").read_bytes() == (
        exported / "splits_final.json"
    ).read_bytes()
    assert len(list((planned / "nnUNetPlans_3d_fullres").glob("*.pkl"))) == 13


@pytest.fixture(scope="module")
def sources(small_tree) -> dict[str, Path]:
    """Folder of each case in the phantom's archives."""
    return {
        path.name.removesuffix("_seg.nii.gz"): path.parent for path in small_tree.rglob("*_seg.*")
    }


def folder_of(split: str, kind: str) -> str:
    return f"{kind}{'Tr' if split == 'train' else 'Ts'}"


def zscored(path: Path) -> np.ndarray:
    voxels = np.asarray(nib.load(path).dataobj, np.float64)
    brain = voxels[voxels != 0]
    scaled = np.where(voxels != 0, (voxels - brain.mean()) / brain.std(), 0.0)
    return scaled.astype(np.float16).astype(np.float32)


def test_every_volume_is_the_archives_zscored_and_where_it_was(exported, small_cache, sources):
    for case in read_manifest(small_cache).cases:
        for channel, modality in enumerate(MODALITIES):
            source = next(sources[case.case_id].glob(f"{case.case_id}_{modality}.nii*"))
            folder = exported / folder_of(case.split, "images")
            image = nib.load(folder / f"{case.case_id}_{channel:04d}.nii.gz")
            assert image.get_data_dtype() == np.float32
            np.testing.assert_array_equal(image.affine, nib.load(source).affine)
            np.testing.assert_array_equal(image.dataobj, zscored(source))


def test_labels_are_the_archives_with_3_for_4(exported, small_cache, sources):
    seen = set()
    for case in read_manifest(small_cache).cases:
        source = nib.load(next(sources[case.case_id].glob(f"{case.case_id}_seg.nii*")))
        label = nib.load(exported / folder_of(case.split, "labels") / f"{case.case_id}.nii.gz")
        expected = np.asarray(source.dataobj).copy()
        expected[expected == 4] = 3
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(label.affine, source.affine)
        np.testing.assert_array_equal(label.dataobj, expected)
        seen.update(np.unique(expected).tolist())
    assert seen == {0, 1, 2, 3}


def test_a_test_case_is_never_where_nnunet_trains(exported, small_cache):
    manifest = read_manifest(small_cache)
    tested = {case.case_id for case in manifest.cases if case.split == "test"}
    trained = {case.case_id for case in manifest.cases} - tested
    assert (len(trained), len(tested)) == (13, 3)
    for ids, split in ((trained, "train"), (tested, "test")):
        images = Counter(
            path.name[: -len("_0000.nii.gz")]
            for path in (exported / folder_of(split, "images")).iterdir()
        )
        labels = [
            path.name.removesuffix(".nii.gz")
            for path in (exported / folder_of(split, "labels")).iterdir()
        ]
        assert images == dict.fromkeys(ids, 4)
        assert sorted(labels) == sorted(ids)


def test_the_description_says_what_nnunet_reads_and_where_the_data_come_from(exported, small_cache):
    document = json.loads((exported / "dataset.json").read_text())
    assert document["channel_names"] == {"0": "t1", "1": "t1ce", "2": "t2", "3": "flair"}
    assert document["labels"] == {"background": 0, "NEC": 1, "ED": 2, "ET": 3}
    assert (document["numTraining"], document["file_ending"]) == (13, ".nii.gz")
    assert document["name"] == "Small"
    assert document["cache_options"]["protocol"] == "patient"
    assert "not to be passed on" in document["licence"]


def test_nobody_is_trained_on_and_validated_on_in_the_same_fold(exported, small_cache):
    training = {
        c.case_id: c.patient_id for c in read_manifest(small_cache).cases if c.split == "train"
    }
    assert max(Counter(training.values()).values()) == 3  # or a split of cases would pass
    folds = json.loads((exported / "splits_final.json").read_text())
    assert len(folds) == 5
    for fold in folds:
        train, val = ({training[name] for name in fold[part]} for part in ("train", "val"))
        assert not train & val
        assert sorted(fold["train"] + fold["val"]) == sorted(training)
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(training)


def cases_of(manifest, counts: dict[str, int]):
    """Make training cases of patients by their number of cases."""
    names = [f"{patient}-{n}" for patient, count in counts.items() for n in range(count)]
    return [
        manifest.cases[0].model_copy(update={"case_id": name, "patient_id": name.split("-")[0]})
        for name in names
    ]


def test_folds_have_equally_many_cases_whatever_patients_have(small_cache):
    counts = {"a": 3, "b": 3, "c": 1, "d": 1, "e": 2, "f": 1, "g": 1, "h": 1, "i": 1, "j": 1}
    cases = cases_of(read_manifest(small_cache), counts)
    for seed in range(5):
        # 15 cases: 3, 3, 2 + 1, and the other six by threes; by persons it would be 2 to 6.
        assert [len(fold["val"]) for fold in split_folds(cases, seed)] == [3, 3, 3, 3, 3]
    assert split_folds(cases, 0) != split_folds(cases, 1)


def test_there_are_no_more_folds_than_patients(small_cache):
    cases = cases_of(read_manifest(small_cache), {"a": 1, "b": 3, "c": 1})
    folds = split_folds(cases, 0)
    assert sorted(len(fold["val"]) for fold in folds) == [1, 1, 3]
    with pytest.raises(InputError, match=r"1 patient\(s\), cross-validation needs two"):
        split_folds(cases_of(read_manifest(small_cache), {"a": 4}), 0)


def test_a_cache_of_larger_planes_gives_the_volume_of_the_case(
    small_plan, exported, tmp_path, small_cache
):
    plan = replace(small_plan, preprocessing=replace(small_plan.preprocessing, plane=(29, 23)))
    cache = tmp_path / "cache"
    outcomes = [make_shard(s, cache, plan.preprocessing, lambda _: None) for s in plan.shards]
    write_manifest(cache, assemble_manifest(plan, outcomes))
    export_nnunet(cache, tmp_path / NAME)
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        assert contents(tmp_path / NAME / folder) == contents(exported / folder)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_empty_folder_is_taken_and_the_count_is_told(small_cache, exported, tmp_path):
    (tmp_path / NAME).mkdir()
    told = []
    summary = export_nnunet(small_cache, tmp_path / NAME, on_case=lambda *what: told.append(what))
    assert (summary.training_cases, summary.test_cases, summary.folds) == (13, 3, 5)
    assert {total for _, total in told} == {16}
    assert {name for name, _ in told} == {c.case_id for c in read_manifest(small_cache).cases}
    assert contents(tmp_path / NAME) == contents(exported)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("name", ["Small", "Dataset1_Small", "Dataset501", "Dataset501_Small.v2"])
def test_a_name_that_nnunet_does_not_find_is_refused(small_cache, tmp_path, name):
    with pytest.raises(InputError, match="DatasetXXX_NAME"):
        export_nnunet(small_cache, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_and_a_file_are_refused_and_left_alone(small_cache, tmp_path):
    used, file = tmp_path / NAME, tmp_path / "Dataset502_File"
    used.mkdir()
    (used / "mine").touch()
    file.touch()
    for out in (used, file):
        with pytest.raises(InputError, match=f"{out.name} is in use: name a folder"):
            export_nnunet(small_cache, out)
    assert [path.name for path in used.iterdir()] == ["mine"]
    assert {path.name for path in tmp_path.iterdir()} == {used.name, file.name}


def stop_at(number: int):
    told = []

    def on_case(case_id: str, _: int) -> None:
        told.append(case_id)
        if len(told) == number:
            raise KeyboardInterrupt

    return on_case


def test_an_interrupted_export_has_no_name_and_goes_on_from_whole_cases(
    small_cache, exported, tmp_path
):
    out, partial = tmp_path / NAME, tmp_path / f".{NAME}.partial"
    with pytest.raises(KeyboardInterrupt):
        export_nnunet(small_cache, out, on_case=stop_at(6))
    assert [path.name for path in tmp_path.iterdir()] == [partial.name]
    labels = list((partial / "labelsTr").iterdir())
    assert len(labels) == 6
    labels[0].unlink()  # as if its case had been interrupted
    kept = {path.name: path.stat().st_ino for path in labels[1:]}
    export_nnunet(small_cache, out)
    assert contents(out) == contents(exported)
    assert {name: (out / "labelsTr" / name).stat().st_ino for name in kept} == kept
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_what_a_killed_export_left_half_written_is_not_in_the_dataset(
    small_cache, exported, tmp_path
):
    with pytest.raises(KeyboardInterrupt):
        export_nnunet(small_cache, tmp_path / NAME, on_case=stop_at(2))
    folder = tmp_path / f".{NAME}.partial" / "imagesTr"
    killed = replacing(folder / "BraTS20_Training_001_0000.nii.gz")
    killed.__enter__().write_bytes(b"half")
    export_nnunet(small_cache, tmp_path / NAME)
    assert contents(tmp_path / NAME) == contents(exported)


def test_an_unfinished_export_with_other_options_is_not_gone_on_with(small_cache, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export_nnunet(small_cache, tmp_path / NAME, on_case=stop_at(1))
    with pytest.raises(InputError, match=rf"\.{NAME}\.partial is an unfinished export of another"):
        export_nnunet(small_cache, tmp_path / NAME, regions=True)
    assert not (tmp_path / NAME).exists()


def test_a_disk_that_is_full_is_said_in_one_line(small_cache, tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=rf"{NAME} cannot be written \(No space left"):
        export_nnunet(small_cache, tmp_path / NAME)
    assert not (tmp_path / NAME).exists()


def test_test_shards_that_a_manifest_gives_to_a_client_are_not_exported(
    cache_copy, recount, tmp_path
):
    manifest = read_manifest(cache_copy)
    cases = tuple(
        case.model_copy(update={"split": "train", "client": 0}) if case.split == "test" else case
        for case in manifest.cases
    )
    write_manifest(cache_copy, recount(manifest, cases))
    with pytest.raises(
        InputError, match=r"test/brats2018/shard-000\.h5 .* is a shard of the test set"
    ):
        export_nnunet(cache_copy, tmp_path / NAME)
    assert not (tmp_path / NAME).exists()


def test_a_shard_without_its_case_is_named(cache_copy, tmp_path):
    first, second = read_manifest(cache_copy).client_shards(0)[:2]
    shutil.copy(cache_copy / first, cache_copy / second)
    with pytest.raises(
        InputError, match=rf"{second} .* is only in the shard; run `prep verify --deep`"
    ):
        export_nnunet(cache_copy, tmp_path / NAME)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "a/b"])
def test_a_case_id_that_is_a_path_writes_nothing_anywhere(name, cache_copy, tmp_path):
    document = json.loads((cache_copy / "manifest.json").read_text())
    (case, *_) = (case for case in document["cases"] if case["split"] == "train")
    with h5py.File(cache_copy / case["shard"], "r+") as shard:
        names = shard["cases/case_id"]
        row = names.asstr()[:].tolist().index(case["case_id"])
        names[row] = name
    case["case_id"] = name
    (cache_copy / "manifest.json").write_text(json.dumps(document))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"case_id: .*is no name"):
        export_nnunet(cache_copy, tmp_path / "out" / NAME)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["", "imagesTr"])
def test_an_unfinished_export_that_leads_elsewhere_is_not_gone_on_with(
    place, small_cache, tmp_path
):
    (tmp_path / "outside").mkdir()
    link = tmp_path / f".{NAME}.partial" / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="is a link"):
        export_nnunet(small_cache, tmp_path / NAME)
    assert list((tmp_path / "outside").iterdir()) == []
