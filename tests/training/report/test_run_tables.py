"""A run in tables: its settings, its rounds, what went wrong."""

from dataclasses import replace

from training.report.run_tables import (
    difference_table,
    round_table,
    settings_table,
    target_table,
    trouble_table,
)
from training.runlog import EVERYBODY, ClientRecord, RoundRecord

DICE = {"ET": 0.25, "TC": 0.5, "WT": 0.75}


def part(client, refused=None):
    return ClientRecord(client, 8, 1, 0.5, DICE, 1.0, refused, 1000, 500)


def cells(table):
    return [row.cells for row in table.rows]


def test_only_settings_that_differ_are_put_side_by_side(scored_record, tiny_config):
    other = replace(
        scored_record,
        name="other",
        config=tiny_config.model_copy(update={"strategy": "fedprox", "local_steps": 7}),
        rounds=scored_record.rounds[:1],
    )
    table = difference_table([scored_record, other])
    assert table.header == ("", "scored", "other")
    assert cells(table)[:3] == [
        ("strategy", "fedavg", "fedprox"),
        ("local_steps", "none", "7"),
        ("rounds done", "2", "1"),
    ]


def test_all_settings_and_packages_are_listed(scored_record):
    rows = dict(cells(settings_table(scored_record)))
    assert rows["learning_rate"] == "0.01"
    assert rows["strategy_options"] == "none"
    assert rows["torch"] == scored_record.provenance["packages"]["torch"]
    assert rows["cache"] == scored_record.provenance["manifest"]


def test_a_round_counts_who_trained_who_was_absent_and_who_was_refused(scored_record):
    record = RoundRecord(
        1, 0.5, DICE, 2.25, (part(0), part(2, "NaN"), part(3)), (1, 4), {}, 3000, 1500
    )
    (row,) = cells(round_table(replace(scored_record, rounds=(record,))))
    assert row == (
        *("1", "0.5000", "0.250", "0.500", "0.750", "2", "2", "1"),
        *("3.0 kB", "1.5 kB", "4.5 kB", "2.2"),
    )


def test_central_training_has_no_clients_and_no_bytes(scored_record):
    everybody = ClientRecord(EVERYBODY, 8, 1, 0.5, DICE, 1.0)
    record = RoundRecord(1, 0.5, DICE, 2.0, (everybody,))
    (row,) = cells(round_table(replace(scored_record, rounds=(record,))))
    assert row[5:11] == ("all together", "0", "0", "-", "-", "-")


def test_the_first_rounds_at_some_dice_are_shown(scored_record):
    rounds = [
        RoundRecord(number, 0.5, dict.fromkeys(DICE, dice), 2.0, ())
        for number, dice in ((1, 0.65), (2, 0.85))
    ]
    (row,) = cells(target_table(replace(scored_record, rounds=rounds)))
    assert row == ("round", "1", "1", "2", "2", "none")


def test_absent_lost_refused_and_resumed_are_told_with_their_reasons(scored_record):
    rounds = (
        RoundRecord(1, 0.5, DICE, 2.0, (part(0, "NaN in layers.0"),), (1,)),
        RoundRecord(2, 0.5, DICE, 2.0, (part(0),), (1,)),
    )
    events = (
        {"event": "started", "round": 1},
        {"event": "resumed", "round": 2},
        {"event": "lost", "round": 2, "client": 1, "reason": "no answer"},
    )
    table = trouble_table(replace(scored_record, rounds=rounds, events=events))
    assert cells(table) == [
        ("1", "1", "absent", "did not report"),
        ("1", "0", "refused", "NaN in layers.0"),
        ("2", "1", "lost", "no answer"),
        ("2", "-", "resumed", "went on after an interruption"),
    ]
    assert trouble_table(scored_record) is None
