"""The manifest: deterministic, complete, and every problem told at once with its place."""

import json
import os
import re

import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import (
    CaseRecord,
    Manifest,
    contradictions,
    count_leakage,
    digest,
    read_manifest,
    to_json,
    write_manifest,
)


@pytest.fixture(scope="module")
def manifest(small_cache) -> Manifest:
    return read_manifest(small_cache)


@pytest.fixture
def document(manifest) -> dict:
    """The manifest as plain JSON, to be spoilt."""
    return json.loads(to_json(manifest))


@pytest.fixture
def read(tmp_path):
    """Writes a document as a cache's manifest and reads it back."""

    def write_and_read(document: dict) -> Manifest:
        text = json.dumps(document)
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
        return read_manifest(tmp_path)

    return write_and_read


def record(case_id: str, patient: str, split: str, **changes) -> CaseRecord:
    fields = {
        "case_id": case_id,
        "patient_id": patient,
        "cohort": "brats2018",
        "grade": "HGG",
        "site": "CBICA",
        "split": split,
        "client": 0 if split == "train" else None,
        "shard": "clients/client-00/shard-000.h5",
        "key": "0" * 64,
        "num_slices": 5,
        "label_voxels": {"NEC": 0, "ED": 0, "ET": 0},
        "present": (True, True, True, True),
        "findings": (),
        "attributes": {},
    }
    return CaseRecord(**{**fields, **changes})


def test_what_is_written_is_read(manifest, tmp_path):
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_equal_manifests_have_equal_text_whatever_order_their_dictionaries_had(manifest):
    reverse = dict(reversed(manifest.cohorts.items()))
    assert list(reverse) != list(manifest.cohorts)
    assert to_json(manifest.model_copy(update={"cohorts": reverse})) == to_json(manifest)


def test_every_object_of_the_text_has_sorted_keys(manifest):
    def check(pairs: list) -> dict:
        names = [name for name, _ in pairs]
        assert names == sorted(names)
        return dict(pairs)

    json.loads(to_json(manifest), object_pairs_hook=check)


def test_the_text_holds_no_absolute_path_and_no_time(manifest, small_cache, small_tree):
    text = to_json(manifest)
    assert str(small_cache.parent) not in text
    assert str(small_tree.parent) not in text
    assert not re.search(r'"/|"[A-Z]:\\|20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d', text)


def test_the_digest_changes_with_any_field(manifest):
    changed = manifest.model_copy(update={"fingerprint": "0" * 64})
    assert digest(changed) != digest(manifest)
    assert digest(manifest.model_copy()) == digest(manifest)


def test_names_that_are_not_ascii_survive(manifest, tmp_path):
    case = manifest.cases[0].model_copy(update={"attributes": {"Ort": "Zürich"}})
    write_manifest(tmp_path, manifest.model_copy(update={"cases": (case, *manifest.cases[1:])}))
    assert read_manifest(tmp_path).cases[0].attributes == {"Ort": "Zürich"}


def test_two_wrong_fields_are_both_named_with_their_places(document, read):
    document["cases"][2]["grade"] = "GBM"
    document["options"]["clients"] = 0
    with pytest.raises(InputError, match="2 problems") as caught:
        read(document)
    assert "cases.2.grade" in str(caught.value)
    assert "options.clients" in str(caught.value)


def test_an_unknown_field_is_refused_by_name(document, read):
    document["cases"][0]["scanner"] = "3T"
    with pytest.raises(InputError, match=r"1 problem: cases\.0\.scanner"):
        read(document)


def test_a_missing_field_is_named(document, read):
    del document["leakage"]
    with pytest.raises(InputError, match=r"1 problem: leakage: Field required"):
        read(document)


def test_a_number_written_as_text_is_refused(document, read):
    document["shards"][0]["rows"] = str(document["shards"][0]["rows"])
    with pytest.raises(InputError, match=r"shards\.0\.rows"):
        read(document)


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_schema_version_is_refused_by_name(document, read, version):
    document["schema_version"] = version
    document["of a later release"] = True  # must not be reported instead of the version
    with pytest.raises(
        InputError, match=f"schema version {version}, this release reads version 1 and 2"
    ):
        read(document)


