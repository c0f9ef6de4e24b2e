"""A run that ended before a step of it was finished: it holds nothing, and another may take its place."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cache_schema.errors import InputError
from training.checkpoint import RESUME_NAME, WEIGHTS_NAME
from training.config import CONFIG_NAME, read_config
from training.event_file import TENSORBOARD_FOLDER
from training.mlflow_board import ID_NAME
from training.runlog import LOG_NAME, is_written, read_events
from training.score_files import EVALUATION_NAME, UNTRAINED_NAME

RESULTS: Final = (
    WEIGHTS_NAME,
    RESUME_NAME,
    *(f"{name}.json" for name in (EVALUATION_NAME, UNTRAINED_NAME)),
)
"""Of a run: any of these is worth keeping."""

STARTS: Final = ("started", "resumed")
ENDS: Final = ("failed", "killed")
STEPS: Final = ("steps", "reply", "round", "finished")
"""Events that tell of finished steps; a reply without a loss does not."""


def holds_run(folder: Path, *, logs_at_once: bool = False) -> bool:
    """Tell whether a folder holds a run that goes on at this moment, or of which something was finished.

    Args:
        folder: Of a run, or any other.
        logs_at_once: Whether such a run opens its log at once, so that one without is just beginning;
            others build networks and loaders before, and may fail at that.
    """
    if not (folder / CONFIG_NAME).exists():
        return False
    if not (folder / LOG_NAME).exists():
        return (logs_at_once and _has_settings(folder)) or _has_results(folder)
    return _has_results(folder) or not _ended_before_a_step(folder)


def clear_attempt(folder: Path) -> None:
    """Remove what a run leaves behind that ended before a step was finished; nothing that is not its own."""
    events = (folder / TENSORBOARD_FOLDER).glob("events.out.tfevents.*")
    for path in (folder / LOG_NAME, folder / ID_NAME, *events):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # if it is not there, or holds something else
        (folder / TENSORBOARD_FOLDER).rmdir()


def _has_settings(run: Path) -> bool:
    """Tell whether the settings are whole: a full disk left them empty in earlier releases."""
    try:
        read_config(run)
    except InputError:
        return False
    return True


def _has_results(run: Path) -> bool:
    return any((run / name).exists() for name in RESULTS)


def _ended_before_a_step(run: Path) -> bool:
    events = read_events(run, is_whole=False)  # in doubt it is worth keeping
    if any(_tells_of_a_step(event) for event in events):
        return False
    turns = [event["event"] for event in events if event["event"] in {*STARTS, *ENDS}]
    has_ended = bool(turns) and turns[-1] in ENDS
    return has_ended or not is_written(run)


def _tells_of_a_step(event: Mapping[str, Any]) -> bool:
    return event["event"] in STEPS and event.get("loss", 0.0) is not None
