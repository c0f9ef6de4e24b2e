"""What charts there are, and what they say to those who cannot see them."""

from dataclasses import replace

from training.report.charts import (
    client_charts,
    comparison_charts,
    composition_charts,
    training_charts,
)
from training.runlog import EVERYBODY, ClientRecord, RoundRecord

DICE = {"ET": 0.25, "TC": 0.5, "WT": 0.75}


def round_record(number, loss, client=0, num_bytes=1000):
    part = ClientRecord(client, 8, 1, loss, DICE, 1.0, None, num_bytes, num_bytes)
    return RoundRecord(
        number, loss, DICE, 2.0, (part,), (), {}, number * num_bytes, number * num_bytes
    )


def test_loss_dice_time_and_bytes_are_charts_with_numbers_in_their_alternatives(scored_record):
    rounds = (round_record(1, 0.75), round_record(2, 0.5))
    charts = training_charts(replace(scored_record, rounds=rounds))
    assert [each.title for each in charts] == [
        *("Training loss", "Training Dice", "Time", "Exchanged in each round", "Exchanged in all"),
    ]
    assert "from 0.750 to 0.500" in charts[0].alternative
    assert "TC 0.50 to 0.50" in charts[1].alternative
    assert "4 in all" in charts[2].alternative
    assert "2000 in the last" in charts[3].alternative
    assert "4000 at the end" in charts[4].alternative


def test_central_training_exchanges_nothing_and_has_no_clients(scored_record):
    rounds = (round_record(1, 0.75, EVERYBODY, 0),)
    assert len(training_charts(replace(scored_record, rounds=rounds))) == 3
    assert client_charts(rounds) == []


def test_a_run_without_rounds_has_no_charts(scored_record):
    assert training_charts(replace(scored_record, rounds=())) == []
    assert client_charts(()) == []


def test_every_client_has_a_line_also_one_without_a_loss():
    silent = ClientRecord(1, 8, 0, None, {}, 1.0, "no step")
    record = round_record(1, 0.5)
    both = replace(record, clients=(*record.clients, silent))
    loss, dice = client_charts((both,))
    assert "each of 2 clients" in loss.alternative
    assert "each of 2 clients" in dice.alternative


def test_runs_are_drawn_together(scored_record):
    loss, dice = comparison_charts([scored_record, replace(scored_record, name="other")])
    assert loss.alternative.endswith("a line for each run: scored, other")
    assert loss.address != dice.address


def test_the_clients_data_are_drawn(manifest):
    grades, volumes = composition_charts(manifest)
    assert (grades.title, volumes.title) == ("Training cases by grade", "Tumour volume by label")
