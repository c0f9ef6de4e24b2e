import json
import shutil

import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import LeakageRecord, digest, read_manifest
from training.evaluate import evaluate
from training.provenance import (
    SiteLeakage,
    read_preprocessing,
    read_provenance,
    require_same_cache,
    write_remote_provenance,
)


def test_a_run_belongs_to_the_cache_that_it_was_trained_on(tiny_run, small_cache):
    require_same_cache(tiny_run, small_cache, read_manifest(small_cache))


def test_one_hospitals_cache_tells_of_its_own_training_alone(tiny_run, small_cache, tmp_path):
    manifest = read_manifest(small_cache)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for sites, kind in (
        ((digest(manifest),) * 2, LeakageRecord),
        ((digest(manifest), "another"), SiteLeakage),
    ):
        write_remote_provenance(run, name="a", sites=dict(enumerate(sites)))
        leakage = evaluate(run, small_cache, on_case=lambda *_: None).leakage
        assert type(leakage) is kind
        assert leakage.test_patients == manifest.leakage.test_patients


def test_scores_on_another_partition_are_refused(tiny_run, cache_copy):
    # The same cases under another seed: its test patients may have been trained on.
    path = cache_copy / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="trained on another cache"):
        evaluate(tiny_run, cache_copy, on_case=lambda *_: None)


def test_a_run_without_provenance_is_named(tmp_path, small_cache):
    with pytest.raises(InputError, match="is not a run"):
        require_same_cache(tmp_path, small_cache, read_manifest(small_cache))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{",
        b"[]",
        b"{}",
        b'{"manifest": 7}',
        b'{"manifest": NaN}',
        b'{"manifest": null, "sites": ["a"]}',
        b'{"manifest": null, "sites": {"0": 1}}',
        b'{"manifest": "a", "packages": "none"}',
        b'{"manifest": ' + b"[" * 99_999,
        b'{"manifest": ' + b"9" * 5_000 + b"}",
    ],
)
def test_damaged_provenance_is_one_line(content, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "provenance.json").write_bytes(content)
    with pytest.raises(InputError, match=r"provenance\.json .*; bring the file back") as caught:
        read_provenance(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe{", b"[]", b'{"normalize": 1}', b'{"sources": NaN}', b"[" * 99_999]
)
def test_damaged_preprocessing_is_one_line(content, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "preprocessing.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"preprocessing\.json cannot be read .*--resume"
    ) as caught:
        read_preprocessing(run)
    assert "\n" not in str(caught.value)


def test_preprocessing_that_was_changed_is_refused_and_that_of_an_earlier_release_read(
    tiny_run, tmp_path
):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    path, record = run / "preprocessing.json", read_preprocessing(tiny_run)
    document = json.loads(path.read_text())
    for changes in ({"bias_correct": True}, {"normalize": "percentile"}, {"digest": []}):
        path.write_text(json.dumps({**document, **changes}))
        with pytest.raises(InputError, match=r"preprocessing\.json cannot be read .*--resume"):
            read_preprocessing(run)
    del document["digest"]
    path.write_text(json.dumps(document))
    assert read_preprocessing(run) == record
