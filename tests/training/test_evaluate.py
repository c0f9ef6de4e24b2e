import csv
import json

import numpy as np
import pytest
import torch

import training.evaluate
from cache_schema.errors import InputError
from cache_schema.manifest import LeakageRecord, Options, read_manifest, write_manifest
from pipeline.assemble import assemble_manifest
from pipeline.plan import make_plan
from pipeline.shard_task import make_shard
from training.config import read_config
from training.data import VolumeDataset
from training.evaluate import (
    CaseScore,
    Evaluation,
    evaluate,
    read_means,
    read_scores,
    trained_model,
    write_evaluation,
)
from training.models.initial import initial_model

LEAKAGE = LeakageRecord(protocol="paper", cohorts={}, test_patients=3, also_in_training=2)


def evaluation(round_number=4):
    scores = (
        CaseScore("a", "p", "brats2018", {"ET": 0.2, "TC": 0.4, "WT": 0.9}),
        CaseScore("b", "p", "brats2018", {"ET": 0.4, "TC": 0.8, "WT": 0.9}),
        CaseScore("c", "q", "brats2020", {"ET": 0.0, "TC": 0.0, "WT": 0.6}),
    )
    return Evaluation(scores, LEAKAGE, "brats2020", round_number, "digest")


def test_means_are_over_cases_by_cohort_and_over_all():
    means = evaluation().means()
    assert list(means) == ["brats2018", "brats2020", "all"]
    assert means["brats2018"] == pytest.approx(
        {"ET": 0.3, "TC": 0.6, "WT": 0.9, "mean": 0.6, "cases": 2}
    )
    assert means["all"] == pytest.approx(
        {"ET": 0.2, "TC": 0.4, "WT": 0.8, "mean": 1.4 / 3, "cases": 3}
    )


def test_scores_are_saved_with_leak_and_convention(tmp_path):
    table, summary = write_evaluation(tmp_path, evaluation())
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case_id"] for row in rows] == ["a", "b", "c"]
    assert rows[1]["dice_TC"] == "0.800000"
    document = json.loads(summary.read_text())
    assert document["leakage"]["also_in_training"] == 2
    assert document["convention"] == "brats2020"
    assert document["round"] == 4
    assert read_scores(tmp_path)["c"] == {"ET": 0.0, "TC": 0.0, "WT": 0.6}


def test_an_untrained_network_has_files_of_its_own(tmp_path):
    write_evaluation(tmp_path, evaluation())
    table, summary = write_evaluation(tmp_path, evaluation(round_number=0))
    assert (table.name, summary.name) == ("untrained.csv", "untrained.json")
    assert read_means(tmp_path, "untrained") == read_means(tmp_path, "evaluation")
    assert read_means(tmp_path, "other") is None


def test_every_test_case_is_scored_against_its_own_truth(small_cache, tiny_run, monkeypatch):
    truths = {
        v.case_id: v for v in map(VolumeDataset(small_cache, split="test").__getitem__, range(3))
    }

    def oracle(model, image, target, *, batch_size):
        match = [v for v in truths.values() if np.array_equal(v.image, image)]
        return match[0].label

    monkeypatch.setattr(training.evaluate, "predict_labels", oracle)
    told = []
    result = evaluate(tiny_run, small_cache, on_case=lambda name, total: told.append((name, total)))
    expected = [c.case_id for c in read_manifest(small_cache).cases if c.split == "test"]
    assert [score.case_id for score in result.scores] == expected
    assert all(score.dice == {"ET": 1.0, "TC": 1.0, "WT": 1.0} for score in result.scores)
    assert told == [(name, len(expected)) for name in expected]
    assert result.round == 2
    assert result.leakage == read_manifest(small_cache).leakage


def test_the_trained_and_the_untrained_network_are_not_the_same(small_cache, tiny_run):
    config = read_config(tiny_run)
    trained, round_number = trained_model(tiny_run, config)
    assert round_number == 2
    start = initial_model(config)
    name = "layers.0.weight"
    assert not torch.equal(trained.state_dict()[name], start.state_dict()[name])
    result = evaluate(tiny_run, small_cache, untrained=True, on_case=lambda *_: None)
    assert result.round == 0


def test_a_cache_without_test_cases_says_what_to_do(small_tree, tiny_run, tmp_path, small_options):
    options = Options(**{**small_options.model_dump(), "test_fraction": 0.0})
    plan = make_plan([small_tree], options)
    outcomes = [make_shard(s, tmp_path, plan.preprocessing, lambda _: None) for s in plan.shards]
    write_manifest(tmp_path, assemble_manifest(plan, outcomes))
    with pytest.raises(InputError, match="--test-fraction"):
        evaluate(tiny_run, tmp_path, on_case=lambda *_: None)
