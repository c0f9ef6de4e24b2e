"""What is to be segmented and where it goes; a bad case does not stop the others."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cache_schema.errors import InputError
from pipeline.segment import Outcome, plan_requests, segment, summarise

NO_FILES = {"t1": None, "t1ce": None, "t2": None, "flair": None}
PLANES = ("NEC", "ED", "ET")


def bright(image):
    """Call oedema whatever is bright in FLAIR."""
    labels = np.where(image[:, 3] > 0.5, 2, 0).astype(np.uint8)
    return labels, np.repeat(image[:, 3:].astype(np.float32), 3, axis=1)


def case_folder(tree: Path, prefix: str) -> Path:
    return min(path for path in tree.rglob(f"{prefix}*") if path.is_dir())


@pytest.mark.parametrize("prefix", ["Brats18_", "BraTS19_", "BraTS20_"])
def test_a_case_in_each_layout_gets_one_mask(prefix, small_tree, small_plan, tmp_path):
    folder = case_folder(small_tree, prefix)
    requests = plan_requests(folder, NO_FILES, tmp_path / "mask.nii.gz")
    assert [request.case_id for request in requests] == [folder.name]
    (outcome,) = segment(requests, small_plan.preprocessing, bright, PLANES)
    assert outcome.written == {
        tmp_path / "mask.nii.gz": "labels 0, 1, 2, 4",
        tmp_path / "mask_probabilities.nii.gz": "probabilities of NEC, ED, ET",
    }
    mask = nib.load(tmp_path / "mask.nii.gz")
    flair = nib.load(next(folder.glob("*_flair.nii*")))
    np.testing.assert_array_equal(mask.affine, flair.affine)
    labels, voxels = np.asarray(mask.dataobj), np.asarray(flair.dataobj)
    brain = voxels != 0
    z = (voxels[brain] - voxels[brain].mean()) / voxels[brain].std()
    np.testing.assert_array_equal(labels[brain] == 2, z.astype(np.float16) > 0.5)
    assert not labels[~brain].any()


def test_masks_that_cannot_be_written_are_refused_before_anything_is_read(small_tree, tmp_path):
    (tmp_path / "notes").write_text("mine")
    folder = case_folder(small_tree, "BraTS20_")
    for case, name in ((folder, "notes/mask.nii.gz"), (small_tree, "notes/masks")):
        with pytest.raises(InputError, match=rf"--out .*{name}.* \(Not a directory\)"):
            plan_requests(case, NO_FILES, tmp_path / name)


def test_a_case_may_be_where_one_stands(small_tree, tmp_path, monkeypatch):
    folder = case_folder(small_tree, "BraTS20_")
    monkeypatch.chdir(folder)
    (request,) = plan_requests(Path(), NO_FILES, tmp_path / "mask.nii.gz")
    assert (request.case_id, request.out) == (folder.name, tmp_path / "mask.nii.gz")


def test_a_case_may_be_named_from_inside(small_tree, tmp_path, monkeypatch):
    folder = shutil.copytree(case_folder(small_tree, "BraTS20_"), tmp_path / "BraTS20_Training_009")
    (folder / "notes").mkdir()
    monkeypatch.chdir(folder / "notes")
    (request,) = plan_requests(Path(".."), NO_FILES, tmp_path / "mask.nii.gz")
    assert (request.case_id, request.out) == ("BraTS20_Training_009", tmp_path / "mask.nii.gz")


def test_a_folder_of_cases_at_any_depth_gets_a_mask_each_named_by_its_case(small_tree, tmp_path):
    requests = plan_requests(small_tree, NO_FILES, tmp_path / "masks")
    assert len(requests) == 16
    for request in requests:
        assert request.out == tmp_path / "masks" / f"{request.case_id}.nii.gz"
        assert {"t1", "t1ce", "t2", "flair"} <= request.files.keys()


def test_a_damaged_case_is_reported_and_the_others_go_on(small_tree, small_plan, tmp_path):
    tree = tmp_path / "data"
    for prefix in ("Brats18_", "BraTS19_", "BraTS20_"):
        folder = case_folder(small_tree, prefix)
        shutil.copytree(folder, tree / f"of {prefix}" / folder.name)
    damaged = case_folder(tree, "BraTS19_")
    file = next(damaged.glob("*_t2.nii*"))
    file.write_bytes(file.read_bytes()[:50])
    requests = plan_requests(tree, NO_FILES, tmp_path / "masks")
    outcomes = list(segment(requests, small_plan.preprocessing, bright, PLANES))
    assert [outcome.fault is None for outcome in outcomes] == [False, True, True]  # by id
    assert len(list((tmp_path / "masks").glob("*[0-9].nii.gz"))) == 2
    assert list(outcomes[0].warnings(is_one_of_many=True)) == [
        f"{damaged.name} is left out: {outcomes[0].fault}"
    ]
    assert "t2 is not a readable NIfTI file" in str(outcomes[0].fault)
    assert summarise(outcomes).startswith(
        f"1 of 3 cases could not be segmented, first {damaged.name}: "
    )
    assert summarise(outcomes[1:]) is None
    assert summarise(outcomes[:1]) == f"{damaged.name}: {outcomes[0].fault}"


def test_files_one_by_one_need_no_folder_and_may_be_some_of_the_four(
    small_tree, small_plan, tmp_path
):
    folder = case_folder(small_tree, "BraTS20_")
    flair = next(folder.glob("*_flair.nii*"))
    shutil.copy(flair, tmp_path / "scan.img")  # its first bytes tell what it is
    files = {**NO_FILES, "flair": tmp_path / "scan.img"}
    requests = plan_requests(None, files, tmp_path / "mine.nii.gz")
    (outcome,) = segment(requests, small_plan.preprocessing, lambda i: (bright(i)[0], None), PLANES)
    assert list(outcome.written) == [tmp_path / "mine.nii.gz"]
    assert list(outcome.warnings(is_one_of_many=False)) == [
        "mine lacks t1, t1ce, t2: zeros stand in for it, as --missing zero stores them"
    ]


def test_what_cannot_be_asked_for_is_refused_with_the_option(small_tree, tmp_path):
    folder = case_folder(small_tree, "Brats18_")
    file = next(folder.glob("*_t1.nii*"))
    one = {**NO_FILES, "t1": file}
    mask = tmp_path / "mask.nii.gz"
    for case, files, out, message in (
        (None, NO_FILES, mask, "give a case's folder, or its files one by one"),
        (folder, one, mask, "give a case's folder, or its files one by one"),
        (file, NO_FILES, mask, "is one file; give its case's folder"),
        (tmp_path / "nowhere", NO_FILES, mask, "nowhere is not a folder"),
        (
            tmp_path,
            NO_FILES,
            mask,
            "no BraTS case under .*; scans under other names go with --t1 FILE",
        ),
        (small_tree, NO_FILES, mask, r"holds 16 case\(s\) .* name a folder for their masks"),
        (folder, NO_FILES, tmp_path / "mask.png", r"give a file name that ends in \.nii\.gz"),
        (folder, NO_FILES, tmp_path, r"give a file name that ends in \.nii\.gz"),
        (folder, NO_FILES, folder / file.name, "is one of the case's own files"),
    ):
        with pytest.raises(InputError, match=message):
            plan_requests(case, files, out)


def test_one_missing_modality_is_said_of_the_case():
    outcome = Outcome("a", absent=("t2",))
    assert list(outcome.warnings(is_one_of_many=True)) == [
        "a lacks t2: zeros stand in for it, as --missing zero stores them"
    ]


def test_a_modality_that_cannot_be_opened_is_no_absent_one(small_tree, small_plan, tmp_path):
    folders = sorted((small_tree / "MICCAI_BraTS2020_TrainingData").glob("BraTS20_*"))[:2]
    for folder in folders:
        shutil.copytree(folder, tmp_path / "data" / folder.name)
    (flair,) = (tmp_path / "data" / folders[0].name).glob("*_flair.nii*")
    flair.unlink()
    flair.symlink_to("/nowhere/flair.nii.gz")
    (seg,) = (tmp_path / "data" / folders[1].name).glob("*_seg.nii*")
    seg.unlink()
    seg.symlink_to("/nowhere/seg.nii.gz")  # nobody needs it to predict
    requests = plan_requests(tmp_path / "data", NO_FILES, tmp_path / "masks")
    outcomes = list(segment(requests, small_plan.preprocessing, bright, PLANES))
    assert outcomes[0].fault == (
        f"flair is there but cannot be read: {flair.name} is a link that leads nowhere, to "
        "/nowhere/flair.nii.gz (No such file or directory)"
    )
    assert (outcomes[0].written, outcomes[0].absent) == ({}, ())
    assert outcomes[1].fault is None


def test_what_lies_beside_the_cases_and_is_not_read_is_told(small_tree, tmp_path):
    folder = case_folder(small_tree, "BraTS20_")
    shutil.copytree(folder, tmp_path / folder.name)
    shutil.copytree(folder, tmp_path / f"{folder.name} (1)")
    told = []
    (request,) = plan_requests(tmp_path, NO_FILES, tmp_path / "masks", warn=told.append)
    assert request.case_id == folder.name
    (line,) = told
    assert line.startswith(f"not read: {tmp_path / folder.name} (1) (by its name a second copy of")
    plan_requests(tmp_path / folder.name, NO_FILES, tmp_path / "a.nii.gz", warn=told.append)
    assert len(told) == 1


def test_what_is_unusual_about_the_scans_is_said_of_the_case(small_tree, small_plan, tmp_path):
    folder = shutil.copytree(case_folder(small_tree, "BraTS20_"), tmp_path / "BraTS20_Training_001")
    path = next(folder.glob("*_t2.nii*"))
    scan = nib.load(path)
    voxels = np.asarray(scan.dataobj)
    path.write_bytes(nib.Nifti1Image(np.where(voxels, voxels, -9), scan.affine).to_bytes())
    requests = plan_requests(folder, NO_FILES, tmp_path / "mask.nii.gz")
    (outcome,) = segment(requests, small_plan.preprocessing, bright, PLANES)
    assert outcome.fault is None
    assert list(outcome.warnings(is_one_of_many=False)) == [
        "BraTS20_Training_001: t2 has a background other than 0: 100% of its voxels count as brain"
    ]


def test_a_sagittal_case_gets_its_mask_in_its_own_axes(small_tree, small_plan, tmp_path):
    folder = case_folder(small_tree, "BraTS20_")
    sagittal = tmp_path / "BraTS20_Training_001"
    sagittal.mkdir()
    turn = nib.orientations.axcodes2ornt("PIL")
    for path in folder.iterdir():
        scan = nib.load(path)
        own = nib.orientations.ornt_transform(nib.io_orientation(scan.affine), turn)
        nib.save(scan.as_reoriented(own), sagittal / path.name.replace(folder.name, sagittal.name))
    for case, name in ((folder, "axial"), (sagittal, "sagittal")):
        requests = plan_requests(case, NO_FILES, tmp_path / f"{name}.nii.gz")
        list(segment(requests, small_plan.preprocessing, bright, PLANES))
    for suffix in (".nii.gz", "_probabilities.nii.gz"):
        axial, turned = (nib.load(tmp_path / f"{n}{suffix}") for n in ("axial", "sagittal"))
        assert nib.aff2axcodes(turned.affine) == ("P", "I", "L")
        own = nib.orientations.ornt_transform(nib.io_orientation(axial.affine), turn)
        np.testing.assert_array_equal(axial.as_reoriented(own).dataobj, turned.dataobj)
        assert np.asarray(turned.dataobj).any()


def test_of_many_that_are_not_read_a_few_are_told_and_the_others_counted(small_tree, tmp_path):
    archive = tmp_path / "data"
    folder = case_folder(small_tree, "BraTS20_")
    shutil.copytree(folder, archive / folder.name)
    for number in range(30):
        (archive / f"BraTS2021_{number:05d}").mkdir()
    said: list[str] = []
    plan_requests(archive, NO_FILES, tmp_path / "masks", warn=said.append)
    assert len(said) == 9
    assert said[-1] == "not read: 22 more; `prep scan` names them"
