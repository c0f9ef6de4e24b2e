import io

from rich.console import Console

from cache_schema.manifest import LeakageRecord
from training.evaluate import CaseScore, Evaluation
from training.show import describe_gain, describe_leakage, score_table

LEAKAGE = LeakageRecord(protocol="paper", cohorts={}, test_patients=3, also_in_training=2)
SCORES = (
    CaseScore("a", "p", "brats2018", {"ET": 0.25, "TC": 0.5, "WT": 0.75}),
    CaseScore("b", "q", "brats2020", {"ET": 0.75, "TC": 1.0, "WT": 0.875}),
)


def printed(renderable) -> str:
    file = io.StringIO()
    Console(width=120, file=file).print(renderable)
    return file.getvalue()


def test_the_table_shows_percent_by_cohort_with_leak_and_convention():
    text = printed(score_table(Evaluation(SCORES, LEAKAGE, "brats2020", 7, "digest")))
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["brats2018", "1", "25.00", "50.00", "75.00", "50.00"] in rows
    assert ["all", "2", "50.00", "75.00", "81.25", "68.75"] in rows
    flat = " ".join(text.split())
    assert "after round 7, convention brats2020" in flat
    assert "protocol paper: 2 of 3 test patients were also trained on" in flat


def test_an_untrained_network_is_called_so():
    assert "untrained" in printed(score_table(Evaluation(SCORES, LEAKAGE, "brats2020", 0, "")))


def test_the_gain_names_both_ends():
    before = {"all": {"ET": 0.0, "TC": 0.125, "WT": 0.25}}
    line = describe_gain(Evaluation(SCORES, LEAKAGE, "brats2020", 7, "digest"), before)
    assert line == (
        "Dice untrained to trained: ET 0.000 to 0.500, TC 0.125 to 0.750, WT 0.250 to 0.812"
    )


def test_the_leak_is_said_in_a_line():
    assert describe_leakage(LEAKAGE).startswith("protocol paper: 2 of 3")
