"""Scores in tables: means, intervals, published rows, and the leak count with all of them."""

import math
from dataclasses import replace

import pytest

from cache_schema.leakage import SYNTHETIC_NOTE
from training.report.data_tables import cohort_table
from training.report.score_tables import (
    fairness_table,
    metric_tables,
    paired_test_table,
    paper_tables,
    side_by_side_tables,
)

LOW = ("a", "brats2018", (0.25, 0.5, 0.75), 4.0)
HIGH = ("b", "brats2018", (0.75, 1.0, 0.75), 2.0)


def cells(table):
    return [row.cells for row in table.rows]


def test_every_metric_has_mean_and_median_of_every_test_set(scored_as):
    run = scored_as("mine", LOW, HIGH, ("c", "brats2020", (0.0, 0.0, 0.0), 1.0))
    dice, hd95, sensitivity, specificity = metric_tables(run)
    assert dice.header == ("test set", "", "cases", "ET", "TC", "WT", "average")
    assert [row[0] for row in cells(dice)] == ["brats2018", "", "brats2020", "", "all", ""]
    mean, median = cells(dice)[:2]
    assert mean[1:3] == ("mean", "2")
    assert [cell.splitlines()[0] for cell in mean[3:]] == ["50.00", "75.00", "75.00", "66.67"]
    assert mean[3].splitlines()[1] == "[25.0, 75.0]"
    assert median[1:] == ("median", "", "50.00", "75.00", "75.00", "66.67")
    assert cells(hd95)[0][3].splitlines()[0] == "3.00"
    assert "HD95 (mm) after round 2, convention brats2020" in hd95.caption
    assert cells(sensitivity)[0][3].splitlines()[0] == "50.00"
    assert cells(specificity)[0][3].splitlines()[0] == "100.00"


def test_cases_without_a_value_are_told(scored_as):
    run = scored_as("mine", LOW, ("b", "brats2018", (math.nan, 1.0, 0.75), 2.0))
    assert cells(metric_tables(run)[0])[0][3] == "25.00\n[25.0, 25.0]\nof 1 case"


def test_the_untrained_network_stands_below(scored_as):
    run = replace(scored_as("mine", LOW), untrained=scored_as("before", HIGH).scored)
    _, _, untrained, *_ = metric_tables(run)[0].rows
    assert untrained.cells[1:4] == ("mean, untrained", "", "75.00")


def test_a_run_without_scores_has_no_tables(scored_record, manifest):
    bare = replace(scored_record, scored=None, clients=None)
    assert metric_tables(bare) == paper_tables([bare]) == []
    assert side_by_side_tables([bare, scored_record]) == []
    assert paired_test_table([bare, scored_record]) is None
    assert fairness_table(bare, manifest) is None


def test_the_papers_rows_are_marked_as_published_and_ours_follow(scored_as):
    runs = [scored_as("one", LOW), scored_as("two", HIGH)]
    (table,) = paper_tables(runs)
    assert "Table 1, brats2018" in table.caption
    assert {row.cells[1] for row in table.rows[:10]} == {"published"}
    assert table.rows[9].cells == (
        *("FedUNetMM", "published", "76.93", "84.35", "84.63", "82.25", "20.50", "69.01"),
    )
    assert [row.cells[:6] for row in table.rows[10:]] == [
        ("one", "ours", "25.00", "50.00", "75.00", "50.00"),
        ("two", "ours", "75.00", "100.00", "75.00", "83.33"),
    ]
    assert {row.kind for row in table.rows} == {"published", "ours"}


def test_runs_stand_side_by_side(scored_as):
    dice, hd95 = side_by_side_tables([scored_as("one", LOW), scored_as("two", HIGH)])
    assert [row[:4] for row in cells(dice)] == [
        ("brats2018", "1", "one", "25.00\n[25.0, 25.0]"),
        ("", "", "two", "75.00\n[75.0, 75.0]"),
        ("all", "1", "one", "25.00\n[25.0, 25.0]"),
        ("", "", "two", "75.00\n[75.0, 75.0]"),
    ]
    assert cells(hd95)[1][3] == "2.00\n[2.0, 2.0]"


def test_a_run_scored_on_fewer_test_sets_does_not_break_the_table(scored_as):
    more = scored_as("more", LOW, ("c", "brats2020", (0.0, 0.0, 0.0), 1.0))
    dice, _ = side_by_side_tables([more, scored_as("less", LOW)])
    assert cells(dice)[3][:4] == ("", "", "less", "-")


def test_pairs_of_runs_are_tested_on_the_same_patients(scored_as):
    cases = [(str(k), "brats2018", (0.5, 0.5, 0.5), 1.0) for k in range(6)]
    better = [
        (p, c, tuple(d + 0.01 * (k + 1) for d in dice), h)
        for k, (p, c, dice, h) in enumerate(cases)
    ]
    table = paired_test_table([scored_as("one", *cases), scored_as("two", *better)])
    row = cells(table)[0]
    # All six differences are positive: two-sided p is 2 / 2^6; their median is 3.5 points.
    assert row == ("two - one", "brats2018", "6", "6", "+3.50", "0.031", "two scores higher")


