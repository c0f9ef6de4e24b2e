import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

import cli
import training.ablate
from cache_schema.errors import InputError
from cache_schema.leakage import SYNTHETIC_NOTE
from cache_schema.manifest import LeakageRecord, digest, read_manifest
from training.ablate import (
    ROWS,
    Ablation,
    ablate,
    ablation_statistics,
    ablation_table,
    statistics_table,
    write_ablation,
)
from training.config import TrainConfig, read_config
from training.models.registry import MODELS

LEAKAGE = LeakageRecord(protocol="paper", cohorts={}, test_patients=3, also_in_training=2)


class Watcher:
    """An observer that notes what was trained and scored."""

    def __init__(self):
        self.rows, self.rounds, self.cases = {}, 0, 0

    def row_started(self, name, *, is_finished):
        self.rows[name] = is_finished

    def case_done(self, case_id, num_cases):
        self.cases += 1

    def started(self, *, num_rounds, num_steps):
        pass

    def step(self, *, round_number, client, loss):
        pass

    def round_done(self, record):
        self.rounds += 1


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config.model_copy(update={"rounds": 1, "slices": "tumour"})


@pytest.fixture(scope="module")
def finished(small_cache, config, tmp_path_factory):
    """A finished ablation; never write to it."""
    run = tmp_path_factory.mktemp("ablation")
    watcher = Watcher()
    return run, ablate(config, small_cache, run, watcher), watcher


@pytest.fixture
def some_rows(monkeypatch):
    """Only the first and the last row, where a test trains anew."""
    monkeypatch.setattr(training.ablate, "ROWS", (ROWS[0], ROWS[-1]))


def made_up(test_set="brats2018"):
    """Row i scores i points more than row 0 in ET, 2i in TC and the same in WT."""
    means = {
        row.name: {test_set: {"ET": 0.5 + i / 100, "TC": 0.6 + i / 50, "WT": 0.75, "mean": 0.625}}
        for i, row in enumerate(ROWS)
    }
    return Ablation(TrainConfig(), means, LEAKAGE, "digest")


def printed(table):
    file = io.StringIO()
    Console(width=120, file=file).print(table)
    return [line.replace("│", " ").split() for line in file.getvalue().splitlines()]


def test_the_rows_are_those_of_table_4():
    assert [(row.position, row.position_levels) for row in ROWS] == [
        ("2d", "last"), ("2d", "all"), ("3d", "last"), ("3d", "all"), ("2d+3d", "all"),
    ]  # fmt: skip
    for row in ROWS:  # a mistyped score would not fit the printed average
        average = sum(row.published[region] for region in ("ET", "TC", "WT")) / 3
        assert average == pytest.approx(row.published["mean"], abs=0.006)


def test_every_row_is_a_run_with_its_own_position_embedding(finished, small_cache, config):
    run, ablation, watcher = finished
    assert watcher.rows == {row.name: False for row in ROWS}
    num_cases = sum(case.split == "test" for case in read_manifest(small_cache).cases)
    assert (watcher.rounds, watcher.cases) == (5, 5 * num_cases)
    assert read_config(run / "3d-all") == config.model_copy(
        update={"position": "3d", "position_levels": "all"}
    )
    assert ablation.manifest == digest(read_manifest(small_cache))
    assert ablation.test_set() == "brats2018"


def test_a_second_call_trains_nothing_and_gives_the_same(finished, small_cache, config):
    run, ablation, _ = finished
    watcher = Watcher()
    assert ablate(config, small_cache, run, watcher) == ablation
    assert watcher.rows == {row.name: True for row in ROWS}
    assert (watcher.rounds, watcher.cases) == (0, 0)


def test_a_row_without_scores_is_only_scored_and_one_without_weights_trained(
    some_rows, small_cache, config, tmp_path
):
    first = ablate(config, small_cache, tmp_path, Watcher())
    (tmp_path / "2d-last/evaluation.json").write_text('{"means": {"all"')
    (tmp_path / "2d+3d-all/evaluation.json").unlink()
    for name in ("model", "resume"):
        (tmp_path / f"2d+3d-all/{name}.safetensors").unlink()
    watcher = Watcher()
    assert ablate(config, small_cache, tmp_path, watcher) == first
    assert watcher.rows == {"2d-last": False, "2d+3d-all": False}
    assert watcher.rounds == 1


class Impatient(Watcher):
    """An observer that stops the program after a round."""

    def round_done(self, record):
        raise KeyboardInterrupt


def test_an_interrupted_row_goes_on_from_its_last_round(some_rows, small_cache, config, tmp_path):
    config = config.model_copy(update={"rounds": 2})
    with pytest.raises(KeyboardInterrupt):
        ablate(config, small_cache, tmp_path / "stopped", Impatient())
    watcher = Watcher()
    resumed = ablate(config, small_cache, tmp_path / "stopped", watcher)
    assert watcher.rounds == 1 + 2
    assert resumed == ablate(config, small_cache, tmp_path / "at once", Watcher())


