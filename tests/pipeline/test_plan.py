"""Who goes where, decided before a voxel is read."""

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cache_schema.errors import InputError
from pipeline.plan import make_plan

SUFFIXES = ("t1", "t1ce", "t2", "flair", "seg")


@pytest.fixture
def tree(tmp_path) -> Path:
    """Eleven cases of 2020 without a mapping, whose files are no images."""
    for number in range(1, 12):
        touch(tmp_path / f"BraTS20_Training_{number:03d}")
    return tmp_path


def touch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in SUFFIXES:
        (folder / f"{folder.name}_{suffix}.nii.gz").write_bytes(b"no image" * 50)


@pytest.fixture
def plan(small_options, tree):
    def planned(**changes):
        return make_plan([tree], small_options.model_copy(update={"geometry": "brats", **changes}))

    return planned


def test_shards_hold_at_most_so_many_cases_and_only_the_last_holds_fewer(plan):
    shards = plan(clients=1, test_fraction=0.0, shard_cases=4).shards
    assert [(shard.path, len(shard.cases)) for shard in shards] == [
        ("clients/client-00/shard-000.h5", 4),
        ("clients/client-00/shard-001.h5", 4),
        ("clients/client-00/shard-002.h5", 3),
    ]


def test_cases_of_a_shard_are_in_order(plan):
    (shard,) = plan(clients=1, test_fraction=0.0, shard_cases=16).shards
    names = [case.case_id for case in shard.cases]
    assert names == [f"BraTS20_Training_{number:03d}" for number in range(1, 12)]


def test_every_case_is_in_one_shard_of_its_owner(small_plan, small_tree):
    cases = [case for shard in small_plan.shards for case in shard.cases]
    assert Counter(case.case_id for case in cases) == Counter(
        folder.parent.name for folder in small_tree.rglob("*_seg.nii.gz")
    )
    for shard in small_plan.shards:
        people = {case.patient_id for case in shard.cases}
        if shard.client is None:
            assert shard.path.startswith(f"test/{shard.cases[0].cohort}/")
            assert len({case.cohort for case in shard.cases}) == 1
        else:
            assert shard.path.startswith(f"clients/client-{shard.client:02d}/")
            assert people <= set(small_plan.partition.patients[shard.client])


def test_no_test_patient_is_on_a_client(small_plan):
    tested = {case.patient_id for s in small_plan.shards if s.client is None for case in s.cases}
    dealt = {patient for client in small_plan.partition.patients for patient in client}
    assert tested
    assert not tested & dealt


def test_the_same_folders_and_options_give_the_same_plan(small_plan, small_tree, small_options):
    again = make_plan(sorted(small_tree.iterdir(), reverse=True), small_options)
    assert again.shards == small_plan.shards
    other = make_plan([small_tree], small_options.model_copy(update={"seed": 1}))
    assert other.shards != small_plan.shards


def test_absent_modalities_are_refused_by_name(plan, tree):
    (tree / "BraTS20_Training_004" / "BraTS20_Training_004_t1ce.nii.gz").unlink()
    (tree / "BraTS20_Training_007" / "BraTS20_Training_007_t1.nii.gz").unlink()
    (tree / "BraTS20_Training_007" / "BraTS20_Training_007_t2.nii.gz").unlink()
    with pytest.raises(InputError) as caught:
        plan()
    assert "2 of 11 cases lack modalities" in str(caught.value)
    assert "BraTS20_Training_004 (t1ce), BraTS20_Training_007 (t1, t2)" in str(caught.value)
    assert "--missing zero" in str(caught.value)
    assert len(plan(missing="zero").cases) == 11


