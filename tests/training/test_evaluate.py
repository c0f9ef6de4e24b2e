import csv
import json
import math

import numpy as np
import pytest
import torch

import training.evaluate
from cache_schema.errors import InputError
from cache_schema.manifest import LeakageRecord, Options, read_manifest, write_manifest
from cache_schema.vocabulary import REGIONS
from pipeline.assemble import assemble_manifest
from pipeline.plan import make_plan
from pipeline.shard_task import make_shard
from training.config import read_config
from training.data import CaseVolume, VolumeDataset
from training.evaluate import (
    CaseScore,
    Evaluation,
    Scoring,
    evaluate,
    network_size,
    read_evaluation,
    read_scores,
    read_summary,
    require_runs,
    restore_volume,
    spacing_mm,
    summary_means,
    trained_model,
    untrained_means,
    write_evaluation,
)
from training.metrics import METRICS
from training.models.initial import initial_model

LEAKAGE = LeakageRecord(protocol="paper", cohorts={}, test_patients=3, also_in_training=2)
NAN = math.nan


def values(et, tc, wt, hd95_mm=(1.0, 2.0, 3.0)):
    dice = {"ET": et, "TC": tc, "WT": wt}
    return {
        "dice": dice,
        "hd95_mm": dict(zip(REGIONS, hd95_mm, strict=True)),
        "sensitivity": {region: value / 2 for region, value in dice.items()},
        "specificity": dict.fromkeys(REGIONS, 0.9990004),
    }


def evaluation(round_number=4, **changes):
    scores = (
        CaseScore("a", "p", "brats2018", values(0.2, 0.4, 0.9)),
        CaseScore("b", "p", "brats2018", values(0.4, 0.8, 0.9)),
        CaseScore("c", "q", "brats2020", values(0.0, 0.0, 0.6, hd95_mm=(373.1287, 8.0, 5.0))),
    )
    fields = {"convention": "brats2020", "round": round_number, "manifest": "digest"}
    return Evaluation(scores, LEAKAGE, **fields | changes)


def holes():
    """One case without ET, and one cohort without any."""
    scores = (
        CaseScore("a", "p", "brats2018", values(NAN, 0.5, 0.9, hd95_mm=(NAN, 4.0, 2.0))),
        CaseScore("b", "q", "brats2018", values(0.4, 0.7, 0.9)),
        CaseScore("c", "r", "brats2020", values(NAN, NAN, 0.6, hd95_mm=(NAN, NAN, 5.0))),
    )
    return Evaluation(scores, LEAKAGE, "nan-drop", 4, "digest")


def test_means_are_over_cases_by_cohort_and_over_all():
    means = evaluation().means()
    assert list(means) == ["brats2018", "brats2020", "all"]
    assert means["brats2018"] == pytest.approx(
        {"ET": 0.3, "TC": 0.6, "WT": 0.9, "mean": 0.6, "cases": 2}
    )
    assert means["all"] == pytest.approx(
        {"ET": 0.2, "TC": 0.4, "WT": 0.8, "mean": 1.4 / 3, "cases": 3}
    )


def test_means_leave_out_what_has_no_value():
    means = holes().means()
    assert means["brats2018"] == pytest.approx(
        {"ET": 0.4, "TC": 0.6, "WT": 0.9, "mean": 1.9 / 3, "cases": 2}
    )
    assert means["brats2020"] == pytest.approx(
        {"ET": NAN, "TC": NAN, "WT": 0.6, "mean": 0.6, "cases": 1}, nan_ok=True
    )


def test_the_summary_has_mean_median_interval_and_count_of_every_metric():
    summary = evaluation().summary(seed=0)
    assert list(summary) == ["brats2018", "brats2020", "all"]
    every = summary["all"]
    assert (every["cases"], list(every)) == (3, ["cases", *METRICS])
    assert list(every["dice"]) == [*REGIONS, "average"]
    assert every["hd95_mm"]["ET"]["mean"] == pytest.approx((1 + 1 + 373.1287) / 3)
    assert every["hd95_mm"]["ET"]["median"] == 1.0
    assert every["dice"]["average"]["mean"] == pytest.approx(evaluation().means()["all"]["mean"])
    assert every["dice"]["WT"]["low"] < 0.8 < every["dice"]["WT"]["high"]
    assert every["dice"]["WT"]["count"] == 3


def test_the_two_cases_of_one_patient_are_drawn_together():
    # In brats2018 there is one patient, so there is nothing to draw from.
    dice = evaluation().summary(seed=0)["brats2018"]["dice"]["TC"]
    assert (dice["low"], dice["high"]) == (pytest.approx(0.6), pytest.approx(0.6))


