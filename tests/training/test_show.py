import io
import math

import pytest
from rich.console import Console

from cache_schema.leakage import SYNTHETIC_NOTE, SiteLeakage
from cache_schema.manifest import CohortLeakage, LeakageRecord
from cache_schema.vocabulary import REGIONS
from training.comparison import compare_runs
from training.fairness import ClientEvaluation
from training.scores import CaseScore, Evaluation
from training.show import (
    ScoredRun,
    comparison_table,
    describe_gain,
    fairness_table,
    paper_tables,
    score_table,
)

LEAKAGE = LeakageRecord(
    protocol="paper",
    cohorts={
        "brats2018": CohortLeakage(test_patients=1, also_in_training=1),
        "brats2020": CohortLeakage(test_patients=2, also_in_training=1),
    },
    test_patients=3,
    also_in_training=2,
)
LEAK = "protocol paper: 2 of 3 test patients were also trained on"


def case(name, cohort, dice, hd95_mm=(1.5, 2.5, 5.0)):
    values = {
        "dice": dict(zip(REGIONS, dice, strict=True)),
        "hd95_mm": dict(zip(REGIONS, hd95_mm, strict=True)),
        "sensitivity": dict.fromkeys(REGIONS, 0.125),
        "specificity": dict.fromkeys(REGIONS, 0.9975),
    }
    return CaseScore(name, f"patient {name}", cohort, values)


SCORES = (
    case("a", "brats2018", (0.25, 0.5, 0.75)),
    case("b", "brats2020", (0.75, 1.0, 0.875)),
)


def evaluation(round_number=7, **changes):
    fields = {"convention": "brats2020", "round": round_number, "manifest": "digest"}
    return Evaluation(SCORES, **{"leakage": LEAKAGE} | fields | changes)


def scored_run(name, **changes):
    return ScoredRun(name, evaluation(**changes), parameters=20_622_000, flops=69_150_000_000)


def printed(renderable, width=120) -> str:
    file = io.StringIO()
    Console(width=width, file=file).print(renderable)
    return file.getvalue()


def rows_of(text):
    return [line.replace("│", " ").split() for line in text.splitlines()]


def test_the_table_shows_every_metric_by_cohort_with_leak_and_convention():
    text = printed(score_table(evaluation(), "runs/fed"))
    rows = rows_of(text)
    assert ["brats2018", "Dice", "%", "25.00", "50.00", "75.00", "50.00"] in rows
    assert ["1", "case", "[25.0,"] in [row[:3] for row in rows]
    assert ["HD95", "mm", "1.50", "2.50", "5.00", "3.00"] in rows
    assert ["sens.", "%", "12.50", "12.50", "12.50", "12.50"] in rows
    assert ["spec.", "%", "99.75", "99.75", "99.75", "99.75"] in rows
    assert ["all", "Dice", "%", "50.00", "75.00", "81.25", "68.75"] in rows
    assert ["2", "cases", "[25.0,", "75.0]"] in [row[:4] for row in rows]
    flat = " ".join(text.split())
    assert "runs/fed after round 7, convention brats2020" in flat
    assert LEAK in flat


def test_the_interval_of_the_mean_stands_below_it():
    # Two patients, drawn with replacement: the 95 % ends are the two single scores.
    text = printed(score_table(evaluation()))
    assert "[25.0, 75.0]" in text
    assert "[1.5, 1.5]" in text


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_into_a_terminal_without_cutting_a_number(width):
    worst = case("c", "brats2020", (1.0, 1.0, 1.0), (373.1287, 373.1287, 373.1287))
    scores = Evaluation((*SCORES, worst), LEAKAGE, "brats2020", 7, "digest")
    text = printed(score_table(scores, "runs/a-long-name"), width)
    assert "…" not in text
    assert "[75.0, 100.0]" in text
    assert "[1.5, 373.1]" in text


def test_the_papers_tables_fit_into_a_terminal_of_80_characters():
    (text, _) = (printed(table, 80) for table in paper_tables([scored_run("runs/central")]))
    assert "…" not in text
    assert "UNetMM (Centralized) published" in text