def test_a_long_list_of_absent_modalities_is_cut(plan, tree):
    for number in range(1, 11):
        name = f"BraTS20_Training_{number:03d}"
        (tree / name / f"{name}_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"BraTS20_Training_008 \(t2\) and 2 more;"):
        plan()


def test_a_case_without_segmentation_is_excluded_and_not_dealt(plan, tree):
    (tree / "BraTS20_Training_004" / "BraTS20_Training_004_seg.nii.gz").unlink()
    made = plan()
    ((case, reason),) = made.excluded
    assert (case.case_id, reason) == ("BraTS20_Training_004", "no segmentation file")
    dealt = [case.case_id for shard in made.shards for case in shard.cases]
    assert len(dealt) == 10
    assert "BraTS20_Training_004" not in dealt


def test_brats_has_the_plane_of_brats(plan):
    assert plan().preprocessing.plane == (240, 240)


def test_any_geometry_has_the_largest_sides_of_all_cases(small_options, tree):
    for number, shape in ((1, (9, 20, 3)), (2, (17, 6, 4))):
        name = f"BraTS20_Training_{number:03d}"
        image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4))
        (tree / name / f"{name}_seg.nii.gz").write_bytes(image.to_bytes())
    # The nine other segmentations are unreadable and do not count.
    assert make_plan([tree], small_options).preprocessing.plane == (17, 20)


def test_sides_are_those_of_axial_planes_whatever_axes_are_stored(small_options, tree):
    name = "BraTS20_Training_001"
    sagittal = np.array(
        [[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    )  # back, up, right
    image = nib.Nifti1Image(np.zeros((20, 7, 9), np.uint8), sagittal)
    (tree / name / f"{name}_seg.nii.gz").write_bytes(image.to_bytes())
    assert make_plan([tree], small_options).preprocessing.plane == (9, 20)


def test_no_readable_segmentation_at_all_is_refused(small_options, tree):
    with pytest.raises(InputError, match="no segmentation is a readable NIfTI file"):
        make_plan([tree], small_options)


def test_one_empty_segmentation_does_not_end_the_run(small_tree, small_options, tree):
    (tree / "BraTS20_Training_011" / "BraTS20_Training_011_seg.nii.gz").write_bytes(b"")
    archive = small_tree / "MICCAI_BraTS_2018_Data_Training"
    assert make_plan([archive, tree], small_options).preprocessing.plane == (24, 20)


def test_more_clients_than_patients_is_refused(plan):
    with pytest.raises(InputError, match="--clients 12 is more than the 11 training patients"):
        plan(clients=12, test_fraction=0.0)


def test_latest_trains_on_one_year_of_each_patient_and_names_what_it_leaves_out(
    small_tree, small_options
):
    kept, latest = (
        make_plan([small_tree], small_options.model_copy(update={"duplicates": choice}))
        for choice in ("keep", "latest")
    )

    def cases(made, is_test):
        return [c for s in made.shards if (s.client is None) == is_test for c in s.cases]

    assert cases(latest, is_test=True) == cases(kept, is_test=True)
    # Everybody has a case in 2020, so nothing older is trained on.
    trained = {case.case_id for case in cases(latest, is_test=False)}
    before = {case.case_id for case in cases(kept, is_test=False)}
    assert trained == {name for name in before if name.startswith("BraTS20")}
    assert {case.case_id for case in latest.superseded} == before - trained
    assert len(before) > len(trained) > 0
    assert kept.superseded == ()


@pytest.mark.parametrize("missing", ["refuse", "zero", "quarantine"])
def test_where_no_case_can_be_used_the_first_reason_is_named(missing, plan, tree):
    for path in tree.rglob("*_seg.nii.gz"):
        path.unlink()
    with pytest.raises(InputError) as caught:
        plan(missing=missing)
    assert str(caught.value).startswith(
        "none of the 11 cases can be used, first BraTS20_Training_001: no segmentation file"
    )


def test_a_case_without_any_modality_is_no_case_of_zeros(plan, tree):
    for path in (tree / "BraTS20_Training_004").glob("*_[tf]*.nii.gz"):
        path.unlink()
    (entry,) = plan(missing="zero").excluded
    assert (entry[0].case_id, entry[1]) == ("BraTS20_Training_004", "lacks t1, t1ce, t2, flair")