def test_the_summary_counts_the_cases_that_have_a_value():
    summary = holes().summary(seed=0)
    assert summary["brats2018"]["dice"]["ET"]["count"] == 1
    assert summary["brats2018"]["dice"]["TC"]["count"] == 2
    assert summary["brats2020"]["hd95_mm"]["ET"]["count"] == 0
    assert math.isnan(summary["brats2020"]["hd95_mm"]["ET"]["mean"])


def test_scores_are_saved_with_leak_convention_and_everything_they_depend_on(tmp_path):
    table, summary = write_evaluation(tmp_path, evaluation(tta=True, postprocess_et=200), seed=7)
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:7] == [
        *("case_id", "patient_id", "cohort"),
        *("dice_ET", "dice_TC", "dice_WT", "hd95_mm_ET"),
    ]
    assert rows[0][-2:] == ["specificity_TC", "specificity_WT"]
    assert [row[0] for row in rows[1:]] == ["a", "b", "c"]
    assert rows[2][4] == "0.800000"
    assert rows[3][6] == "373.128700"
    document = json.loads(summary.read_text())
    assert document["leakage"]["also_in_training"] == 2
    assert document["leakage"]["protocol"] == "paper"
    assert (document["convention"], document["round"]) == ("brats2020", 4)
    assert (document["tta"], document["postprocess_et"]) == (True, 200)
    assert (document["manifest"], document["bootstrap"]["seed"]) == ("digest", 7)
    assert document["summary"] == evaluation().summary(seed=7)


def test_saved_scores_are_read_as_they_were(tmp_path):
    write_evaluation(tmp_path, evaluation())
    found = read_scores(tmp_path)
    assert [(s.case_id, s.patient_id, s.cohort) for s in found] == [
        ("a", "p", "brats2018"),
        ("b", "p", "brats2018"),
        ("c", "q", "brats2020"),
    ]
    assert list(found[0].values) == list(METRICS)
    assert found[2].values["dice"] == {"ET": 0.0, "TC": 0.0, "WT": 0.6}
    assert found[2].values["hd95_mm"] == {"ET": 373.1287, "TC": 8.0, "WT": 5.0}
    assert read_summary(tmp_path, "evaluation") == evaluation().summary(seed=0)
    found = summary_means(read_summary(tmp_path, "evaluation"))
    assert found == evaluation().means()  # bit for bit


def test_what_has_no_value_is_empty_on_disk_and_nan_when_read(tmp_path):
    table, summary = write_evaluation(tmp_path, holes())
    with table.open(newline="") as file:
        assert next(csv.DictReader(file))["dice_ET"] == ""
    assert "NaN" not in summary.read_text()
    assert json.loads(summary.read_text())["summary"]["brats2020"]["dice"]["ET"]["mean"] is None
    found = read_scores(tmp_path)[0].values
    assert math.isnan(found["dice"]["ET"])
    assert found["dice"]["TC"] == 0.5
    assert math.isnan(read_summary(tmp_path, "evaluation")["brats2020"]["dice"]["ET"]["mean"])


def test_an_untrained_network_has_files_of_its_own(tmp_path):
    write_evaluation(tmp_path, evaluation())
    table, summary = write_evaluation(tmp_path, evaluation(round_number=0))
    assert (table.name, summary.name) == ("untrained.csv", "untrained.json")
    assert read_summary(tmp_path, "untrained") == read_summary(tmp_path, "evaluation")
    assert len(read_scores(tmp_path, "untrained")) == 3


def test_nothing_is_read_where_nothing_was_saved(tmp_path):
    assert read_scores(tmp_path) == ()
    assert read_summary(tmp_path, "evaluation") is None


@pytest.mark.parametrize("text", ["", '{"means": {}, "round": 2}', '{"summary": nu'])
def test_documents_of_earlier_releases_and_torn_ones_count_as_none(tmp_path, text):
    (tmp_path / "evaluation.json").write_text(text)
    assert read_evaluation(tmp_path) is None


def test_lines_of_earlier_releases_hold_dice_alone(tmp_path):
    (tmp_path / "evaluation.csv").write_text(
        "case_id,patient_id,cohort,dice_ET,dice_TC,dice_WT\na,p,brats2018,0.1,0.2,0.3\n"
    )
    (score,) = read_scores(tmp_path)
    assert score.values["dice"] == {"ET": 0.1, "TC": 0.2, "WT": 0.3}
    assert all(math.isnan(value) for value in score.values["hd95_mm"].values())


def test_the_untrained_network_is_compared_only_if_scored_in_the_same_way(tmp_path):
    assert untrained_means(tmp_path, evaluation()) is None
    write_evaluation(tmp_path, evaluation(round_number=0))
    assert untrained_means(tmp_path, evaluation()) == evaluation().means()
    for change in ({"tta": True}, {"postprocess_et": 5}, {"convention": "nan-drop"}):
        assert untrained_means(tmp_path, evaluation(**change)) is None