@pytest.mark.parametrize(
    ("cases", "cache", "problem"),
    [
        ([False, False], True, "synthetic: True recorded, 0 cases are"),
        ([False, True], False, "synthetic: False recorded, 1 cases are"),
        ([False, True], None, "synthetic: neither true nor false"),
        ([None, True], True, "does not say whether it is synthetic"),
    ],
)
def test_a_cache_is_synthetic_if_one_of_its_cases_is(cases, cache, problem, document, read):
    for place, case in enumerate(document["cases"]):
        case["synthetic"] = cases[place > 0] if place < 2 else False
    document["synthetic"] = any(cases)
    if None not in cases:
        assert read(document).synthetic is any(cases)
    document["synthetic"] = cache
    with pytest.raises(InputError, match=f"1 problem: .*{problem}"):
        read(document)


def test_version_1_cannot_say_what_is_synthetic(document, read):
    with pytest.raises(InputError, match="synthetic: version 1 has no such field"):
        read({**document, "schema_version": 1})


def test_a_manifest_without_version_is_refused(read):
    with pytest.raises(InputError, match="schema version None"):
        read({})


def test_a_list_instead_of_an_object_is_refused(read):
    with pytest.raises(InputError, match="schema version None"):
        read([1])


def test_a_missing_manifest_means_an_unfinished_cache(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json: it is not a finished cache"):
        read_manifest(tmp_path)


def test_a_manifest_that_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(InputError, match=r"manifest\.json cannot be read \(Is a directory\)"):
        read_manifest(tmp_path)


def test_text_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema_version": 1,', encoding="utf-8")
    with pytest.raises(InputError, match="is not JSON"):
        read_manifest(tmp_path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b'{"site": "Z\xfcrich"}')
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_manifest(tmp_path)


def test_a_sound_manifest_has_no_contradictions(manifest):
    assert list(contradictions(manifest)) == []


def test_a_manifest_that_contradicts_itself_is_not_written(manifest, tmp_path):
    shard = manifest.shards[0].model_copy(update={"rows": 1})
    wrong = manifest.model_copy(update={"shards": (shard, *manifest.shards[1:])})
    with pytest.raises(InputError, match="has 1 rows"):
        write_manifest(tmp_path, wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_with_other_rows_than_its_cases_is_a_contradiction(document, read):
    shard = document["shards"][0]
    shard["rows"] += 1
    with pytest.raises(InputError) as caught:
        read(document)
    assert f"{shard['path']} has {shard['rows']} rows, its cases have {shard['rows'] - 1}" in str(
        caught.value
    )


def test_a_shard_of_a_case_that_is_not_listed_is_a_contradiction(document, read):
    path = document["shards"].pop()["path"]
    with pytest.raises(InputError, match=f"{path} is not listed"):
        read(document)


def train_cases(document: dict) -> list[dict]:
    return [case for case in document["cases"] if case["split"] == "train"]


def test_a_patient_on_two_clients_is_a_contradiction(document, read):
    first, other = (
        next(case for case in train_cases(document) if case["client"] == client)
        for client in (0, 1)
    )
    other["patient_id"] = first["patient_id"]
    with pytest.raises(
        InputError, match=f"patient {first['patient_id']} is on more than one client"
    ):
        read(document)


def test_a_test_patient_in_training_is_a_contradiction_under_protocol_patient(document, read):
    tested = next(case for case in document["cases"] if case["split"] == "test")
    train_cases(document)[0]["patient_id"] = tested["patient_id"]
    with pytest.raises(InputError, match="1 test patients are in training under protocol patient"):
        read(document)


def test_leakage_that_differs_from_the_cases_is_a_contradiction(document, read):
    document["leakage"]["also_in_training"] = 1
    with pytest.raises(InputError, match="1 recorded, the cases show 0"):
        read(document)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda d: d["leakage"].update(test_patients=9), "leakage: test_patients 9 recorded"),
        (lambda d: d["leakage"].update(protocol="paper"), "leakage: protocol paper recorded"),
        (
            lambda d: d["leakage"]["cohorts"]["brats2019"].update(also_in_training=1),
            "leakage: cohorts ",
        ),
        (lambda d: d["leakage"]["cohorts"].popitem(), "leakage: cohorts "),
        (lambda d: client_of(d).update(patients=9), "partition.clients.1: patients 9 recorded"),
        (lambda d: client_of(d).update(cases=9), "partition.clients.1: cases 9 recorded"),
        (lambda d: client_of(d).update(slices=9), "partition.clients.1: slices 9 recorded"),
        (lambda d: client_of(d)["grades"].update(HGG=99), "partition.clients.1: grades "),
        (lambda d: client_of(d)["sites"].update(NOWHERE=1), "partition.clients.1: sites "),
        (lambda d: client_of(d)["label_voxels"].update(ET=9), "partition.clients.1: label_voxels "),
        (lambda d: client_of(d).update(client=0), "partition.clients.1: client 0 recorded"),
        (lambda d: d["partition"]["sizes"].append(1), "partition: sizes of 3 clients"),
        (lambda d: d["partition"]["q"]["all"].pop(), "partition: all of 1 clients"),
        (
            lambda d: d["partition"]["sizes"].__setitem__(0, 0),
            "partition: client 0 was dealt 0 patients",
        ),
        (
            lambda d: d["partition"]["sizes"].__setitem__(0, 99),
            "dealt patients are not here, 0 cases are in quarantine",
        ),
        (
            lambda d: d["partition"]["repairs"].append(
                {"patient_id": "A", "source": 0, "target": 2}
            ),
            "partition: A was moved from 0 to 2",
        ),
        (lambda d: d["partition"]["duplicates"].popitem(), "partition.duplicates: None of "),
        (
            lambda d: d["partition"]["duplicates"].update(nobody=["x", "y"]),
            "partition.duplicates: ('x', 'y') of nobody recorded, the cases show None",
        ),
    ],
)
def test_counts_that_the_cases_do_not_show_are_contradictions(spoil, problem, document, read):
    spoil(document)
    with pytest.raises(InputError, match=r"has \d problems?: ") as caught:
        read(document)
    assert problem in str(caught.value)


