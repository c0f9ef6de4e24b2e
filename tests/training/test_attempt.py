"""What of a run's folder may be begun anew: nothing that anybody would miss."""

import json

import pytest

from cache_schema.errors import InputError
from training.attempt import clear_attempt, holds_run
from training.central import run_central
from training.checkpoint import load_weights
from training.config import CENTRAL, read_config, write_config
from training.federated.engine import run_federation
from training.runlog import RunLog, read_events, read_rounds


class StopError(Exception):
    """Ends a run at its first step."""


def stop(**_):
    raise StopError("no memory")


@pytest.fixture
def folder(tiny_config, tmp_path):
    """A run that has settings and no log."""
    write_config(tmp_path, tiny_config)
    return tmp_path


def write_log(run, *events):
    lines = [json.dumps({"time": 1.0, **event}) for event in events]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")


STARTED = {"event": "started", "round": 1}
FAILED = {"event": "failed", "reason": "no memory"}


@pytest.mark.parametrize("train", [run_federation, run_central])
def test_a_run_that_failed_at_its_first_step_gives_its_folder_to_the_corrected_command(
    train, small_cache, tiny_config, tmp_path, observer
):
    run = tmp_path / "run"
    changes = {"strategy": CENTRAL} if train is run_central else {}
    config = tiny_config.model_copy(update=changes)
    observer.step = stop
    with pytest.raises(StopError):
        train(config, small_cache, run, observer)
    del observer.step
    (failed_events,) = (run / "tensorboard").iterdir()
    (run / "notes.txt").write_text("mine")
    corrected = config.model_copy(update={"batch_size": 8})
    train(corrected, small_cache, run, observer)
    assert read_config(run) == corrected
    assert load_weights(run)[1] == 2
    assert [event["event"] for event in read_events(run)].count("started") == 1
    assert not any(event["event"] == "failed" for event in read_events(run))
    assert len(read_rounds(run)) == 2
    assert not failed_events.exists()
    assert (run / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="holds a run already"):
        train(config, small_cache, run, observer)


@pytest.mark.parametrize(
    "events",
    [
        (STARTED, FAILED),
        (STARTED, {"event": "killed", "reason": ""}, {"event": "unsent", "problem": "a board"}),
        (STARTED, {"event": "asked", "round": 1}, FAILED),
        (STARTED, {"event": "reply", "loss": None, "refused": "loss is nan at step 1"}, FAILED),
        (STARTED,),  # killed in a way that leaves no time, for want of memory
        (FAILED,),
    ],
)
def test_a_run_that_ended_without_a_step_holds_nothing(events, folder):
    write_log(folder, *events)
    assert not holds_run(folder)


def test_a_run_that_failed_before_its_log_holds_nothing_unless_it_would_have_had_one(folder):
    assert not holds_run(folder)
    assert holds_run(folder, logs_at_once=True)
    assert not holds_run(folder / "none", logs_at_once=True)


@pytest.mark.parametrize("text", ["", '{"crop": 3', "[]"])
def test_settings_that_a_full_disk_cut_short_keep_nobody_out(text, folder):
    (folder / "config.json").write_text(text)
    assert not holds_run(folder)
    assert not holds_run(folder, logs_at_once=True)
    (folder / "model.safetensors").write_bytes(b"")
    assert holds_run(folder)


def test_the_corrected_command_takes_a_folder_whose_settings_are_empty(
    small_cache, tiny_config, tmp_path, observer
):
    (tmp_path / "config.json").write_text("")
    with pytest.raises(
        InputError, match=r"config\.json .*empty.*without --resume takes the folder"
    ):
        run_federation(tiny_config, small_cache, tmp_path, observer, resume=True)
    run_federation(tiny_config, small_cache, tmp_path, observer)
    assert read_config(tmp_path) == tiny_config


@pytest.mark.parametrize(
    "event",
    [
        {"event": "steps", "epoch": 1, "done": 1, "of": 9, "loss": 0.5},
        {"event": "reply", "loss": 0.5, "refused": None},
        {"event": "round", "round": 1, "loss": 0.5},
        {"event": "finished"},
    ],
)
def test_a_finished_step_is_kept(event, folder):
    write_log(folder, STARTED, event, FAILED)
    assert holds_run(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "resume.safetensors", "evaluation.json", "untrained.json"]
)
@pytest.mark.parametrize("has_log", [False, True])
def test_a_result_is_kept_whatever_the_log_says(name, has_log, folder):
    if has_log:
        write_log(folder, STARTED, FAILED)
    (folder / name).write_bytes(b"")
    assert holds_run(folder)


def test_a_run_that_goes_on_is_not_disturbed_at_its_first_step(folder):
    log = RunLog(folder)
    log.record("started", round=1)
    assert holds_run(folder)
    log.close("finished")
    assert not holds_run(folder)


def test_only_what_a_run_has_written_is_cleared(folder):
    write_log(folder, STARTED, FAILED)
    mine = [folder / "log.txt", folder / "tensorboard" / "mine"]
    theirs = [folder / "tensorboard" / "events.out.tfevents.1.host", folder / "mlflow.json"]
    (folder / "tensorboard").mkdir()
    for path in (*mine, *theirs):
        path.write_text("")
    clear_attempt(folder)
    assert all(path.exists() for path in mine)
    assert not any(path.exists() for path in (*theirs, folder / "log.jsonl"))
