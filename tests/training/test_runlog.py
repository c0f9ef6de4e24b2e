"""The log of a run, and the boards that show its scalars."""

import json
import math
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cache_schema.errors import InputError
from training.runlog import (
    EVERYBODY,
    LOG_NAME,
    ClientRecord,
    RoundRecord,
    RunLog,
    TensorBoard,
    first_round_at,
    is_written,
    open_log,
    read_events,
    read_rounds,
    record_target,
    scalars_of,
)


def client(number, loss, refused=None):
    return ClientRecord(number, 8, 1, loss, {"ET": 0.5}, 1.0, refused)


def round_record(number, loss=0.5):
    return RoundRecord(number, loss, {"ET": 0.25}, 2.0, (client(0, 0.75), client(11, None, "NaN")))


class Shelf:
    """A board that keeps what it is shown."""

    def __init__(self, problem=None):
        self.run, self.shown, self.outcome, self.problem = None, [], None, problem

    def open(self, run):
        self.run = run

    def add(self, scalars, step):
        self.shown.append((step, dict(scalars)))

    def close(self, outcome):
        self.outcome = outcome
        return self.problem


def events(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_client_without_a_loss_has_no_scalar():
    assert scalars_of(round_record(1)) == {
        "train/loss": 0.5,
        "train/dice_ET": 0.25,
        "clients/loss_00": 0.75,
    }


def test_every_board_and_tensorboard_are_shown_the_same_scalars(tmp_path):
    first, second = Shelf(), Shelf()
    with open_log(tmp_path, (first, second)) as log:
        log.round_done(round_record(1, 0.5))
        log.round_done(round_record(2, 0.125))
    assert first.shown == second.shown
    assert [(step, scalars["train/loss"]) for step, scalars in first.shown] == [
        (1, 0.5),
        (2, 0.125),
    ]
    assert first.run == tmp_path
    reader = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(reader.Tags()["scalars"]) == first.shown[0][1].keys()
    points = [(event.step, event.value) for event in reader.Scalars("train/loss")]
    assert points == [(1, 0.5), (2, 0.125)]
    assert [record.round for record in read_rounds(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, "finished"), (ValueError("no"), "failed"), (KeyboardInterrupt(), "killed")],
)
def test_a_board_learns_how_the_run_ended(error, outcome, tmp_path):
    shelf = Shelf()

    def train():
        with open_log(tmp_path, (shelf,)):
            if error is not None:
                raise error

    if error is None:
        train()
        assert events(tmp_path) == []
    else:
        with pytest.raises(type(error)):
            train()
        (event,) = events(tmp_path)
        assert (event["event"], event["reason"]) == (outcome, str(error))
    assert shelf.outcome == outcome


