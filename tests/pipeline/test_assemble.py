"""What the workers report, put together into a manifest."""

from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from cache_schema.manifest import contradictions, read_manifest, to_json
from pipeline.assemble import assemble_manifest
from pipeline.partition import Partition
from pipeline.shard_task import make_shard


@pytest.fixture(scope="module")
def outcomes(small_plan, small_cache):
    """What `make_shard` says of the finished cache."""
    digests = {shard.path: shard.sha256 for shard in read_manifest(small_cache).shards}
    settings = small_plan.preprocessing
    return [
        make_shard(shard, small_cache, settings, lambda _: None, recorded=digests[shard.path])
        for shard in small_plan.shards
    ]


@pytest.fixture(scope="module")
def manifest(small_cache):
    return read_manifest(small_cache)


def test_the_order_in_which_shards_finish_does_not_matter(small_plan, outcomes, manifest):
    assert all(outcome.reused for outcome in outcomes)
    for order in (outcomes, outcomes[::-1], outcomes[3:] + outcomes[:3]):
        assert to_json(assemble_manifest(small_plan, order)) == to_json(manifest)


@pytest.mark.parametrize("number", [0, 1])
def test_a_cache_with_one_synthetic_case_is_synthetic(number, small_plan, outcomes):
    marked = [
        replace(case, is_synthetic=place < number) for place, case in enumerate(small_plan.cases)
    ]
    manifest = assemble_manifest(replace(small_plan, cases=tuple(marked)), outcomes)
    assert manifest.synthetic is (number == 1)
    said = [case.case_id for case in manifest.cases if case.synthetic]
    assert said == [case.case_id for case in marked[:number]]
    assert list(contradictions(manifest)) == []


def test_records_of_a_cache_of_version_1_are_told_anew(small_plan, outcomes, manifest):
    """Workers say nothing of it, whether they keep a shard or write it."""
    assert {case.synthetic for outcome in outcomes for case in outcome.cases} == {None}
    assert None not in {case.synthetic for case in manifest.cases}


def test_the_manifest_does_not_contradict_itself(manifest):
    assert list(contradictions(manifest)) == []


def test_cohorts_are_counted(manifest):
    sizes = {
        name: (record.cases, record.patients, record.test_cases)
        for name, record in manifest.cohorts.items()
    }
    # A fifth of 5, 5 and 6 cases.
    assert sizes == {"brats2018": (5, 5, 1), "brats2019": (5, 5, 1), "brats2020": (6, 6, 1)}


def test_what_a_client_got_is_what_lies_in_its_source_files(manifest, small_plan):
    files = {case.case_id: case.files for case in small_plan.cases}
    for record in manifest.partition.clients:
        owned = [case for case in manifest.cases if case.client == record.client]
        labels = [np.asarray(nib.load(files[case.case_id]["seg"]).dataobj) for case in owned]
        counts = [sum(int(np.sum(label == value)) for label in labels) for value in (1, 2, 4)]
        assert list(record.label_voxels.model_dump().values()) == counts
        assert record.cases == len(owned)
        assert record.patients == len({case.patient_id for case in owned})
        assert record.slices == sum(case.num_slices for case in owned)
        assert record.grades == Counter(case.grade for case in owned)
        assert record.sites == Counter(case.site for case in owned)
    assert manifest.partition.sizes == tuple(r.patients for r in manifest.partition.clients)


def test_training_patients_with_several_cases_are_listed(manifest):
    training: dict[str, list[str]] = {}
    for case in manifest.cases:
        if case.split == "train":
            training.setdefault(case.patient_id, []).append(case.case_id)
    several = {name: tuple(cases) for name, cases in training.items() if len(cases) > 1}
    assert several
    assert len(several) < len(training)  # one person is in 2020 alone
    assert manifest.partition.duplicates == several


def test_quarantined_and_excluded_cases_are_listed_together_by_id(small_plan, outcomes):
    excluded, repaired = small_plan.cases[5], small_plan.cases[0]
    plan = replace(
        small_plan,
        excluded=((excluded, "no segmentation file"),),
        cases=(replace(repaired, repairs=("a taken as b",)), *small_plan.cases[1:]),
    )
    first = outcomes[0]
    lost = first.cases[1]
    entry = {"case_id": lost.case_id, "cohort": lost.cohort, "reason": "t1 is empty", "key": None}
    quarantined = read_quarantined(entry)
    outcomes = [replace(first, quarantined=(quarantined,)), *outcomes[1:]]
    manifest = assemble_manifest(plan, outcomes)
    named = [(entry.case_id, entry.reason) for entry in manifest.quarantined]
    assert named == sorted(
        [(excluded.case_id, "no segmentation file"), (lost.case_id, "t1 is empty")]
    )
    assert [(r.case_id, r.action) for r in manifest.repairs] == [(repaired.case_id, "a taken as b")]


def read_quarantined(entry: dict):
    from cache_schema.manifest import Quarantined

    return Quarantined(**entry)


def test_a_client_that_got_nothing_is_still_recorded(small_plan, outcomes):
    options = small_plan.options.model_copy(update={"clients": 3})
    patients = (*small_plan.partition.patients, ())
    plan = replace(
        small_plan, options=options, partition=Partition({"all": (0.5, 0.5, 0.0)}, patients, ())
    )
    manifest = assemble_manifest(plan, outcomes)
    assert manifest.partition.clients[2].cases == 0
    assert manifest.client_shards(2) == ()
    assert list(contradictions(manifest)) == []


def test_cohorts_without_cases_are_left_out(small_plan, outcomes):
    of_2018 = [
        replace(o, cases=tuple(c for c in o.cases if c.cohort == "brats2018")) for o in outcomes
    ]
    manifest = assemble_manifest(small_plan, of_2018)
    assert set(manifest.cohorts) == {"brats2018"}
    assert set(manifest.leakage.cohorts) == {"brats2018"}
