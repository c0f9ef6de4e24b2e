"""A run as its log tells it: hand-written logs, and what a terminal shows of them."""

import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

import cli
from cache_schema.errors import InputError
from training.runlog import EVERYBODY, read_events
from training.watch import render, sparkline, state_of, watch

DICE = {"ET": 0.25, "TC": 0.5, "WT": 0.75}


def part(client, refused=None, num_bytes=500):
    return {
        "client": client,
        "num_examples": 8,
        "num_steps": 1,
        "loss": 0.5,
        "dice": DICE,
        "seconds": 1.0,
        "refused": refused,
        "bytes_received": num_bytes,
        "bytes_sent": num_bytes,
    }


def started(time, event="started", number=1, rounds=4):
    return {"time": time, "event": event, "round": number, "rounds": rounds, "clients": [0, 1, 2]}


def asked(time, number, clients=(0, 1, 2), absent=()):
    return {
        "time": time,
        "event": "asked",
        "round": number,
        "clients": list(clients),
        "absent": list(absent),
    }


def reply(time, number, client, refused=None):
    fields = {"round": number, "client": client, "loss": 0.5, "seconds": 1.0, "refused": refused}
    return {"time": time, "event": "reply", **fields}


def lost(time, number, client):
    fields = {"round": number, "client": client, "reason": "no answer"}
    return {"time": time, "event": "lost", **fields}


def done(time, number, parts, absent=(), seconds=10.0, loss=0.5):
    return {
        "time": time,
        "event": "round",
        "round": number,
        "loss": loss,
        "dice": DICE,
        "seconds": seconds,
        "clients": parts,
        "absent": list(absent),
        "figures": {},
        "total_bytes_received": 500 * number,
        "total_bytes_sent": 500 * number,
    }


FIRST = [started(0.0), asked(0.0, 1), done(10.0, 1, [part(0), part(1), part(2)])]


def shown(name, state, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(name, state))
    return console.file.getvalue()


def write(run, events, tail=""):
    run.mkdir(exist_ok=True)
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (run / "log.jsonl").write_text(lines + tail, encoding="utf-8")


def test_a_run_that_has_only_begun_is_running():
    state = state_of([started(100.0)], 10_000.0)
    assert (state.status, state.num_rounds, state.rounds) == ("running", 4, ())
    assert (state.progress, state.eta_s, state.problem) == (None, None, "")
    assert "run: 0 of 4 rounds, running" in shown("run", state)


def test_a_round_tells_who_replied_was_lost_was_refused_and_is_waited_for():
    events = [
        *FIRST,
        asked(10.0, 2, clients=(0, 1, 2, 5), absent=(3,)),
        reply(12.0, 2, 0),
        lost(13.0, 2, 1),
        reply(14.0, 2, 2, "NaN"),
    ]
    state = state_of(events, 14.0)
    assert state.progress.round == 2
    assert state.progress.replied == (0, 2)
    assert state.progress.lost == ((1, "no answer"),)
    assert state.progress.refused == ((2, "NaN"),)
    assert state.progress.absent == (3,)
    text = shown("run", state)
    assert "round 2: 2 of 4 clients have reported, waiting for 5, absent 3" in text
    assert "2 refused (NaN), 1 lost (no answer)" in text


def test_a_finished_round_leaves_nothing_to_wait_for():
    assert state_of(FIRST, 10.0).progress is None
    events = [*FIRST, asked(10.0, 2, clients=(4,)), reply(11.0, 2, 4)]
    assert "aggregating" in shown("run", state_of(events, 11.0))


def test_what_is_left_is_the_median_of_the_last_rounds_less_what_is_spent():
    rounds = [done(10.0 * k, k, [part(0)], seconds=s) for k, s in ((1, 90.0), (2, 8.0), (3, 10.0))]
    events = [started(0.0, rounds=7), *rounds, asked(30.0, 4)]
    assert state_of(events, 34.0).eta_s == 4 * 10.0 - 4.0
    assert state_of(events, 59.0).eta_s == 3 * 10.0  # the round takes longer than usual
    assert state_of(events[:-1], 31.0).eta_s == 4 * 10.0


