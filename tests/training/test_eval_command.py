"""`train eval` from the command line, on a tiny network."""

import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

import cli
from cache_schema.errors import InputError
from cache_schema.manifest import digest, read_manifest
from training.score_files import load_evaluation


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run that a test may write into."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def call(*arguments):
    """Call `train eval` in a terminal of 80 characters; the output is one line."""
    command = ["eval", *map(str, arguments)]
    result = CliRunner().invoke(cli.train, command, catch_exceptions=False)
    return result.exit_code, " ".join(result.output.split())


def called_wrongly(*arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    return str(error.value)


def read_json(run, name):
    return json.loads((run / name).read_text())


def test_one_run_is_scored_written_and_shown_beside_the_paper(run, small_cache):
    code, text = call(run, "--cache", small_cache, "--seed", 3)
    assert code == 0
    for part in ("HD95 mm", "sens. %", "spec. %", "Table 1", "Table 2", "Table 3", "published"):
        assert part in text
    assert "Wilcoxon" not in text
    tables = 1 + 3  # each says how many test patients were trained on
    assert text.count("protocol patient: 0 of") == tables
    document = read_json(run, "evaluation.json")
    assert document["convention"] == "brats2020"
    assert document["bootstrap"]["seed"] == 3
    assert (document["tta"], document["postprocess_et"]) == (False, 0)
    with (run / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [c.case_id for c in read_manifest(small_cache).cases if c.split == "test"]
    assert [row["case_id"] for row in rows] == expected
    assert not (run / "clients-evaluation.json").exists()


def test_on_synthetic_data_nothing_published_is_shown_and_every_table_says_so(run, synthetic_cache):
    identity = digest(read_manifest(synthetic_cache))
    provenance = read_json(run, "provenance.json") | {"manifest": identity}
    (run / "provenance.json").write_text(json.dumps(provenance))
    code, text = call(run, "--cache", synthetic_cache)
    assert code == 0
    assert "published" not in text
    assert "paper" not in text
    assert text.count("synthetic data:") == 1 + 3
    assert read_json(run, "evaluation.json")["synthetic"] is True
    assert load_evaluation(run, read_manifest(synthetic_cache)).is_synthetic


def test_options_of_the_network_and_of_the_scores_are_saved_and_said(run, small_cache):
    options = ("--tta", "--postprocess-et", 7, "--convention", "nan-drop", "--batch-size", 5)
    code, text = call(run, "--cache", small_cache, *options)
    assert code == 0
    assert "convention nan-drop, averaged over flips, fewer than 7 ET voxels made NEC" in text
    document = read_json(run, "evaluation.json")
    found = document["convention"], document["tta"], document["postprocess_et"]
    assert found == ("nan-drop", True, 7)


def test_brackets_in_a_path_are_shown_and_a_long_one_is_not_wrapped(run, small_cache, tmp_path):
    named = shutil.copytree(run, tmp_path / ("long" * 20) / "fed[a]")
    result = CliRunner().invoke(
        cli.train, ["eval", str(named), "--cache", str(small_cache)], catch_exceptions=False
    )
    line = f"written: {named / 'evaluation.csv'}, {named / 'evaluation.json'}"
    assert line in result.output.splitlines()


def test_clients_are_scored_apart_on_their_own_training_cases(run, small_cache):
    code, text = call(run, "--cache", small_cache, "--clients")
    assert code == 0
    assert "Clients' own TRAINING cases" in text
    assert "which the model was trained on" in text
    clients = read_json(run, "clients-evaluation.json")["clients"]
    assert list(clients) == ["0", "1"]
    cases = read_manifest(small_cache).cases
    assert clients["1"]["cases"] == sum(c.client == 1 for c in cases)
    with (run / "evaluation.csv").open(newline="") as file:
        tested = {row["case_id"] for row in csv.DictReader(file)}
    with (run / "clients-evaluation.csv").open(newline="") as file:
        assert not tested & {row["case_id"] for row in csv.DictReader(file)}


def test_the_gain_is_told_if_the_untrained_network_was_scored_in_the_same_way(run, small_cache):
    code, text = call(run, "--cache", small_cache, "--untrained")
    assert code == 0
    assert "ours, untrained" in text
    assert "untrained to trained" not in text
    assert "untrained to trained" in call(run, "--cache", small_cache)[1]
    other = call(run, "--cache", small_cache, "--convention", "lesionwise2023")
    assert "untrained to trained" not in other[1]


def test_several_runs_are_compared_on_the_same_cases(run, small_cache, tmp_path):
    second = shutil.copytree(run, tmp_path / "second")
    code, text = call(run, second, "--cache", small_cache)
    assert code == 0
    assert (second / "evaluation.json").exists()
    assert text.count("Table 1") == 1  # one table, a row for each run
    assert "Paired Wilcoxon signed-rank tests, two-sided" in text
    assert "no difference" in text


def test_all_runs_must_be_of_the_cache_before_any_is_scored(run, small_cache, tmp_path):
    second = shutil.copytree(run, tmp_path / "second")
    provenance = read_json(second, "provenance.json")
    text = json.dumps({**provenance, "manifest": "another"})
    (second / "provenance.json").write_text(text)
    assert "second was trained on another cache" in called_wrongly(
        run, second, "--cache", small_cache
    )
    assert not (run / "evaluation.json").exists()
    assert "named twice" in called_wrongly(run, run, "--cache", small_cache)


def test_an_unknown_convention_is_one_line_that_names_the_others(run, small_cache):
    message = called_wrongly(run, "--cache", small_cache, "--convention", "dice")
    assert message == "--convention dice: known are brats2020, nan-drop, lesionwise2023"


def test_a_run_must_be_named(small_cache):
    code, text = call("--cache", small_cache)
    assert code == 2
    assert "RUN" in text


def test_the_same_seed_gives_the_same_bytes(run, small_cache):
    call(run, "--cache", small_cache, "--seed", 1)
    first = (run / "evaluation.json").read_bytes()
    call(run, "--cache", small_cache, "--seed", 1)
    assert (run / "evaluation.json").read_bytes() == first