def volume(shape, z, plane):
    """A case with given kept slices, in planes that may be larger than its own."""
    image = np.zeros((len(z), 4, *plane), np.float16)
    label = np.zeros((len(z), *plane), np.uint8)
    affine = np.diag([-1.0, -2.0, 5.0, 1.0])
    return CaseVolume("a", "p", "brats2018", image, label, np.array(z), affine, shape)


def test_slices_go_back_to_their_places_and_padding_is_cut_off():
    case = volume((3, 5, 7), [1, 2, 5], (4, 6))
    label = np.zeros((3, 4, 6), np.uint8)
    label[0, 2, 4], label[2, 0, 1], label[1, 3, 5] = 1, 4, 2  # the last one lies in the padding
    whole = restore_volume(label, case)
    assert whole.shape == (7, 3, 5)
    assert np.argwhere(whole).tolist() == [[1, 2, 4], [5, 0, 1]]
    assert (whole[1, 2, 4], whole[5, 0, 1]) == (1, 4)


def test_spacing_follows_the_axes_of_a_restored_volume_whatever_the_directions():
    assert spacing_mm(np.diag([-1.0, -2.0, 5.0, 1.0])) == (5.0, 1.0, 2.0)
    turned = np.array([[0, 3.0, 0, 9], [4.0, 0, 0, 8], [0, 0, -5.0, 7], [0, 0, 0, 1]])
    assert spacing_mm(turned) == (5.0, 4.0, 3.0)


def test_scores_are_those_of_the_whole_volume(tiny_run, monkeypatch):
    # Two voxels of ET on neighbouring kept slices, z 1 and 5, of 5 mm each, and 2 mm aside.
    case = volume((3, 5, 7), [1, 5], (4, 6))
    case.label[0, 1, 1] = 4
    prediction = np.zeros_like(case.label)
    prediction[1, 1, 2] = 4
    monkeypatch.setattr(training.evaluate, "predict_labels", lambda *_, **__: prediction)
    config = read_config(tiny_run)
    score = training.evaluate.score_volume(initial_model(config), case, config, Scoring())
    assert score.values["hd95_mm"]["ET"] == math.hypot(4 * 5, 2)
    assert score.values["specificity"]["ET"] == 103 / 104  # of 3 x 5 x 7 voxels, not of two slices


def test_every_test_case_is_scored_against_its_own_truth(small_cache, tiny_run, monkeypatch):
    tests = VolumeDataset(small_cache, split="test")
    truths = [tests[index] for index in range(len(tests))]
    asked = []

    def oracle(model, image, target, **settings):
        asked.append(settings)
        return next(v.label for v in truths if np.array_equal(v.image, image))

    monkeypatch.setattr(training.evaluate, "predict_labels", oracle)
    told = []
    result = evaluate(
        tiny_run,
        small_cache,
        scoring=Scoring(tta=True, postprocess_et=9, batch_size=3),
        on_case=lambda name, total: told.append((name, total)),
    )
    expected = [c.case_id for c in read_manifest(small_cache).cases if c.split == "test"]
    assert [score.case_id for score in result.scores] == expected
    for score in result.scores:
        assert score.values["dice"] == {"ET": 1.0, "TC": 1.0, "WT": 1.0}
        assert score.values["hd95_mm"] == {"ET": 0.0, "TC": 0.0, "WT": 0.0}
    assert told == [(name, len(expected)) for name in expected]
    assert (result.round, result.tta, result.postprocess_et) == (2, True, 9)
    assert result.leakage == read_manifest(small_cache).leakage
    assert asked == [{"batch_size": 3, "tta": True, "postprocess_et": 9}] * len(expected)


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
    with pytest.raises(InputError, match="another cache"):
        require_runs([tiny_run], tmp_path)


def test_an_unknown_convention_is_answered_with_those_that_there_are(small_cache, tiny_run):
    with pytest.raises(InputError, match="brats2020, nan-drop, lesionwise2023"):
        evaluate(tiny_run, small_cache, scoring=Scoring("dice"), on_case=lambda *_: None)


def test_all_runs_are_checked_before_the_first_is_scored(small_cache, tiny_run, tmp_path):
    require_runs([tiny_run], small_cache)
    with pytest.raises(InputError, match="named twice"):
        require_runs([tiny_run, tiny_run], small_cache)
    with pytest.raises(InputError, match="train fed"):
        require_runs([tiny_run, tmp_path], small_cache)


def test_the_size_of_a_runs_network_is_counted_by_hand(tiny_run):
    # 4 to 6 planes of 3 x 3, BatchNorm, 6 to 3 planes of 1 x 1, on one slice of 224 x 224.
    parameters = (4 * 9 * 6 + 6) + 2 * 6 + (6 * 3 + 3)
    flops = 2 * 224 * 224 * (4 * 9 * 6 + 6 * 3)
    assert network_size(tiny_run) == (parameters, flops)
