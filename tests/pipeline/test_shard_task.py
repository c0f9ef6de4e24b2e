"""One shard: written once, kept while nothing changed, and redone when something did."""

import shutil
from dataclasses import replace

import h5py
import hdf5plugin  # noqa: F401  # registers LZ4 with plain h5py
import nibabel as nib
import numpy as np
import pytest

from cache_schema.manifest import to_json
from pipeline.assemble import assemble_manifest
from pipeline.plan import make_plan
from pipeline.shard_task import make_shard

MODALITIES = ("t1", "t1ce", "t2", "flair")


@pytest.fixture
def shard(small_plan):
    """The first shard of the plan: three cases."""
    assert len(small_plan.shards[0].cases) == 3
    return small_plan.shards[0]


@pytest.fixture
def make(small_plan, tmp_path):
    """Makes a shard in a cache of its own and keeps what it was told."""

    def made(shard, settings=small_plan.preprocessing, cache=tmp_path / "cache"):
        recorded = made.digests.get(shard.path)
        outcome = make_shard(
            shard, cache, settings, made.told.append, recorded=recorded, faults=made.faults
        )
        made.faults |= {entry.case_id: entry for entry in outcome.quarantined}
        if outcome.shard is not None:
            made.digests[shard.path] = outcome.shard.sha256
        return outcome

    made.told, made.digests, made.faults = [], {}, {}
    return made


