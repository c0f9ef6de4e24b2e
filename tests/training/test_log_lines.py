"""Lines of a log: records, and whatever else a disk or an editor puts between them."""

import json
import os

import pytest

from training.log_lines import LONGEST_LINE, read_lines
from training.runlog import read_rounds
from training.watch import state_of

DICE = {"ET": 0.25, "TC": 0.5, "WT": 0.75}
CLIENT = {
    "client": 0,
    "num_examples": 8,
    "num_steps": 1,
    "loss": 0.5,
    "dice": DICE,
    "seconds": 1.0,
    "refused": None,
    "bytes_received": 5,
    "bytes_sent": 7,
}
ROUND = {
    "time": 3.0,
    "event": "round",
    "round": 1,
    "loss": 0.5,
    "dice": DICE,
    "seconds": 2.0,
    "clients": [CLIENT],
    "absent": [2],
    "figures": {"epsilon": 1.5},
    "total_bytes_received": 5,
    "total_bytes_sent": 7,
}
LINES = (
    {"time": 1.0, "event": "started", "round": 1, "rounds": 2},
    {"time": 2.0, "event": "asked", "round": 1, "clients": [0, 1], "absent": [2]},
    {"time": 2.5, "event": "reply", "round": 1, "client": 0, "loss": 0.5, "refused": None},
    {"time": 2.6, "event": "lost", "round": 1, "client": 1, "reason": "no answer"},
    ROUND,
    {"time": 4.0, "event": "steps", "epoch": 2, "done": 3, "of": 9, "loss": 0.5},
    {"time": 5.0, "event": "unsent", "problem": "nobody answers"},
)


def encode(*lines):
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return b"".join(text + b"\n" for text in texts)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


def test_records_come_back_as_they_were_written(log):
    log.write_bytes(encode(*LINES))
    assert read_lines(log) == (LINES, 0)


NO_RECORDS = (
    b"123",
    b"null",
    b'"text"',
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"\x00" * 50,
    b'{"event": "round"}',
    b'{"time": 1.0}',
    b'{"time": NaN, "event": "finished"}',
    b'{"time": true, "event": "finished"}',
    b'{"time": "1", "event": "finished"}',
    b'{"time": -1, "event": "finished"}',
    b'{"time": 1e300, "event": "finished"}',
    b'{"time": 1, "event": 7}',
    b'{"time": 1, "event": "finished", "event": "failed"}',
    b"[" * 100_000,
    b'{"time": ' + b"9" * 5000 + b', "event": "finished"}',
    b'{"time": 1, "event": "\\ud800"}',
    '{"time": 1, "event": "finished"}'.encode("utf-16"),
    b" " * (LONGEST_LINE + 5) + b"{",
)


@pytest.mark.parametrize("line", NO_RECORDS, ids=range(len(NO_RECORDS)))
def test_what_is_no_record_is_counted_and_left_out(line, log):
    log.write_bytes(encode(LINES[0], line, *LINES[1:]))
    events, num_skipped = read_lines(log)
    assert events == LINES
    assert num_skipped >= 1


@pytest.mark.parametrize("value", [None, "1", [], {}, -5, 2**70, True, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["round", "loss", "dice", "seconds", "clients", "absent"])
def test_a_round_with_a_value_that_it_cannot_have_is_no_record(name, value, log):
    if (name, value) in (
        ("loss", -5),
        ("seconds", -5),
        ("clients", []),
        ("absent", []),
        ("dice", {}),
    ):
        return  # which could be
    log.write_bytes(encode({**ROUND, name: value}, LINES[0]))
    assert read_lines(log) == (LINES[:1], 1)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["event"])
def test_a_record_without_a_value_harms_nobody(line, log):
    for name in line:
        changed = [
            {k: v for k, v in each.items() if each is not line or k != name} for each in LINES
        ]
        log.write_bytes(encode(*changed))
        events, num_skipped = read_lines(log)
        state_of(events, 9.0)
        assert len(events) + num_skipped == len(LINES)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["event"])
def test_fields_that_nobody_knows_are_not_taken_over(line, log):
    log.write_bytes(encode({**line, "colour": "red", "rounds ": [{}]}))
    assert read_lines(log) == ((line,), 0)


def test_clients_with_unknown_fields_are_read(log):
    log.write_bytes(encode({**ROUND, "clients": [{**CLIENT, "colour": "red"}]}))
    (record,) = read_rounds(log.parent)
    assert record.clients[0].num_examples == 8


def test_a_last_line_that_is_being_written_is_no_damage(log):
    log.write_bytes(encode(*LINES) + b'{"time": 9.0, "event": "rou')
    assert read_lines(log) == (LINES, 0)
    log.write_bytes(encode(*LINES)[:-1])
    assert read_lines(log) == (LINES, 0)


def test_in_doubt_a_damaged_record_still_tells_its_event(log):
    log.write_bytes(encode({"time": 1.0, "event": "round", "round": "one"}, b"123"))
    events, num_skipped = read_lines(log, is_whole=False)
    assert [event["event"] for event in events] == ["round"]
    assert num_skipped == 1


def test_a_pipe_and_a_log_of_gigabytes_are_not_read(log):
    os.mkfifo(log)
    with pytest.raises(OSError, match="pipe"):
        read_lines(log)
    log.unlink()
    with log.open("wb") as file:
        file.truncate(2**35)
    with pytest.raises(OSError, match="larger than"):
        read_lines(log)
