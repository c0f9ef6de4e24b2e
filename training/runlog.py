"""What a run leaves behind to read: a JSON line for every round, and boards such as TensorBoard."""

import fcntl
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

from cache_schema.append import AppendedFile
from cache_schema.errors import InputError, WriteError
from cache_schema.locks import lock_file
from cache_schema.reading import open_regular
from training.event_file import TensorBoard
from training.log_lines import read_lines

_log = logging.getLogger(__name__)

EVERYBODY: Final = -1
"""Stands for all clients together where there is no federation."""

LOG_NAME: Final = "log.jsonl"
ADVICE: Final = "make room and go on with --resume"
LOSS_NAME: Final = "train/loss"

Outcome = Literal["finished", "failed", "killed"]
"""How a run ended: killed by Ctrl-C, failed by any other error."""


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
        bytes_received: From the server.
        bytes_sent: To the server.
    """

    client: int
    num_examples: int
    num_steps: int
    loss: float | None
    dice: dict[str, float]
    seconds: float
    refused: str | None = None
    bytes_received: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True)
class RoundRecord:
    """One round: each client's part, and means over those not refused, weighted by their examples.

    Attributes:
        round: From 1.
        loss: Mean over the clients.
        dice: Of each region, mean over the clients.
        seconds: Of the whole round.
        clients: Who trained.
        absent: Clients that were asked and did not report.
        figures: What the strategy and the schedules tell of themselves, such as the privacy spent so far.
        total_bytes_received: By all clients from the server, in this round and those before.
        total_bytes_sent: By all clients to the server, likewise.
    """

    round: int
    loss: float
    dice: dict[str, float]
    seconds: float
    clients: tuple[ClientRecord, ...]
    absent: tuple[int, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    total_bytes_received: int = 0
    total_bytes_sent: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that travelled between server and clients in this round, both ways."""
        return sum(client.bytes_received + client.bytes_sent for client in self.clients)

    @property
    def total_bytes(self) -> int:
        """Bytes that travelled in this round and those before, both ways."""
        return self.total_bytes_received + self.total_bytes_sent

    def dice_of(self, region: str) -> float:
        """Give the Dice of one region; NaN in a log that does not tell it."""
        return self.dice.get(region, math.nan)

    @property
    def mean_dice(self) -> float:
        """Plain mean over the regions, of augmented training batches."""
        return sum(self.dice.values()) / len(self.dice) if self.dice else math.nan


@runtime_checkable
class Observer(Protocol):
    """Who is told how a training run goes, for a progress bar or a test."""

    def started(self, *, num_rounds: int, num_steps: int) -> None:
        """Training begins; steps are those that are still to do, in all rounds."""

    def step(self, *, round_number: int, client: int, loss: float) -> None:
        """One optimiser step is done."""

    def round_done(self, record: RoundRecord) -> None:
        """One round is done and saved."""


class Silent:
    """An observer that says nothing; one that says something subclasses it."""

    def started(self, *, num_rounds: int, num_steps: int) -> None:
        """Training begins."""

    def step(self, *, round_number: int, client: int, loss: float) -> None:
        """One optimiser step is done."""

    def round_done(self, record: RoundRecord) -> None:
        """One round is done and saved."""


@runtime_checkable
class Board(Protocol):
    """Where the scalars of a run are shown, round by round."""

    def open(self, run: Path) -> None:
        """Begin to show a run, or go on with it."""

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Show the scalars of one round."""

    def close(self, outcome: Outcome) -> str | None:
        """Say how the run ended, and return what the board has not received, if anything."""


class RunLog:
    """Writes the log of a run, and shows its scalars on boards."""

    def __init__(self, run: Path) -> None:
        """Open a log for appending; it is complete up to the last round whenever it is read.

        Raises:
            InputError: If another process has it open.
        """
        self._run = run
        self._boards: list[Board] = []
        self._file = AppendedFile(run / LOG_NAME, advice=ADVICE)
        # Held until the process ends, however it does: see `is_written`, and earlier releases had no
        # other lock.
        try:
            lock_file(self._file, f"another `train` writes to {run}; wait for it, or stop it")
        except InputError:
            self._file.close()
            raise
        self._file.end_line()  # a kill may have cut the last one short
        self._rounds = {record.round: record for record in read_rounds(run)}

    def attach(self, board: Board) -> None:
        """Show the rounds from now on there too."""
        board.open(self._run)
        self._boards.append(board)

    def record(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write one event.

        Raises:
            WriteError: If the disk refuses it.
        """
        line = {"time": time.time(), "event": event, **fields}
        self._file.append((json.dumps(line) + "\n").encode())

    def rounds_before(self, number: int) -> tuple[RoundRecord, ...]:
        """Return the rounds before one, in order, those that an earlier start has logged too."""
        return tuple(self._rounds[k] for k in sorted(self._rounds) if k < number)

    def tell_missing(self, number: int) -> None:
        """Say which rounds before one the log has lost, before more are written to it."""
        found = {record.round for record in self.rounds_before(number)}
        missing = [str(k) for k in range(1, number) if k not in found]
        if missing:
            _log.warning(
                "%s lacks %d rounds before round %d (first %s): bytes so far count the others alone",
                self._run / LOG_NAME,
                len(missing),
                number,
                missing[0],
            )

    def round_done(self, record: RoundRecord) -> RoundRecord:
        """Write one round, to the log first, and to every board.

        It is on disk before this returns, so that a checkpoint written later never knows of a round
        that the log does not.

        Returns:
            The round, with the bytes that travelled since the first.
        """
        rounds = (*self.rounds_before(record.round), record)
        parts = [client for each in rounds for client in each.clients]
        record = replace(
            record,
            total_bytes_received=sum(part.bytes_received for part in parts),
            total_bytes_sent=sum(part.bytes_sent for part in parts),
        )
        self.record("round", **asdict(record))
        self._file.sync()
        self._rounds[record.round] = record
        scalars = scalars_of(record)
        for board in self._boards:
            board.add(scalars, record.round)
        return record

    def close(self, outcome: Outcome) -> None:
        """Close the boards, note what any of them has not received, and close the log."""
        with self._file:
            for board in self._boards:
                if (problem := board.close(outcome)) is not None:
                    with suppress(
                        WriteError
                    ):  # the disk that is full for the board is so for the log
                        self.record("unsent", problem=problem)