def client_of(document: dict) -> dict:
    return document["partition"]["clients"][1]


@pytest.mark.parametrize("field", ["quarantined", "superseded"])
def test_a_case_that_is_left_out_and_here_is_a_contradiction(field, document, read):
    case = document["cases"][2]
    own = {"patient_id": "A"} if field == "superseded" else {"reason": "broken", "key": None}
    document[field].append({"case_id": case["case_id"], "cohort": case["cohort"], **own})
    with pytest.raises(InputError, match=f"{field}: {case['case_id']} is among the cases"):
        read(document)


def test_a_dealt_patient_may_be_in_quarantine(document, read):
    document["partition"]["sizes"][0] += 1
    gone = {"case_id": "zzz", "cohort": "brats2018", "reason": "broken", "key": None}
    document["quarantined"].append(gone)
    assert read(document).quarantined[0].case_id == "zzz"


def test_a_case_listed_twice_is_a_contradiction(document, read):
    document["cases"].append(document["cases"][0])
    name = document["cases"][0]["case_id"]
    with pytest.raises(InputError, match=f"{name} is listed more than once"):
        read(document)


def test_a_test_case_with_a_client_is_a_contradiction(document, read):
    tested = next(case for case in document["cases"] if case["split"] == "test")
    tested["client"] = 0
    with pytest.raises(InputError, match=f"{tested['case_id']} is in split test with client 0"):
        read(document)


def test_a_case_of_a_client_that_does_not_exist_is_a_contradiction(document, read):
    case = train_cases(document)[0]
    case["client"] = 2
    with pytest.raises(InputError, match=f"{case['case_id']} belongs to client 2 of 2"):
        read(document)


def test_several_contradictions_are_reported_together(document, read):
    document["leakage"]["also_in_training"] = 1
    document["modalities"].reverse()
    document["partition"]["clients"].pop()
    with pytest.raises(InputError) as caught:
        read(document)
    assert "modalities:" in str(caught.value)
    assert "leakage:" in str(caught.value)
    assert "partition: 1 clients, options say 2" in str(caught.value)


def test_cohort_counts_that_differ_from_the_cases_are_a_contradiction(document, read):
    document["cohorts"]["brats2018"]["cases"] += 1
    with pytest.raises(InputError, match="brats2018"):
        read(document)


def test_a_shard_listed_twice_is_a_contradiction(document, read):
    document["shards"].append(document["shards"][0])
    with pytest.raises(InputError, match=document["shards"][0]["path"]):
        read(document)