def test_a_mean_of_some_cases_tells_of_how_many():
    nan = math.nan
    scores = (*SCORES, case("c", "brats2020", (nan, 0.5, 0.5), (nan, 1.0, 1.0)))
    text = printed(score_table(Evaluation(scores, LEAKAGE, "nan-drop", 7, "digest")))
    assert "of 1 case " in text  # ET of brats2020, where two cases are
    assert "of 2 cases" in text  # ET of all three
    nothing = (case("c", "brats2020", (nan, 0.5, 0.5)),)
    text = printed(score_table(Evaluation(nothing, LEAKAGE, "nan-drop", 7, "digest")))
    assert "of no case" in text
    assert "nan" not in text.replace("nan-drop", "")


def test_an_untrained_network_is_called_so():
    assert "untrained" in printed(score_table(evaluation(round_number=0)))


def test_what_was_added_to_the_network_is_said_with_its_scores():
    text = " ".join(printed(score_table(evaluation(tta=True, postprocess_et=200))).split())
    assert "averaged over flips, fewer than 200 ET voxels made NEC" in text
    assert "flips" not in printed(score_table(evaluation()))


def test_the_papers_tables_come_with_our_rows_for_the_cohorts_that_have_cases():
    tables = paper_tables([scored_run("runs/fed"), scored_run("runs/start", round_number=0)])
    first, second = (printed(table) for table in tables)
    assert "Table 1" in first
    assert "Table 3" in second
    rows = rows_of(first)
    assert [
        *("FedUNetMM", "published", "76.93", "84.35", "84.63", "82.25", "20.50", "69.01"),
    ] in rows
    assert ["runs/fed", "ours", "25.00", "50.00", "75.00", "50.00", "20.62", "69.15"] in rows
    assert ["runs/start", "ours,", "untrained", *("25.00", "50.00", "75.00", "50.00")] in [
        row[:7] for row in rows
    ]
    assert ["runs/fed", "ours", "75.00", "100.00", "87.50", "87.50", "20.62", "69.15"] in rows_of(
        second
    )


def test_no_published_row_stands_beside_scores_on_synthetic_data():
    runs = [scored_run("runs/fed", is_synthetic=True), scored_run("runs/start", round_number=0)]
    for table in paper_tables(runs):
        text = printed(table)
        assert "published" not in text
        assert "paper's" not in text
        assert "76.93" not in text
    rows = rows_of(printed(paper_tables(runs)[0]))
    assert ["runs/fed", "ours", "25.00", "50.00", "75.00", "50.00", "20.62", "69.15"] in rows
    assert table.row_count == len(runs)


def test_every_table_of_scores_on_synthetic_data_says_so():
    run = scored_run("runs/fed", is_synthetic=True)
    comparisons = compare_runs({"a": run.evaluation, "b": run.evaluation})
    tables = [
        score_table(run.evaluation),
        *paper_tables([run]),
        comparison_table(comparisons, LEAKAGE, is_synthetic=True),
        fairness_table(ClientEvaluation(run.evaluation, (0, 1))),
    ]
    for table in tables:
        assert f"{SYNTHETIC_NOTE}; {LEAK}" in " ".join(printed(table).split())
    for table in (score_table(evaluation()), comparison_table(comparisons, LEAKAGE)):
        assert "synthetic" not in printed(table)


def test_every_table_of_the_paper_carries_our_leak_convention_and_number_of_cases():
    for table, own in zip(
        paper_tables([scored_run("runs/fed")]),
        ("1 of 1 of brats2018", "1 of 2 of brats2020"),
        strict=True,
    ):
        flat = " ".join(printed(table).split())
        assert f"{LEAK}, {own}" in flat
        assert "ours: 1 case, convention brats2020" in flat
        assert "published: the paper's own figures" in flat


def test_runs_that_were_scored_in_different_ways_each_say_theirs():
    runs = [scored_run("a"), scored_run("b", tta=True)]
    flat = " ".join(printed(paper_tables(runs)[0]).split())
    assert (
        "ours: 1 case, a convention brats2020; b convention brats2020, averaged over flips;" in flat
    )


