import csv
import json
import math

import numpy as np
import pytest

from cache_schema.errors import InputError
from cache_schema.manifest import LeakageRecord, digest, read_manifest
from training.evaluate import evaluate
from training.fairness import (
    ClientEvaluation,
    evaluate_clients,
    read_client_evaluation,
    spread_over_clients,
    write_client_evaluation,
)
from training.metrics import METRICS
from training.score_files import write_evaluation
from training.scores import CaseScore, Evaluation, Scoring

LEAKAGE = LeakageRecord(protocol="patient", cohorts={}, test_patients=1, also_in_training=0)


def case(name, et, tc=0.5, wt=0.75):
    dice = {"ET": et, "TC": tc, "WT": wt}
    return CaseScore(name, name, "brats2018", dict.fromkeys(METRICS, dice))


def result(round_number=3):
    scores = (case("a", 0.2), case("b", 0.9), case("c", 0.4), case("d", 0.6))
    evaluation = Evaluation(scores, LEAKAGE, "brats2020", round_number, "digest")
    return ClientEvaluation(evaluation, (1, 0, 1, 1))


def test_each_client_has_the_mean_of_its_own_cases():
    clients = result().clients()
    assert list(clients) == [0, 1]
    assert clients[0] == pytest.approx(
        {"ET": 0.9, "TC": 0.5, "WT": 0.75, "mean": 2.15 / 3, "cases": 1}
    )
    assert clients[1]["ET"] == pytest.approx(0.4)
    assert clients[1]["cases"] == 3


def test_every_client_counts_once_whatever_its_size():
    spread = spread_over_clients(result().clients())
    et = spread["ET"]
    assert et.mean == pytest.approx((0.9 + 0.4) / 2)  # the mean over cases would be 0.525
    assert et.standard_deviation == pytest.approx(0.25)  # not 0.354, as of a sample
    assert (et.worst, et.worst_client) == (pytest.approx(0.4), 1)
    assert spread["TC"].standard_deviation == 0.0
    assert spread["mean"].worst_client == 1


def test_clients_without_a_value_are_left_out():
    clients = {0: {"ET": math.nan, "TC": 0.5, "WT": 0.5, "mean": 0.5}}
    clients[1] = {**clients[0], "TC": 0.7}
    spread = spread_over_clients(clients)
    assert spread["ET"] is None
    assert spread["TC"].mean == pytest.approx(0.6)


def test_client_scores_are_saved_apart_and_say_that_they_were_trained_on(tmp_path):
    kept = write_evaluation(tmp_path, result().evaluation)
    before = [path.read_bytes() for path in kept]
    table, summary = write_client_evaluation(tmp_path, result())
    assert (table.name, summary.name) == ("clients-evaluation.csv", "clients-evaluation.json")
    assert [path.read_bytes() for path in kept] == before
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["client"], row["case_id"]) for row in rows] == [
        ("1", "a"),
        ("0", "b"),
        ("1", "c"),
        ("1", "d"),
    ]
    assert rows[1]["dice_ET"] == "0.900000"
    document = json.loads(summary.read_text())
    assert "trained on" in document["note"]
    assert document["clients"]["1"]["cases"] == 3
    assert document["clients"]["1"]["dice"]["ET"] == pytest.approx(0.4)
    assert document["spread"]["ET"]["worst_client"] == 1
    assert (document["convention"], document["round"]) == ("brats2020", 3)
    untrained = write_client_evaluation(tmp_path, result(round_number=0))
    assert untrained[0].name == "clients-untrained.csv"


def test_every_training_case_is_scored_for_its_owner_and_no_test_case(small_cache, tiny_run):
    told = []
    found = evaluate_clients(
        tiny_run,
        small_cache,
        scoring=Scoring(),
        on_case=lambda name, total: told.append((name, total)),
    )
    owners = {c.case_id: c.client for c in read_manifest(small_cache).cases if c.split == "train"}
    scored = {s.case_id: o for s, o in zip(found.evaluation.scores, found.owners, strict=True)}
    assert scored == owners
    assert [total for _, total in told] == [len(owners)] * len(owners)
    tested = evaluate(tiny_run, small_cache, on_case=lambda *_: None)
    assert not {score.case_id for score in tested.scores} & set(scored)
    assert np.isfinite([means["mean"] for means in found.clients().values()]).all()


@pytest.fixture
def document(tmp_path, small_cache):
    """The clients' document of a run on the small cache, and where it is saved."""
    path = tmp_path / "clients-evaluation.json"
    write_client_evaluation(tmp_path, result())
    found = {**json.loads(path.read_text()), "manifest": digest(read_manifest(small_cache))}
    path.write_text(json.dumps(found))
    return found


def test_client_scores_are_read_back(document, tmp_path, small_cache, caplog):
    manifest = read_manifest(small_cache)
    assert read_client_evaluation(tmp_path / "none", manifest) is None
    assert read_client_evaluation(tmp_path, manifest) == document
    assert caplog.messages == []
    write_client_evaluation(tmp_path, result())
    assert read_client_evaluation(tmp_path, manifest) is None
    assert "scores on another cache" in caplog.messages[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": {}},
        {"clients": {"one": {"cases": 1, "dice": {}}}},
        {"clients": {"1": {"cases": "1", "dice": {}}}},
        {"clients": {"1": {"cases": 1, "dice": {"ET": 0.5}}}},
        {"clients": []},
        {"spread": {"ET": 1}},
        {"spread": {}},
        {"round": None},
        {"tta": "no"},
        {"manifest": 7},
    ],
)
def test_damaged_client_scores_are_one_line(changes, document, tmp_path, small_cache):
    (tmp_path / "clients-evaluation.json").write_text(json.dumps({**document, **changes}))
    with pytest.raises(InputError, match=r"clients-evaluation\.json .*--clients") as caught:
        read_client_evaluation(tmp_path, read_manifest(small_cache))
    assert "\n" not in str(caught.value)