def test_a_log_that_cannot_be_written_does_not_hide_why_training_failed(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    with pytest.raises(ValueError, match="why"), open_log(tmp_path) as log:  # noqa: PT012
        monkeypatch.setattr(log, "record", full)
        raise ValueError("why")


def test_what_a_board_has_not_received_is_noted_in_the_log(tmp_path):
    with open_log(tmp_path, (Shelf(problem="nobody answers"), Shelf())) as log:
        log.record("finished")
    assert [event["event"] for event in events(tmp_path)] == ["finished", "unsent"]
    assert events(tmp_path)[1]["problem"] == "nobody answers"


def test_a_board_that_cannot_be_opened_leaves_nothing_open(tmp_path):
    class Shut(Shelf):
        def open(self, run):
            raise OSError("shut")

    before, after = Shelf(), Shelf()
    with pytest.raises(OSError, match="shut"), open_log(tmp_path, (before, Shut(), after)):
        pass
    assert (before.outcome, after.outcome) == ("failed", None)


def test_tensorboard_goes_on_in_the_same_folder(tmp_path):
    for step in (1, 2):
        board = TensorBoard()
        board.open(tmp_path)
        board.add({"x": float(step)}, step)
        board.close("finished")
    reader = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    # Within one second TensorBoard's file names, which it reads in order, need not be in that of writing.
    assert sorted(event.step for event in reader.Scalars("x")) == [1, 2]


def test_central_training_counts_as_one_client():
    record = RoundRecord(1, 0.5, {}, 2.0, (client(EVERYBODY, 0.5),))
    assert scalars_of(record) == {"train/loss": 0.5, "clients/loss_-1": 0.5}


def exchange(number, received, sent, dice=0.5):
    """Make a round of two clients, one of which was refused; its bytes travelled all the same."""
    clients = tuple(
        ClientRecord(k, 8, 1, 0.5, {}, 1.0, refused, received, sent)
        for k, refused in enumerate((None, "NaN"))
    )
    return RoundRecord(number, 0.5, {"ET": dice - 0.2, "WT": dice + 0.2}, 2.0, clients)


def test_bytes_add_up_over_the_rounds_of_a_run_that_goes_on(tmp_path):
    with open_log(tmp_path) as log:
        assert log.round_done(exchange(1, 10, 7)).total_bytes == 2 * 17
        log.round_done(exchange(2, 100, 70))  # killed before its checkpoint
    shelf = Shelf()
    with open_log(tmp_path, (shelf,)) as log:
        assert [record.round for record in log.rounds_before(2)] == [1]
        log.round_done(exchange(2, 100, 70))
        log.round_done(exchange(3, 1, 2))
    records = read_rounds(tmp_path)
    assert [record.total_bytes_received for record in records] == [20, 220, 222]
    assert [record.total_bytes_sent for record in records] == [14, 154, 158]
    assert [scalars["exchange/bytes"] for _, scalars in shelf.shown] == [340, 6]
    assert [scalars["exchange/bytes_total"] for _, scalars in shelf.shown] == [374, 380]
    assert events(tmp_path)[-1]["total_bytes_sent"] == 158


def test_a_log_of_an_earlier_release_is_read_and_its_bytes_count(tmp_path):
    with open_log(tmp_path) as log:
        log.round_done(exchange(1, 10, 7))
    (event,) = events(tmp_path)
    del event["total_bytes_received"], event["total_bytes_sent"]
    (tmp_path / "log.jsonl").write_text(json.dumps(event) + "\n")
    with open_log(tmp_path) as log:
        assert log.round_done(exchange(2, 1, 1)).total_bytes == 38


def test_a_round_is_on_disk_before_its_checkpoint_can_be(tmp_path, failing_sync):
    with failing_sync(1, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with open_log(tmp_path) as log:
            log.round_done(exchange(1, 10, 7))
    assert [record.round for record in read_rounds(tmp_path)] == [1]


def test_the_first_round_at_a_dice_is_found_by_the_mean_of_the_regions():
    rounds = [exchange(k, 0, 0, dice) for k, dice in ((1, 0.25), (2, 0.75), (3, 0.5), (4, 0.875))]
    assert first_round_at(rounds, 0.5) == 2
    assert first_round_at(rounds, 0.75) == 2
    assert first_round_at(rounds, 0.8) == 4  # one region alone had 0.95 in round 2
    assert first_round_at(rounds, 0.9) is None


def test_a_target_is_noted_in_the_log_whether_it_was_reached_or_not(tmp_path):
    with open_log(tmp_path) as log:
        log.round_done(exchange(1, 10, 7, 0.25))
        log.round_done(exchange(2, 10, 7, 0.5))
    assert record_target(tmp_path, 0.4) == 2
    assert record_target(tmp_path, 0.6) is None
    noted = [(e["dice"], e["round"]) for e in events(tmp_path) if e["event"] == "target"]
    assert noted == [(0.4, 2), (0.6, None)]
    assert len(read_rounds(tmp_path)) == 2


def test_a_log_that_is_a_link_or_a_pipe_is_neither_followed_nor_waited_for(tmp_path):
    (tmp_path / "victim").write_text("mine")
    for name in ("link", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / LOG_NAME).symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "pipe" / LOG_NAME)
    for name in ("link", "pipe"):
        with pytest.raises(InputError, match=f"cannot be written .it is a {name}, not a file"):
            RunLog(tmp_path / name)
    assert (tmp_path / "victim").read_text() == "mine"
    assert is_written(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe, not a file"):
        read_events(tmp_path / "pipe")


def test_a_log_that_another_process_writes_is_not_written_to(tmp_path):
    with open_log(tmp_path) as log:
        log.record("started")
        with pytest.raises(InputError, match="another `train` writes to"), open_log(tmp_path):
            pass
    assert [event["event"] for event in events(tmp_path)] == ["started"]


def damage(run, *lines):
    """Put lines that are no records between those of a log."""
    path = run / "log.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join((whole[0], *(line + b"\n" for line in lines), *whole[1:])))


def test_a_log_with_foreign_lines_is_read_and_gone_on_with_and_that_is_said_once(tmp_path, caplog):
    with open_log(tmp_path) as log:
        log.round_done(exchange(1, 10, 7))
        log.round_done(exchange(2, 100, 70))
    damage(tmp_path, b"123", b"{}", b"\xff\xfe", b'{"time": 1, "event": "round", "round": 3}')
    for _ in range(2):
        assert [record.round for record in read_rounds(tmp_path)] == [1, 2]
    with open_log(tmp_path) as log:
        log.tell_missing(3)
        assert log.round_done(exchange(3, 1, 2)).total_bytes == 380
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'log.jsonl'} has lines that are no records")


def test_rounds_that_a_log_has_lost_are_said_when_a_run_goes_on(tmp_path, caplog):
    with open_log(tmp_path) as log:
        for number in (1, 3):
            log.round_done(exchange(number, 10, 7))
        log.tell_missing(2)
        assert caplog.messages == []
        log.tell_missing(5)
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'log.jsonl'} lacks 2 rounds before round 5 (first 2)")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_log_that_is_no_file_is_one_line(kind, tmp_path):
    (tmp_path / "log.jsonl").mkdir() if kind == "folder" else os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(InputError, match=r"log\.jsonl cannot be written"), open_log(tmp_path):
        pass
    with pytest.raises(InputError, match=r"log\.jsonl cannot be read"):
        read_rounds(tmp_path)


def test_the_dice_of_a_region_that_a_log_does_not_tell_is_nan():
    record = round_record(1)
    assert record.dice_of("ET") == 0.25
    assert math.isnan(record.dice_of("WT"))
    assert math.isnan(RoundRecord(1, 0.5, {}, 2.0, ()).mean_dice)