def test_brackets_in_the_name_of_a_run_are_no_markup():
    run = scored_run("runs/fed[a][/b]")
    same = dict.fromkeys(("x[a]", "y[/b]"), run.evaluation)
    for table in (
        score_table(run.evaluation, run.name),
        paper_tables([run])[0],
        paper_tables([run, scored_run("other", tta=True)])[0],
        fairness_table(ClientEvaluation(run.evaluation, (0, 1)), run.name),
    ):
        assert "runs/fed[a][/b]" in printed(table, 160)
    assert "y[/b] - x[a]" in printed(comparison_table(compare_runs(same), LEAKAGE))


def test_means_of_some_cases_tell_of_how_many_beside_the_paper_and_of_clients():
    nan = math.nan
    scores = (
        case("a", "brats2020", (0.25, 0.5, 0.75)),
        case("b", "brats2020", (nan, 1.0, 1.0)),
        case("c", "brats2020", (nan, nan, nan)),
    )
    result = Evaluation(scores, LEAKAGE, "nan-drop", 7, "digest")
    (table,) = paper_tables([ScoredRun("mine", result, 1, 1)])
    rows = rows_of(printed(table))
    place = next(i for i, row in enumerate(rows) if row[:1] == ["mine"])
    assert rows[place][2:6] == ["25.00", "75.00", "87.50", "62.50"]
    assert rows[place + 1] == ["of", "1", "case", *["of", "2", "cases"] * 3]
    rows = rows_of(printed(fairness_table(ClientEvaluation(result, (0, 0, 1)))))
    assert ["0", "2", "25.00", "75.00", "87.50", "62.50"] in rows
    assert ["of", "1", "case"] in rows
    assert ["1", "1", "-", "-", "-", "-"] in rows
    assert ["of", "no", "case"] * 4 in rows
    assert ["clients", "with", "a", "value", "1", "1", "1", "1"] in rows


def test_a_comparison_tells_cases_difference_p_and_what_it_means():
    names = [f"c{i}" for i in range(6)]
    first = tuple(case(name, "brats2018", (0.5, 0.5, 0.5)) for name in names)
    second = tuple(case(name, "brats2018", (0.51 + i / 100,) * 3) for i, name in enumerate(names))
    runs = {
        name: Evaluation(scores, LEAKAGE, "brats2020", 7, "digest")
        for name, scores in (("a", first), ("b", second))
    }
    text = printed(comparison_table(compare_runs(runs), LEAKAGE))
    assert ["b", "-", "a", "all", "6", "6", "+3.50", "0.031", "b", "scores", "higher"] in rows_of(
        text
    )
    assert LEAK in " ".join(text.split())


def test_a_comparison_without_a_difference_has_no_p():
    same = {name: evaluation() for name in ("a", "b")}
    rows = rows_of(printed(comparison_table(compare_runs(same), LEAKAGE)))
    assert ["b", "-", "a", "all", "2", "2", "+0.00", "-", "no", "difference:"] in [
        row[:10] for row in rows
    ]


def test_fairness_says_plainly_that_these_cases_were_trained_on():
    text = printed(fairness_table(ClientEvaluation(evaluation(), (3, 0)), "runs/fed"))
    rows = rows_of(text)
    assert ["0", "1", "75.00", "100.00", "87.50", "87.50"] in rows
    assert ["3", "1", "25.00", "50.00", "75.00", "50.00"] in rows
    assert ["mean", "over", "clients", "50.00", "75.00", "81.25", "68.75"] in rows
    assert ["standard", "deviation", "25.00", "25.00", "6.25", "18.75"] in rows
    assert ["worst", "client", "25.00", "50.00", "75.00", "50.00"] in rows
    flat = " ".join(text.split())
    assert "TRAINING cases" in flat
    assert "which the model was trained on" in flat
    assert LEAK in flat


def test_the_gain_names_both_ends():
    before = {"all": {"ET": 0.0, "TC": 0.125, "WT": 0.25}}
    line = describe_gain(evaluation(), before)
    assert line == (
        "Dice untrained to trained: ET 0.000 to 0.500, TC 0.125 to 0.750, WT 0.250 to 0.812"
    )


def test_what_one_hospital_knows_of_its_test_patients_is_not_taken_for_all():
    leakage = SiteLeakage(**dict(LEAKAGE))
    end = "; whether other hospitals trained on them is not known"
    runs = [scored_run("one"), scored_run("two", leakage=leakage)]
    assert end in " ".join(printed(paper_tables(runs)[0]).split())