def test_a_log_that_is_silent_for_much_longer_than_ever_is_noticed():
    events = [started(0.0), asked(1.0, 1), reply(41.0, 1, 0)]  # a pause of 40 s
    assert state_of(events, 41.0 + 120.0).status == "running"
    state = state_of(events, 41.0 + 121.0)
    assert (state.status, state.eta_s) == ("silent", None)
    assert "silent for 2 min: killed, or hanging" in shown("run", state)
    quick = [started(0.0), asked(0.1, 1)]
    assert state_of(quick, 60.0).status == "running"


def test_the_pause_between_a_kill_and_a_resume_is_none():
    events = [*FIRST, started(9_000.0, "resumed", 2), asked(9_001.0, 2)]
    assert state_of(events, 9_062.0).status == "silent"


def test_a_clock_that_runs_behind_makes_no_negative_silence():
    assert state_of(FIRST, -5.0).silent_s == 0.0


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "finished"}, "finished"),
        ({"event": "failed", "reason": "the disk is full"}, "the disk is full"),
        ({"event": "killed", "reason": ""}, "stopped by Ctrl-C"),
    ],
)
def test_how_a_run_ended_is_told(event, words):
    events = [*FIRST, asked(10.0, 2), {"time": 20.0, **event}]
    state = state_of(events, 9_000.0)
    assert (state.status, state.progress, state.eta_s) == (event["event"], None, None)
    assert words in shown("run", state)


def test_what_is_noted_after_the_end_does_not_bring_a_run_back():
    target = {"time": 11.0, "event": "target", "dice": 0.5, "round": None}
    unsent = {"time": 11.0, "event": "unsent", "problem": "MLflow lacks a round"}
    state = state_of([*FIRST, {"time": 10.0, "event": "finished"}, unsent, target], 9_000.0)
    assert (state.status, state.problem) == ("finished", "MLflow lacks a round")


def test_a_resumed_run_runs_again_and_says_where_it_went_on():
    failed = {"time": 12.0, "event": "failed", "reason": "the disk is full"}
    again = done(30.0, 1, [part(0)], loss=0.25)
    events = [*FIRST, asked(10.0, 2), reply(11.0, 2, 0), failed, started(20.0, "resumed", 1), again]
    state = state_of(events, 30.0)
    assert (state.status, state.resumed, state.progress, state.problem) == (
        "running",
        (1,),
        None,
        "",
    )
    assert [record.loss for record in state.rounds] == [0.25]
    assert "resumed at round 1" in shown("run", state)


def test_central_training_is_a_run_of_all_together():
    events = [
        {"time": 0.0, "event": "started", "epoch": 1, "rounds": 2},
        done(10.0, 1, [part(EVERYBODY, num_bytes=0)])
        | {"total_bytes_received": 0, "total_bytes_sent": 0},
        {"time": 11.0, "event": "resumed", "epoch": 2, "rounds": 2},
    ]
    state = state_of(events, 11.0)
    assert (state.resumed, state.eta_s) == ((2,), 10.0)
    text = shown("run", state)
    assert "all together" in text
    assert "exchanged:" not in text


def steps(time, epoch, done, of=200, loss=0.75):
    return {"time": time, "event": "steps", "epoch": epoch, "done": done, "of": of, "loss": loss}


def test_within_an_epoch_its_steps_say_how_far_it_is_and_what_is_left():
    start = {"time": 0.0, "event": "started", "epoch": 1, "rounds": 3}
    events = [start, steps(50.0, 1, 10), steps(90.0, 1, 30), steps(130.0, 1, 50)]  # 2 s a step
    assert state_of(events[:2], 50.0).eta_s is None  # when the epoch began nobody knows
    state = state_of(events, 140.0)
    assert state.progress.share == 0.25
    assert state.progress.began == 30.0
    assert state.eta_s == 3 * 400.0 - 110.0
    text = shown("run", state)
    assert "epoch 1: 50 of 200 steps, loss 0.7500" in text
    assert "clients have reported" not in text
    ended = [*events, done(430.0, 1, [part(EVERYBODY, num_bytes=0)], seconds=430.0)]
    assert state_of(ended, 430.0).progress is None
    second = state_of([*ended, steps(450.0, 2, 10)], 450.0)
    assert (second.progress.round, second.progress.share) == (2, 0.05)
    assert second.eta_s == 2 * 430.0  # not a second line yet


def test_steps_of_an_earlier_start_are_no_progress():
    events = [
        {"time": 0.0, "event": "started", "epoch": 1, "rounds": 3},
        steps(50.0, 1, 150),
        {"time": 900.0, "event": "resumed", "epoch": 1, "rounds": 3},
    ]
    assert state_of(events, 901.0).progress is None


