"""What a run leaves behind to read: a JSON line for every round, and TensorBoard."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from torch.utils.tensorboard import SummaryWriter

from cache_schema.errors import InputError

EVERYBODY: Final = -1
"""Stands for all clients together where there is no federation."""

LOG_NAME: Final = "log.jsonl"
TENSORBOARD_FOLDER: Final = "tensorboard"


@dataclass(frozen=True)
class ClientRecord:
    """One client's part in a round.

    Attributes:
        client: Who; `EVERYBODY` in central training.
        num_examples: Slices of an epoch.
        num_steps: Optimiser steps of all local epochs.
        loss: Mean over the steps; None if there was none.
        dice: Of each region, over all augmented training batches.
        seconds: Of training.
        refused: Why its update was not aggregated, or None.
    """

    client: int
    num_examples: int
    num_steps: int
    loss: float | None
    dice: dict[str, float]
    seconds: float
    refused: str | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One round: each client's part, and means over those not refused, weighted by their examples."""

    round: int
    loss: float
    dice: dict[str, float]
    seconds: float
    clients: tuple[ClientRecord, ...]


@runtime_checkable
class Observer(Protocol):
    """Who is told how a training run goes, for a progress bar or a test."""

    def started(self, *, num_rounds: int, num_steps: int) -> None:
        """Training begins; steps are those of one round."""

    def step(self, *, round_number: int, client: int, loss: float) -> None:
        """One optimiser step is done."""

    def round_done(self, record: RoundRecord) -> None:
        """One round is done and saved."""


class RunLog:
    """Writes the log of a run."""

    def __init__(self, run: Path) -> None:
        """Open a log for appending; it is complete up to the last round whenever it is read."""
        self._file = (run / LOG_NAME).open("a", encoding="utf-8")
        if self._file.tell() and not (run / LOG_NAME).read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a kill cut the last line short; the next one starts afresh
        self._board = SummaryWriter(str(run / TENSORBOARD_FOLDER))

    def record(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write one event."""
        line = {"time": time.time(), "event": event, **fields}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def round_done(self, record: RoundRecord) -> None:
        """Write one round, to the log and to TensorBoard."""
        self.record("round", **asdict(record))
        scalars = {"train/loss": record.loss}
        scalars |= {f"train/dice_{region}": value for region, value in record.dice.items()}
        for client in record.clients:
            if client.loss is not None:
                scalars[f"clients/loss_{client.client:02d}"] = client.loss
        for name, value in scalars.items():
            self._board.add_scalar(name, value, record.round)
        self._board.flush()

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()


@contextmanager
def open_log(run: Path) -> Iterator[RunLog]:
    """Open a run's log and close it whatever happens."""
    log = RunLog(run)
    try:
        yield log
    finally:
        log.close()


def read_rounds(run: Path) -> tuple[RoundRecord, ...]:
    """Read the rounds that a run has finished, those that were done again once.

    Raises:
        InputError: If the folder has no log.
    """
    path = run / LOG_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); is {run} a run?") from error
    rounds = {}
    for line in lines:
        with suppress(ValueError):  # a line that a kill cut short
            event = json.loads(line)
            if event["event"] == "round":
                rounds[event["round"]] = _round(event)
    return tuple(rounds[number] for number in sorted(rounds))


def _round(event: dict[str, Any]) -> RoundRecord:
    clients = tuple(ClientRecord(**client) for client in event["clients"])
    return RoundRecord(event["round"], event["loss"], event["dice"], event["seconds"], clients)