def truncated(case, role: str, folder):
    """The same case with one file cut in half."""
    content = case.files[role].read_bytes()
    path = folder / case.files[role].name
    path.write_bytes(content[: len(content) // 2])
    return replace(case, files={**case.files, role: path})


def test_plain_h5py_finds_the_zscores_of_plain_nibabel(shard, make, tmp_path):
    make(shard)
    with h5py.File(tmp_path / "cache" / shard.path) as file:
        for number, case in enumerate(shard.cases):
            rows = slice(file["cases/first_row"][number], file["cases/stop_row"][number])
            planes = file["z"][rows]
            for channel, name in enumerate(MODALITIES):
                image = np.asarray(nib.load(case.files[name]).dataobj, np.float64)
                inside = image[image != 0]
                expected = np.where(image != 0, (image - inside.mean()) / inside.std(), 0)
                stored = file["image"][rows, channel].transpose(1, 2, 0)
                np.testing.assert_array_equal(stored, expected[:, :, planes].astype(np.float16))
                assert not np.delete(image, planes, axis=2).any()
            seg = np.asarray(nib.load(case.files["seg"]).dataobj)
            np.testing.assert_array_equal(file["label"][rows].transpose(1, 2, 0), seg[:, :, planes])
            assert [np.sum(seg == value) for value in (1, 2, 4)] == (
                file["label_voxels"][rows].sum(axis=0).tolist()
            )


def test_the_outcome_describes_the_file(shard, make, tmp_path):
    outcome = make(shard)
    path = tmp_path / "cache" / shard.path
    assert not outcome.reused
    assert outcome.quarantined == ()
    assert (outcome.shard.path, outcome.shard.bytes) == (shard.path, path.stat().st_size)
    assert outcome.shard.rows == sum(case.num_slices for case in outcome.cases)
    assert [case.case_id for case in outcome.cases] == [case.case_id for case in shard.cases]
    assert {(case.split, case.client) for case in outcome.cases} == {("train", shard.client)}
    assert make.told == [case.case_id for case in shard.cases]


def test_a_second_time_keeps_the_file_and_tells_of_every_case_again(shard, make, tmp_path):
    first = make(shard)
    written = (tmp_path / "cache" / shard.path).stat().st_ino
    second = make(shard)
    assert second == replace(first, reused=True)
    assert (tmp_path / "cache" / shard.path).stat().st_ino == written
    assert make.told == [case.case_id for case in shard.cases] * 2


def test_moving_source_and_cache_redoes_nothing(small_options, small_tree, tmp_path):
    first = make_plan([small_tree], small_options)
    made = make_shard(first.shards[0], tmp_path / "a", first.preprocessing, lambda _: None)
    shutil.copytree(small_tree, tmp_path / "moved")
    (tmp_path / "a").rename(tmp_path / "b")
    second = make_plan([tmp_path / "moved"], small_options)
    outcome = make_shard(
        second.shards[0],
        tmp_path / "b",
        second.preprocessing,
        lambda _: None,
        recorded=made.shard.sha256,
    )
    assert outcome.reused


def test_a_shard_that_nobody_vouches_for_is_redone(shard, make):
    first = make(shard)
    make.digests.clear()
    assert make(shard) == first


def test_changed_bytes_of_one_file_redo_the_shard(shard, make, tmp_path):
    before = make(shard)
    case = shard.cases[1]
    image = nib.load(case.files["t2"])
    voxels = np.asarray(image.dataobj).copy()
    voxels[np.unravel_index(np.argmax(voxels), voxels.shape)] += 1
    changed = tmp_path / "t2.nii"
    changed.write_bytes(nib.Nifti1Image(voxels, image.affine).to_bytes())
    cases = (
        shard.cases[0],
        replace(case, files={**case.files, "t2": changed}),
        shard.cases[2],
    )
    after = make(replace(shard, cases=cases))
    assert not after.reused
    keys = [(a.key != b.key) for a, b in zip(before.cases, after.cases, strict=True)]
    assert keys == [False, True, False]


@pytest.mark.parametrize(
    "change", [{"patient_id": "NOBODY"}, {"grade": "unknown"}, {"site": "elsewhere"}]
)
def test_another_name_for_a_case_redoes_the_shard(shard, make, change):
    make(shard)
    other = replace(shard, cases=(replace(shard.cases[0], **change), *shard.cases[1:]))
    outcome = make(other)
    assert not outcome.reused
    assert vars(outcome.cases[0]).items() >= change.items()


def test_other_cases_another_owner_or_other_preprocessing_redo_the_shard(shard, make, small_plan):
    make(shard)
    assert not make(replace(shard, cases=shard.cases[:2])).reused
    assert not make(replace(shard, client=1)).reused
    assert not make(shard, replace(small_plan.preprocessing, normalize="percentile")).reused
    assert not make(shard, replace(small_plan.preprocessing, plane=(26, 20))).reused
    assert not make(shard).reused
    assert make(shard).reused


def test_a_shard_that_cannot_be_opened_is_redone(shard, make, tmp_path):
    first = make(shard)
    path = tmp_path / "cache" / shard.path
    path.write_bytes(path.read_bytes()[:5000])
    assert make(shard) == first


def test_a_shard_with_a_damaged_slice_is_redone(shard, make, tmp_path):
    first = make(shard)
    path = tmp_path / "cache" / shard.path
    with h5py.File(path) as file:
        chunk = file["image"].id.get_chunk_info(3)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 255
    path.write_bytes(content)
    assert make(shard).shard == first.shard


def test_a_damaged_case_is_quarantined_and_the_rest_go_on(shard, make, tmp_path):
    bad = truncated(shard.cases[1], "flair", tmp_path)
    outcome = make(replace(shard, cases=(shard.cases[0], bad, shard.cases[2])))
    (entry,) = outcome.quarantined
    assert (entry.case_id, entry.cohort) == (bad.case_id, bad.cohort)
    assert entry.reason.startswith("flair is not a readable NIfTI file")
    assert [case.case_id for case in outcome.cases] == [
        shard.cases[0].case_id,
        shard.cases[2].case_id,
    ]
    assert outcome.shard.rows == sum(case.num_slices for case in outcome.cases)
    assert make.told == [case.case_id for case in shard.cases]


def test_a_shard_of_damaged_cases_alone_does_not_exist(shard, make, tmp_path):
    outcome = make(replace(shard, cases=(truncated(shard.cases[0], "t1", tmp_path),)))
    assert outcome.shard is None
    assert outcome.cases == ()
    assert len(outcome.quarantined) == 1
    assert list((tmp_path / "cache").rglob("*.h5*")) == []


def test_a_shard_whose_cases_are_all_damaged_now_is_removed(shard, make, tmp_path):
    make(shard)
    bad = tuple(truncated(case, "t1", tmp_path) for case in shard.cases)
    assert make(replace(shard, cases=bad)).shard is None
    assert not (tmp_path / "cache" / shard.path).exists()


def test_an_empty_file_quarantines_its_case_alone(shard, make, tmp_path):
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    case = shard.cases[0]
    bad = replace(case, files={**case.files, "t1": tmp_path / "empty.nii.gz"})
    outcome = make(replace(shard, cases=(bad, *shard.cases[1:])))
    assert len(outcome.cases) == 2


def test_a_shard_with_a_quarantined_case_is_kept_too(shard, make, tmp_path):
    plan = replace(shard, cases=(truncated(shard.cases[0], "t1", tmp_path), *shard.cases[1:]))
    first = make(plan)
    assert make(plan) == replace(first, reused=True)
    assert len(first.quarantined) == 1


def test_a_quarantined_case_whose_file_was_mended_is_taken_in(shard, make, tmp_path):
    bad = truncated(shard.cases[0], "t1", tmp_path)
    make(replace(shard, cases=(bad, *shard.cases[1:])))
    bad.files["t1"].write_bytes(shard.cases[0].files["t1"].read_bytes())
    outcome = make(replace(shard, cases=(bad, *shard.cases[1:])))
    assert not outcome.reused
    assert outcome.quarantined == ()
    assert len(outcome.cases) == 3


def test_folder_findings_and_attributes_reach_the_records(shard, make):
    described = replace(shard.cases[0], findings=("notes.txt ignored",), attributes={"Age": "60.4"})
    outcome = make(replace(shard, cases=(described,)))
    assert outcome.cases[0].findings[0] == "notes.txt ignored"
    assert outcome.cases[0].attributes == {"Age": "60.4"}


def test_findings_of_the_voxels_survive_reuse(small_plan, make):
    shard = small_plan.shards[0]
    first, second = make(shard), make(shard)
    assert any("no ET" in case.findings for case in first.cases)
    assert [case.findings for case in first.cases] == [case.findings for case in second.cases]


def test_a_repair_of_the_voxels_is_in_the_manifest_whether_a_shard_is_kept_or_written(
    small_plan, shard, make, tmp_path
):
    case = shard.cases[0]
    seg = nib.load(case.files["seg"])
    affine = seg.affine.copy()
    affine[:3, 3] += 5
    path = tmp_path / case.files["seg"].name
    nib.save(nib.Nifti1Image(np.asarray(seg.dataobj), affine), path)
    moved = replace(case, files={**case.files, "seg": path}, repairs=("W39.nii taken as seg",))
    plan = replace(
        small_plan,
        cases=tuple(moved if c.case_id == case.case_id else c for c in small_plan.cases),
    )
    outcomes = [make(replace(shard, cases=(moved, *shard.cases[1:]))) for _ in range(2)]
    assert [outcome.reused for outcome in outcomes] == [False, True]
    first, again = (assemble_manifest(plan, [outcome]) for outcome in outcomes)
    named, inside = (repair.action for repair in first.repairs if repair.case_id == case.case_id)
    assert named == "W39.nii taken as seg"
    assert inside.startswith("origin (")
    assert inside.endswith("that of the four modalities")
    assert to_json(first) == to_json(again)
