"""A new partition of the same cases: slices are copied, never decoded, and never trusted blindly."""

from dataclasses import replace

import h5py
import pytest

import pipeline.shard_task
from cache_schema.errors import InputError
from cache_schema.manifest import Options, read_manifest
from pipeline.plan import make_plan
from pipeline.reuse import find_donors
from pipeline.shard_task import make_shard


@pytest.fixture
def other_plan(small_tree, small_options):
    """The same cases dealt to three clients, two cases a shard."""
    changed = {"clients": 3, "seed": 5, "shard_cases": 2}
    return make_plan([small_tree], Options(**{**small_options.model_dump(), **changed}))


@pytest.fixture
def prepared(monkeypatch):
    """Names of the cases that were prepared from their sources."""
    names = []
    honest = pipeline.shard_task.prepare_case

    def prepare(case, sources, settings, **options):
        names.append(case.case_id)
        return honest(case, sources, settings, **options)

    monkeypatch.setattr(pipeline.shard_task, "prepare_case", prepare)
    return names


def make(shard, cache, plan, donors):
    return make_shard(shard, cache, plan.preprocessing, lambda _: None, donors=donors)


def test_copied_shards_have_the_bytes_of_prepared_ones(small_cache, other_plan, prepared, tmp_path):
    donors = find_donors(small_cache, other_plan.preprocessing)
    copied = [make(shard, tmp_path / "copied", other_plan, donors) for shard in other_plan.shards]
    assert prepared == []
    anew = [make(shard, tmp_path / "anew", other_plan, {}) for shard in other_plan.shards]
    assert copied == anew
    for shard in other_plan.shards:
        first, second = ((tmp_path / name / shard.path).read_bytes() for name in ("copied", "anew"))
        assert first == second


def test_a_case_whose_source_changed_is_prepared_anew(small_cache, other_plan, prepared, tmp_path):
    shard = other_plan.shards[0]
    case = shard.cases[1]
    files = {**case.files, "t1": case.files["t2"]}
    changed = replace(shard, cases=(shard.cases[0], replace(case, files=files)))
    donors = find_donors(small_cache, other_plan.preprocessing)
    make(changed, tmp_path, other_plan, donors)
    assert prepared == [case.case_id]


def test_damage_is_not_copied(cache_copy, other_plan, prepared, tmp_path):
    donors = find_donors(cache_copy, other_plan.preprocessing)
    shard = other_plan.shards[0]
    victim = donors[shard.cases[0].case_id]
    with h5py.File(victim) as file:
        row = file["cases/first_row"][file["cases/case_id"].asstr()[:] == shard.cases[0].case_id]
        chunk = file["image"].id.get_chunk_info(int(row[0]) + 1)
    content = bytearray(victim.read_bytes())
    content[chunk.byte_offset + chunk.size - 1] ^= 1
    victim.write_bytes(content)
    outcome = make(shard, tmp_path, other_plan, donors)
    assert prepared == [shard.cases[0].case_id]
    assert outcome == make(shard, tmp_path / "anew", other_plan, {})


def changed(name, place, value):
    return lambda file: file[name].__setitem__(place, value)