def test_the_command_trains_each_row_once(small_cache, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "unetmm", MODELS["tiny"])
    small = (
        "--weights none --rounds 1 --local-epochs 1 --crop 32 --slices tumour --loader-workers 0"
    )
    places = ["--cache", str(small_cache), "--run", str(tmp_path)]
    command = ["ablate", *places, *small.split(), "--device", "cpu"]
    first, second = (CliRunner().invoke(cli.train, command) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert (first.stdout.count("round 1:"), second.stdout.count("round 1:")) == (5, 0)
    assert second.stdout.count("finished already") == 5
    assert "published" in second.stdout
    assert (tmp_path / "ablation.json").exists()


def test_a_run_with_other_settings_is_refused_before_anything_is_trained(
    finished, small_cache, config
):
    run, _, _ = finished
    watcher = Watcher()
    other = config.model_copy(update={"learning_rate": 2e-2})
    with pytest.raises(InputError, match=r"2d-last holds a run with other settings"):
        ablate(other, small_cache, run, watcher)
    assert watcher.rows == {}


def test_a_run_on_another_cache_is_refused(finished, cache_copy, config):
    manifest = cache_copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"alpha": 1.0', '"alpha": 2.0'))
    with pytest.raises(InputError, match="another cache"):
        ablate(config, cache_copy, finished[0], Watcher())


def test_statistics_are_of_percentage_points_over_the_rows():
    statistics = ablation_statistics(made_up())
    et, wt = statistics["ours"]["ET"], statistics["ours"]["WT"]
    assert et["standard_deviation"] == pytest.approx(2.5**0.5)  # of 0, 1, 2, 3, 4
    assert et["chi_squared"]["statistic"] == pytest.approx(10 / 4)
    assert statistics["ours"]["TC"]["chi_squared"]["statistic"] == pytest.approx(40 / 4)
    assert wt["chi_squared"] == {"statistic": 0.0, "p_value": 0.0}
    assert wt["kolmogorov_smirnov"] is None
    assert statistics["published"]["TC"]["standard_deviation"] == pytest.approx(0.0942, abs=1e-4)


def test_tables_show_ours_above_the_published_scores():
    rows = printed(ablation_table(made_up()))
    assert ["3d", "last", "ours", "52.00", "64.00", "75.00", "62.50"] in rows
    assert ["published", "76.77", "84.42", "83.79", "81.66"] in rows
    assert "2 of 3 test patients" in " ".join(word for row in rows for word in row)
    rows = printed(statistics_table(made_up()))
    assert ["ours", "WT", "0.00", "0.000", "0", "-", "-"] in rows
    assert ["published", "ET", "0.50", "0.245", "0.0069", "0.318", "0.59"] in rows


def test_nothing_published_stands_beside_scores_on_synthetic_data(tmp_path):
    ablation = replace(made_up(), is_synthetic=True)
    for table in (ablation_table(ablation), statistics_table(ablation)):
        words = " ".join(word for row in printed(table) for word in row)
        assert "published" not in words
        assert "77.76" not in words
        assert SYNTHETIC_NOTE in words
        assert "ours" in words
    assert list(ablation_statistics(ablation)) == ["ours"]
    text = write_ablation(tmp_path, ablation).read_text()
    assert "published" not in text
    assert "77.76" not in text
    assert json.loads(text)["synthetic"] is True


def test_what_the_manifest_says_of_the_cases_is_what_an_ablation_says(
    some_rows, synthetic_cache, config, tmp_path
):
    assert ablate(config, synthetic_cache, tmp_path, Watcher()).is_synthetic


def test_without_the_papers_test_set_all_cases_are_shown_and_named():
    ablation = made_up("all")
    assert ablation.test_set() == "all"
    words = [word for row in printed(ablation_table(ablation)) for word in row]
    assert "on all (published: brats2018)" in " ".join(words)


def test_the_document_holds_every_test_set_leak_and_statistics(finished, tmp_path, config):
    ablation = finished[1]
    document = json.loads(write_ablation(tmp_path, ablation).read_text())
    assert [row["name"] for row in document["rows"]] == [row.name for row in ROWS]
    assert document["rows"][0]["means"] == ablation.means["2d-last"]
    assert document["rows"][0]["published_percent"]["ET"] == 77.76
    assert document["statistics"] == ablation_statistics(ablation)
    assert document["leakage"]["protocol"] == "patient"
    assert document["settings"]["rounds"] == 1
    assert "position" not in document["settings"]
