import csv
import json
import math

import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import digest, read_manifest
from training.metrics import METRICS
from training.score_files import (
    load_evaluation,
    read_evaluation,
    read_scores,
    read_summary,
    require_evaluation,
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


def change(path, *keys, value):
    """Change a document at a place; a value that is a function is called on the one before it."""
    document = json.loads(path.read_text())
    *inner, last = keys
    node = document
    for key in inner:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    path.write_text(json.dumps(document))


@pytest.fixture
def manifest(small_cache):
    return read_manifest(small_cache)


@pytest.fixture
def saved(tmp_path, evaluation):
    write_evaluation(tmp_path, evaluation())
    return tmp_path


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("round",), "2"),
        (("round",), None),
        (("tta",), 1),
        (("manifest",), None),
        (("convention",), []),
        (("postprocess_et",), -1),
        (("summary",), None),
        (("summary",), []),
        (("summary", "all"), 5),
        (("summary", "all", "cases"), None),
        (("summary", "all", "cases"), True),
        (("summary", "all", "dice"), None),
        (("summary", "all", "dice", "ET"), None),
        (("summary", "all", "dice", "ET", "mean"), "high"),
        (("summary", "all", "dice", "ET", "mean"), None),
    ],
)
def test_a_damaged_document_is_one_line_and_counts_as_none_where_scores_are_made_anew(
    keys, value, saved, caplog
):
    change(saved / "evaluation.json", *keys, value=value)
    with pytest.raises(InputError, match=r"evaluation\.json .*; score the run again") as caught:
        require_evaluation(saved)
    assert "\n" not in str(caught.value)
    assert read_evaluation(saved) is None
    assert caplog.messages == [str(caught.value)]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"[1]", b'{"summary": NaN}', b"[" * 99_999])
def test_what_is_no_document_is_one_line(content, saved):
    (saved / "evaluation.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"evaluation\.json cannot be read .*; score the run again"
    ):
        require_evaluation(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"case_id\na\n",
        b"case_id,patient_id,cohort\na,p\n",
        b"case_id,patient_id,cohort\na,p,brats2018,1\n",
        b"case_id,patient_id,cohort\na,p,brats1066\n",
        b"case_id,patient_id,cohort\na,p,brats2018\na,p,brats2018\n",
        b"case_id,patient_id,cohort,dice_ET\na,p,brats2018,high\n",
        b"case_id,patient_id,cohort,dice_ET\na,p,brats2018,inf\n",
        b"case_id,patient_id,cohort\n" + b"a" * 200_000 + b",p,brats2018\n",
        b'case_id,patient_id,cohort\n"a,p,brats2018\n',
    ],
)
def test_a_damaged_table_is_one_line(content, saved):
    (saved / "evaluation.csv").write_bytes(content)
    with pytest.raises(
        InputError, match=r"evaluation\.csv cannot be read .*; score the run"
    ) as caught:
        read_scores(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("summary", "all", "dice", "ET", "mean"), 0.123),
        (("summary", "all", "hd95_mm", "WT", "mean"), 7.5),
        (("summary", "all", "cases"), 2),
        (("summary", "brats2020"), None),
    ],
)
def test_a_summary_that_its_table_contradicts_is_refused(keys, value, saved, manifest):
    change(saved / "evaluation.json", "manifest", value=digest(manifest))
    change(saved / "evaluation.json", "summary_digest", value=None)  # as in earlier releases
    assert load_evaluation(saved, manifest).convention == "brats2020"
    change(saved / "evaluation.json", *keys, value=value)
    with pytest.raises(InputError, match="tell different scores"):
        load_evaluation(saved, manifest)


def test_an_interval_that_was_changed_is_refused(saved):
    change(saved / "evaluation.json", "summary", "all", "dice", "ET", "high", value=0.75)
    with pytest.raises(InputError, match=r"evaluation\.json is damaged: its summary has changed"):
        require_evaluation(saved)


def test_a_table_that_has_lost_a_case_is_refused(saved, manifest):
    change(saved / "evaluation.json", "manifest", value=digest(manifest))
    lines = (saved / "evaluation.csv").read_text().splitlines()
    (saved / "evaluation.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(InputError, match="tell different scores"):
        load_evaluation(saved, manifest)