@contextmanager
def open_log(run: Path, boards: Sequence[Board] = ()) -> Iterator[RunLog]:
    """Open a run's log and close it whatever happens.

    Args:
        run: Folder of the run.
        boards: Where to show its scalars, besides TensorBoard.

    Raises:
        InputError: If a board cannot be opened.
    """
    log = RunLog(run)
    outcome: Outcome = "finished"
    try:
        for board in (TensorBoard(), *boards):
            log.attach(board)
        yield log
    except BaseException as error:
        outcome = "failed" if isinstance(error, Exception) else "killed"
        with suppress(OSError, WriteError):  # such as a full disk, which is the error already
            log.record(outcome, reason=" ".join(str(error).split()))
        raise
    finally:
        log.close(outcome)


def is_written(run: Path) -> bool:
    """Tell whether a process has the log of a run open, or may have: not every file system knows locks."""
    try:
        with open_regular(run / LOG_NAME) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def scalars_of(record: RoundRecord) -> dict[str, float]:
    """Name the numbers of a round that boards show."""
    scalars = {LOSS_NAME: record.loss}
    scalars |= {f"train/dice_{region}": value for region, value in record.dice.items()}
    for client in record.clients:
        if client.loss is not None:
            scalars[f"clients/loss_{client.client:02d}"] = client.loss
    if record.num_bytes:
        scalars["exchange/bytes"] = record.num_bytes
        scalars["exchange/bytes_total"] = record.total_bytes
    return scalars | {f"strategy/{name}": value for name, value in record.figures.items()}


def read_events(run: Path, *, is_whole: bool = True) -> tuple[dict[str, Any], ...]:
    """Read a run's log, also while it is written: what is no record is left out, and said once.

    Args:
        run: Its folder.
        is_whole: See `training.log_lines.read_lines`.

    Raises:
        InputError: If the folder has no log.
    """
    path = run / LOG_NAME
    try:
        events, num_skipped = read_lines(path, is_whole=is_whole)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); is {run} a run?") from error
    if num_skipped:
        _tell_skipped(path)
    return events


@cache
def _tell_skipped(path: Path) -> None:
    """Say once what a log holds besides records."""
    _log.warning(
        "%s has lines that are no records, such as a kill or a full disk leaves: they are skipped",
        path,
    )


def read_rounds(run: Path) -> tuple[RoundRecord, ...]:
    """Read the rounds that a run has finished, those that were done again once.

    Raises:
        InputError: If the folder has no log.
    """
    return rounds_of(read_events(run))


def rounds_of(events: Sequence[dict[str, Any]]) -> tuple[RoundRecord, ...]:
    """Pick the finished rounds out of a log, those that were done again once."""
    rounds = {event["round"]: _round(event) for event in events if event["event"] == "round"}
    return tuple(rounds[number] for number in sorted(rounds))


def _round(event: dict[str, Any]) -> RoundRecord:
    names = (each.name for each in fields(RoundRecord))
    said = {name: event[name] for name in names if name in event}
    clients = tuple(ClientRecord(**client) for client in event["clients"])
    return RoundRecord(**{**said, "clients": clients, "absent": tuple(event["absent"])})


def first_round_at(rounds: Sequence[RoundRecord], dice: float) -> int | None:
    """Find the first round whose mean training Dice over the regions reaches a value, if any."""
    return next((record.round for record in rounds if record.mean_dice >= dice), None)


def record_target(run: Path, dice: float) -> int | None:
    """Find the first round of a run that reaches a mean training Dice, and note it in the run's log."""
    reached = first_round_at(read_rounds(run), dice)
    log = RunLog(run)
    log.record("target", dice=dice, round=reached)
    log.close("finished")
    return reached