def test_a_log_of_an_earlier_release_is_shown_without_its_number_of_rounds():
    start = {"time": 0.0, "event": "started", "round": 1}
    state = state_of([start, done(10.0, 1, [part(0)])], 10.0)
    assert (state.num_rounds, state.eta_s) == (None, None)
    assert "run: 1 rounds, running, 10.0 s a round" in shown("run", state)


def test_rounds_are_a_table_of_who_trained_was_absent_and_was_refused():
    parts = [part(0), part(1), part(2), part(4), part(5, "NaN")]
    text = shown("run", state_of([started(0.0), done(10.0, 1, parts, absent=(6, 7))], 10.0))
    (row,) = (line for line in text.splitlines() if "0-2, 4" in line)
    cells = re.split(r"\s{2,}", row.strip())
    assert cells == [
        "1",
        "0-2, 4",
        "6-7",
        "5",
        "0.5000",
        "0.250",
        "0.500",
        "0.750",
        "5.0 kB",
        "10.0",
    ]
    assert "exchanged: 5.0 kB in round 1, 1.0 kB in all" in text


def test_a_sparkline_goes_from_the_lowest_to_the_highest_block():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([0.5, float("nan")], 0.0, 1.0) == "▅"
    assert sparkline([float("nan")]) == ""
    assert len(sparkline([float(k) for k in range(500)])) == 30


def test_a_last_line_that_is_half_written_is_not_read_yet(tmp_path):
    write(tmp_path, FIRST, tail='{"time": 12.0, "event": "round", "rou')
    assert len(read_events(tmp_path)) == 3
    (tmp_path / "log.jsonl").write_bytes((tmp_path / "log.jsonl").read_bytes() + b"\xc3")
    assert state_of(read_events(tmp_path), 12.0).rounds[-1].round == 1


def test_watching_ends_with_the_run(tmp_path):
    write(tmp_path / "run", FIRST)
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        write(tmp_path / "run", [*FIRST, asked(10.0, 2)])
        if len(naps) == 3:
            write(tmp_path / "run", [*FIRST, {"time": 20.0, "event": "finished"}])

    console = Console(file=io.StringIO(), width=160)
    state = watch(tmp_path / "run", console, clock=lambda: 20.0, sleep=sleep)
    assert (state.status, len(naps)) == ("finished", 3)
    assert "run: 1 of 4 rounds, finished" in console.file.getvalue()


def test_ctrl_c_ends_watching_quietly(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    write(tmp_path / "run", FIRST)
    console = Console(file=io.StringIO(), width=160)
    state = watch(tmp_path / "run", console, clock=lambda: 20.0, sleep=interrupt)
    assert state.status == "running"


def test_once_shows_the_present_state_and_does_not_wait(tmp_path):
    def never(_):
        raise AssertionError

    write(tmp_path / "run", FIRST)
    console = Console(file=io.StringIO(), width=160)
    watch(tmp_path / "run", console, once=True, clock=lambda: 20.0, sleep=never)
    assert console.file.getvalue().count("run: 1 of 4 rounds, running") == 1


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(InputError, match=r"log\.jsonl cannot be read .*is .* a run\?"):
        watch(tmp_path, Console(file=io.StringIO()), once=True)


def test_a_real_run_is_read_to_its_end(tiny_run):
    state = state_of(read_events(tiny_run), 1e12)
    assert (state.status, state.num_rounds, len(state.rounds)) == ("finished", 2, 2)
    assert "0-1" in shown("tiny", state)


@pytest.mark.parametrize(("event", "code"), [("finished", 0), ("failed", 1), ("killed", 1)])
def test_the_command_ends_as_the_run_did(event, code, tmp_path):
    write(tmp_path / "run", [*FIRST, {"time": 20.0, "event": event, "reason": ""}])
    result = CliRunner().invoke(cli.train, ["watch", str(tmp_path / "run")])
    assert result.exit_code == code
    assert "run: 1 of 4 rounds" in result.output
    assert CliRunner().invoke(cli.train, ["watch", "--once", str(tmp_path / "run")]).exit_code == 0


def test_a_round_without_a_region_is_shown_without_it():
    events = [*FIRST, {**done(10.0, 1, [part(0)]), "dice": {"ET": 0.25}}]
    text = shown("run", state_of(events, 11.0))
    assert "0.250" in text
    assert "nan" in text