def test_runs_that_cannot_be_compared_say_why(scored_as):
    runs = [scored_as("one", LOW), scored_as("two", LOW, tta=True)]
    assert paired_test_table(runs) == "No paired test: one and two were scored in different ways."


def test_clients_scores_say_whose_cases_they_are(scored_record, manifest):
    table = fairness_table(scored_record, manifest)
    assert "own training cases" in table.caption
    assert [row[0] for row in cells(table)] == [
        *("0", "1", "mean over clients", "standard deviation", "worst client"),
    ]
    first, second, mean, _, worst = (row[-1] for row in cells(table))
    assert float(mean) == pytest.approx((float(first) + float(second)) / 2, abs=0.01)
    assert worst == min(first, second, key=float)


def test_twelve_clients_stand_by_number_with_rules_and_round(scored_record, manifest):
    dice = {"ET": 0.5, "TC": 0.5, "WT": 0.5, "mean": 0.5}
    names = [str(k) for k in range(12)]
    clients = {name: {"cases": 2, "dice": dice} for name in sorted(names)}
    document = scored_record.clients | {"clients": clients, "counts": {}}
    document |= {"tta": True, "postprocess_et": 7, "round": 1}
    table = fairness_table(replace(scored_record, clients=document), manifest)
    assert [row[0] for row in cells(table)][:12] == names
    assert (
        "cases after round 1, convention brats2020, averaged over flips, fewer than 7 ET voxels made NEC; "
        "training went on to round 2: run train eval --clients again; " in table.caption
    )
    newest = replace(scored_record, clients=document | {"round": 2})
    assert "training went on" not in fairness_table(newest, manifest).caption


def test_clients_means_of_some_cases_tell_of_how_many(scored_record, manifest):
    dice = {"ET": None, "TC": 0.25, "WT": 0.5, "mean": 0.375}
    counts = {"ET": 0, "TC": 1, "WT": 2, "mean": 2}
    spread = dict.fromkeys(dice)
    document = scored_record.clients | {
        "clients": {"0": {"cases": 2, "dice": dice}},
        "counts": {"0": counts},
        "spread": spread,
    }
    table = fairness_table(replace(scored_record, clients=document), manifest)
    assert cells(table)[0] == ("0", "2", "-\nof 0 cases", "25.00\nof 1 case", "50.00", "37.50")
    assert cells(table)[-1] == ("clients with a value", "", "0", "1", "1", "1")


def test_the_papers_rows_tell_each_runs_rules_and_of_how_many_cases(scored_as):
    nan = ("b", "brats2018", (math.nan, 1.0, 0.75), 2.0)
    runs = [scored_as("one", LOW, nan), scored_as("two", LOW, nan, tta=True)]
    (table,) = paper_tables(runs)
    assert table.rows[-1].cells[2:4] == ("25.00\nof 1 case", "75.00")
    assert (
        "2 cases, one convention brats2020; two convention brats2020, averaged over flips;"
        in table.caption
    )


def test_every_table_of_scores_carries_protocol_and_leak_count(scored_as, scored_record, manifest):
    leak = manifest.leakage.model_copy(
        update={"protocol": "paper", "test_patients": 29, "also_in_training": 28}
    )
    runs = [scored_as(name, LOW, HIGH, leakage=leak) for name in ("one", "two")]
    tables = [*metric_tables(runs[0]), *paper_tables(runs), *side_by_side_tables(runs)]
    leaky = manifest.model_copy(update={"leakage": leak})
    tables += [paired_test_table(runs), fairness_table(scored_record, leaky)]
    assert len(tables) == 4 + 1 + 2 + 2
    for table in tables:
        assert table.has_scores
        assert "protocol paper: 28 of 29 test patients were also trained on" in table.caption


def test_no_published_row_stands_beside_scores_on_synthetic_data(
    scored_as, scored_record, manifest
):
    runs = [scored_as(name, LOW, HIGH, is_synthetic=True) for name in ("one", "two")]
    (table,) = paper_tables(runs)
    assert [row.cells[:2] for row in table.rows] == [("one", "ours"), ("two", "ours")]
    assert "aper" not in table.caption
    tables = [*metric_tables(runs[0]), table, *side_by_side_tables(runs), paired_test_table(runs)]
    synthetic = manifest.model_copy(update={"synthetic": True})
    tables += [fairness_table(scored_record, synthetic), cohort_table(synthetic, manifest.leakage)]
    for table in tables:
        assert SYNTHETIC_NOTE in table.caption
    assert "synthetic" not in fairness_table(scored_record, manifest).caption