DAMAGES = {
    "affine": changed("cases/affine", (slice(None), 0, 3), 7.0),
    "mean": changed("cases/mean", slice(None), 7.0),
    "findings": changed("cases/findings", slice(None), "odd"),
    "present": changed("cases/present", slice(None), False),
    "key": changed("cases/key", slice(None), "0" * 64),
    "case ids": changed("cases/case_id", slice(None), "A"),
    "rows": changed("cases/first_row", slice(None), -5),
    "stop": changed("cases/stop_row", slice(None), 10**12),
    "z": changed("z", slice(None), 3),
    "label counts": changed("label_voxels", slice(None), 1),
    "checksums": changed("checksum", slice(None), 1),
    "fingerprint": lambda file: file.attrs.__setitem__("fingerprint", "0" * 64),
    "no fingerprint": lambda file: file.attrs.__delitem__("fingerprint"),
    "modalities": lambda file: file.attrs.__setitem__("modalities", "t1"),
    "schema version": lambda file: file.attrs.__setitem__("schema_version", "one"),
    "a dataset in the place of the cases": lambda file: file.move("z", "cases/z"),
    "no images": lambda file: file.__delitem__("image"),
    "more rows": lambda file: file["z"].resize(10**9, axis=0),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_a_damaged_donor_cannot_give_is_prepared_anew(
    name, cache_copy, other_plan, prepared, tmp_path
):
    donors = find_donors(cache_copy, other_plan.preprocessing)
    shard = other_plan.shards[0]
    for path in {donors[case.case_id] for case in shard.cases}:
        with h5py.File(path, "r+") as file:
            DAMAGES[name](file)
    outcome = make(shard, tmp_path, other_plan, donors)
    assert prepared == [case.case_id for case in shard.cases]
    assert outcome == make(shard, tmp_path / "anew", other_plan, {})


def test_slices_of_another_plane_are_not_copied(other_plan, prepared, tmp_path):
    shard, settings = other_plan.shards[0], other_plan.preprocessing
    wider = replace(settings, plane=(25, 20))
    make_shard(shard, tmp_path / "wider", wider, lambda _: None)
    donor = tmp_path / "wider" / shard.path
    with h5py.File(donor, "r+") as file:
        file.attrs["fingerprint"] = settings.fingerprint
    prepared.clear()
    outcome = make(shard, tmp_path, other_plan, {case.case_id: donor for case in shard.cases})
    assert prepared == [case.case_id for case in shard.cases]
    assert outcome == make(shard, tmp_path / "anew", other_plan, {})


def test_names_that_a_donor_has_wrong_are_not_copied(cache_copy, other_plan, prepared, tmp_path):
    donors = find_donors(cache_copy, other_plan.preprocessing)
    shard = other_plan.shards[0]
    for path in {donors[case.case_id] for case in shard.cases}:
        with h5py.File(path, "r+") as file:
            for name in ("patient_id", "cohort", "grade", "site"):
                file["cases"][name][:] = "wrong"
    outcome = make(shard, tmp_path, other_plan, donors)
    assert prepared == []
    assert outcome == make(shard, tmp_path / "anew", other_plan, {})


def test_a_shard_that_is_gone_or_ruined_is_prepared_anew(
    cache_copy, other_plan, prepared, tmp_path
):
    donors = find_donors(cache_copy, other_plan.preprocessing)
    shard = other_plan.shards[0]
    first, second = (donors[case.case_id] for case in shard.cases)
    first.write_bytes(b"ruined")
    second.unlink(missing_ok=True)
    outcome = make(shard, tmp_path, other_plan, donors)
    assert prepared == [case.case_id for case in shard.cases]
    assert outcome == make(shard, tmp_path / "anew", other_plan, {})


def test_a_case_takes_the_name_that_it_has_now(small_cache, other_plan, prepared, tmp_path):
    shard = other_plan.shards[0]
    renamed = replace(shard.cases[0], patient_id="NOBODY_1", site="NOBODY")
    donors = find_donors(small_cache, other_plan.preprocessing)
    outcome = make(replace(shard, cases=(renamed,)), tmp_path, other_plan, donors)
    assert (outcome.cases[0].patient_id, outcome.cases[0].site) == ("NOBODY_1", "NOBODY")
    assert prepared == []


def test_a_case_that_the_other_cache_lacks_has_no_donor(small_cache, other_plan):
    donors = find_donors(small_cache, other_plan.preprocessing)
    assert donors.keys() == {case.case_id for case in read_manifest(small_cache).cases}


def test_a_cache_of_other_preprocessing_is_refused_by_name(small_cache, other_plan):
    settings = replace(other_plan.preprocessing, normalize="percentile")
    with pytest.raises(InputError, match=r"--reuse .*other preprocessing"):
        find_donors(small_cache, settings)
