"""What training a run took: time and memory."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import torch
from annotated_types import Ge

from cache_schema.documents import read_record
from cache_schema.errors import InputError
from cache_schema.files import write_atomically
from training.process import STATUS, own_bytes
from training.runlog import LOG_NAME, read_rounds

COST_NAME: Final = "cost.json"


@dataclass(frozen=True)
class Cost:
    """What training took.

    Attributes:
        device: Its kind.
        steps: Optimiser steps.
        seconds: Over all rounds; reading and saving included, compiling in the first one too.
        peak_bytes: On a GPU the most that tensors took there, else the most that the process took, with
            everything in it; None where the system does not tell.
    """

    device: str
    steps: Annotated[int, Ge(1)]
    seconds: Annotated[float, Ge(0)]
    peak_bytes: Annotated[int, Ge(0)] | None


def measured_cost(run: Path, device: torch.device) -> Cost:
    """Tell what a run took whose training this process has just finished.

    Steps and seconds are of the whole run; where it was resumed, the peak is that of the last process.

    Raises:
        InputError: If the run's log has lost rounds.
    """
    rounds = read_rounds(run)
    if [record.round for record in rounds] != list(range(1, len(rounds) + 1)):
        raise InputError(
            f"{run / LOG_NAME} lacks rounds, so nobody knows what training took; bring it back, or remove "
            f"{run} to train again"
        )
    return Cost(
        device.type,
        sum(client.num_steps for record in rounds for client in record.clients),
        sum(record.seconds for record in rounds),
        peak_bytes(device),
    )


def peak_bytes(device: torch.device) -> int | None:
    """Read the most memory that this process has taken, on a GPU or in all."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return own_bytes("VmHWM") if STATUS.exists() else None


def write_cost(run: Path, cost: Cost) -> None:
    """Save what a run took beside it."""
    write_atomically(run / COST_NAME, json.dumps(asdict(cost)) + "\n")


def read_cost(run: Path) -> Cost | None:
    """Read what a run took; None if nobody has measured it.

    Raises:
        InputError: If the document is damaged.
    """
    path = run / COST_NAME
    if not path.exists():
        return None
    return read_record(path, Cost, "remove it, and the same command measures again")