def test_client_shards_are_those_of_one_client_in_order(manifest):
    paths = sorted({case.shard for case in manifest.cases if case.client == 0})
    assert len(paths) > 1
    assert manifest.client_shards(0) == tuple(paths)
    assert all(path.startswith("clients/client-00/") for path in paths)


@pytest.mark.parametrize("client", [-1, 2])
def test_a_client_that_does_not_exist_is_refused(manifest, client):
    with pytest.raises(InputError, match=f"client {client} is not among this cache's 2 clients"):
        manifest.client_shards(client)


def test_test_shards_are_those_of_one_cohort(manifest):
    assert manifest.test_shards("brats2019") == ("test/brats2019/shard-000.h5",)


def test_leakage_counts_people_once_in_all_and_once_in_each_cohort():
    cases = (
        record("Brats18_A_1_1", "A", "test"),
        record("BraTS19_A_1_1", "A", "test", cohort="brats2019"),
        record("BraTS20_Training_001", "A", "train", cohort="brats2020"),
        record("Brats18_B_1_1", "B", "test"),
        record("Brats18_C_1_1", "C", "train"),
    )
    leakage = count_leakage(cases, "paper")
    assert (leakage.test_patients, leakage.also_in_training) == (2, 1)  # A, B; A
    numbers = {
        cohort: (found.test_patients, found.also_in_training)
        for cohort, found in leakage.cohorts.items()
    }
    assert numbers == {"brats2018": (2, 1), "brats2019": (1, 1)}


HOSTILE = ("../../../escaped", "/tmp/escaped", "a/../../b", "a\\b", "a\0b", "..", "a" * 5_000_000)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:8])
@pytest.mark.parametrize("field", ["case_id", "patient_id", "site", "shard"])
def test_a_name_that_leads_out_of_a_folder_is_refused_in_a_short_line(field, name, document, read):
    document["cases"][0][field] = name
    with pytest.raises(InputError, match=r"manifest\.json has") as caught:
        read(document)
    assert len(str(caught.value)) < 3000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name[:8])
def test_a_shard_that_does_not_lie_where_shards_lie_is_refused(name, document, read):
    old = document["shards"][0]["path"]
    document["shards"][0]["path"] = name
    for case in document["cases"]:
        case["shard"] = name if case["shard"] == old else case["shard"]
    with pytest.raises(InputError, match="not where shards lie inside the cache: "):
        read(document)


@pytest.mark.parametrize("part", ["quarantined", "superseded", "repairs"])
def test_names_of_cases_that_are_not_stored_are_looked_at_too(part, document, read):
    entries = {
        "quarantined": {"case_id": "../x", "cohort": "brats2018", "reason": "", "key": None},
        "superseded": {"case_id": "../x", "cohort": "brats2018", "patient_id": "P"},
        "repairs": {"case_id": "../x", "action": ""},
    }
    document[part] = [entries[part]]
    with pytest.raises(InputError, match=rf"{part}\.0\.case_id: .*is no name"):
        read(document)


def test_a_manifest_with_a_million_problems_names_the_first(document, read):
    document["repairs"] = [{"action": 1}] * 100_000
    with pytest.raises(
        InputError, match=r"has 200000 problems: repairs\.0\.case_id.*\.\.\."
    ) as caught:
        read(document)
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "1" * 5000, '{"schema_version": ' + "9" * 5000 + "}"]
)
def test_json_beyond_all_measure_is_refused(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is not JSON"):
        read_manifest(tmp_path)


def test_a_version_of_a_megabyte_is_told_in_a_short_line(document, read):
    document["schema_version"] = "9" * 10**6
    with pytest.raises(InputError, match="has schema version 999") as caught:
        read(document)
    assert len(str(caught.value)) < 1000


def test_a_pipe_or_a_file_of_50_gb_in_place_of_the_manifest_is_refused(tmp_path):
    for name in ("pipe", "large"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "manifest.json")
    with pytest.raises(InputError, match=r"cannot be read \(it is a pipe, not a file\)"):
        read_manifest(tmp_path / "pipe")
    with (tmp_path / "large" / "manifest.json").open("wb") as file:
        file.truncate(50 * 10**9)
    with pytest.raises(InputError, match="larger than"):
        read_manifest(tmp_path / "large")
