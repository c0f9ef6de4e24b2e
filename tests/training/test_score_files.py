import csv
import json
import math

import pytest

from training.metrics import METRICS
from training.score_files import (
    read_evaluation,
    read_scores,
    read_summary,
    untrained_means,
    write_evaluation,
)
from training.scores import summary_means


def test_scores_are_saved_with_leak_convention_and_everything_they_depend_on(tmp_path, evaluation):
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


def test_saved_scores_are_read_as_they_were(tmp_path, evaluation):
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


def test_what_has_no_value_is_empty_on_disk_and_nan_when_read(tmp_path, holes):
    table, summary = write_evaluation(tmp_path, holes)
    with table.open(newline="") as file:
        assert next(csv.DictReader(file))["dice_ET"] == ""
    assert "NaN" not in summary.read_text()
    assert json.loads(summary.read_text())["summary"]["brats2020"]["dice"]["ET"]["mean"] is None
    found = read_scores(tmp_path)[0].values
    assert math.isnan(found["dice"]["ET"])
    assert found["dice"]["TC"] == 0.5
    assert math.isnan(read_summary(tmp_path, "evaluation")["brats2020"]["dice"]["ET"]["mean"])


def test_an_untrained_network_has_files_of_its_own(tmp_path, evaluation):
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


def test_the_untrained_network_is_compared_only_if_scored_in_the_same_way(tmp_path, evaluation):
    assert untrained_means(tmp_path, evaluation()) is None
    write_evaluation(tmp_path, evaluation(round_number=0))
    assert untrained_means(tmp_path, evaluation()) == evaluation().means()
    for change in ({"tta": True}, {"postprocess_et": 5}, {"convention": "nan-drop"}):
        assert untrained_means(tmp_path, evaluation(**change)) is None
