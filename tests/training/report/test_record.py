"""What a report reads of a run, and what it does not believe."""

import json
import shutil

import pytest

from cache_schema.errors import InputError
from training.report.record import read_runs


def test_a_run_is_read_with_its_scores_log_and_size(scored_run, manifest, tiny_config):
    (record,) = read_runs([scored_run], manifest)
    assert (record.name, record.path, record.config) == ("scored", scored_run, tiny_config)
    assert [each.round for each in record.rounds] == [1, 2]
    assert record.is_finished
    assert record.seconds == record.rounds[0].seconds + record.rounds[1].seconds
    assert list(record.scored.summary) == ["brats2018", "brats2019", "brats2020", "all"]
    assert record.scored.evaluation.round == 2
    assert record.untrained.evaluation.round == 0
    assert set(record.clients["clients"]) == {"0", "1"}
    for client, each in record.clients["clients"].items():
        assert set(record.clients["counts"][client].values()) == {each["cases"]}  # brats2020
    assert record.parameters == 4 * 6 * 9 + 6 + 2 * 6 + 6 * 3 + 3


def test_runs_of_one_name_are_told_apart_by_their_paths(tiny_run, manifest, tmp_path):
    other = tmp_path / tiny_run.name
    other.symlink_to(tiny_run)
    assert [each.name for each in read_runs([tiny_run, other], manifest)] == [
        str(tiny_run),
        str(other),
    ]


def test_scores_on_another_cache_are_none(scored_run, manifest, tmp_path):
    run = shutil.copytree(scored_run, tmp_path / "run")
    for name in ("evaluation", "clients-evaluation"):
        document = json.loads((run / f"{name}.json").read_text())
        (run / f"{name}.json").write_text(json.dumps({**document, "manifest": "another"}))
    (record,) = read_runs([run], manifest)
    assert (record.scored, record.clients) == (None, None)


def test_untrained_scores_by_other_rules_are_not_put_beside(scored_run, manifest, tmp_path):
    run = shutil.copytree(scored_run, tmp_path / "run")
    document = json.loads((run / "untrained.json").read_text())
    (run / "untrained.json").write_text(json.dumps({**document, "tta": True}))
    (record,) = read_runs([run], manifest)
    assert record.scored is not None
    assert record.untrained is None


def test_a_run_that_is_not_at_its_end_is_not_finished(tiny_run, manifest, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join(line for line in lines if '"round": 2' not in line))
    (record,) = read_runs([run], manifest)
    assert not record.is_finished


def test_a_folder_that_is_no_run_is_named(manifest, tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        read_runs([tmp_path], manifest)
