"""How long clients train in a round and at which rate: what was planned, or what the rounds before tell."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cache_schema.errors import InputError
from training.config import TrainConfig
from training.runlog import RoundRecord

CUT: Final = 0.2
"""What is left of the learning rate after a plateau."""

LEAST: Final = 0.02
"""The smallest share of the learning rate that plateaus leave."""


@dataclass(frozen=True)
class Pace:
    """How clients train in one round, the same for all of them.

    Attributes:
        local_epochs: Passes over their slices, unless they take a fixed number of steps.
        rate_factor: Share of the learning rate that is left, where it follows no cosine.
    """

    local_epochs: int
    rate_factor: float = 1.0


def looks_back(config: TrainConfig) -> bool:
    """Tell whether the pace of a round follows from the rounds before it."""
    return config.epoch_schedule == "adaptive" or config.lr_schedule == "plateau"


def history_digest(history: Sequence[RoundRecord]) -> str:
    """Compute the SHA-256 of all that schedules see of some rounds."""
    seen = [(record.round, record.loss, record.mean_dice) for record in history]
    return sha256(json.dumps(seen).encode()).hexdigest()


def require_history(
    config: TrainConfig, history: Sequence[RoundRecord], digest: str | None
) -> None:
    """Make sure that the rounds from which schedules follow are those that there were.

    Args:
        config: Of the run.
        history: Of its log: all rounds that its checkpoint knows of.
        digest: Of these rounds, from the checkpoint; None in those of earlier releases.

    Raises:
        InputError: If the log has changed, and a schedule looks back.
    """
    if looks_back(config) and digest not in {None, history_digest(history)}:
        raise InputError(
            "log.jsonl has changed before the last round, from which --epoch-schedule adaptive and "
            "--lr-schedule plateau follow; bring it back or begin another run"
        )


def plan_pace(config: TrainConfig, round_number: int, history: Sequence[RoundRecord]) -> Pace:
    """Decide on a round.

    Args:
        config: Of the run.
        round_number: From 1.
        history: All rounds before, in order.

    Raises:
        InputError: If the schedule follows from rounds that `history` lacks.
    """
    if looks_back(config) and [record.round for record in history] != list(range(1, round_number)):
        raise InputError(
            f"the log lacks rounds before round {round_number}, from which --epoch-schedule adaptive and "
            "--lr-schedule plateau follow; bring log.jsonl back or begin another run"
        )
    epochs, factor = config.local_epochs, 1.0
    if config.epoch_schedule == "adaptive":
        epochs = adaptive_epochs(epochs, [record.loss for record in history])
    if config.lr_schedule == "plateau":
        scores = [record.mean_dice for record in history]
        factor = plateau_factor(scores, config.lr_patience)
    return Pace(epochs, factor)


def pace_figures(config: TrainConfig, pace: Pace) -> dict[str, float]:
    """Tell what looking back has decided, for the log; nothing where all was planned."""
    figures: dict[str, float] = {}
    if config.epoch_schedule == "adaptive":
        figures["local_epochs"] = float(pace.local_epochs)
    if config.lr_schedule == "plateau":
        figures["learning_rate"] = config.learning_rate * pace.rate_factor
    return figures


def adaptive_epochs(most: int, losses: Sequence[float]) -> int:
    r"""Train for fewer epochs, so that clients meet more often, the lower the loss is.

    $$ E_1 = 1, \quad E_t = \lceil E \sqrt{L_{t-1} / L_1} \rceil $$

    AdaComm of Wang and Joshi (2019), arXiv:1810.08313, round by round, as the authors of Isik-Polat
    et al. (2022), arXiv:2202.08261, wrote it for FeTS 2021. That a rising loss does not raise the
    number above $E$ is ours.

    Args:
        most: $E$, of the second round.
        losses: $L$ of the rounds before, the clients' mean training loss.
    """
    if not losses:
        return 1
    ratio = max(losses[-1], 0.0) / losses[0] if losses[0] > 0 else 1.0
    return min(most, max(1, math.ceil(most * math.sqrt(ratio))))


def plateau_factor(scores: Sequence[float], patience: int) -> float:
    """Cut the learning rate whenever a score has not got better for some rounds.

    To `CUT` of it each time and not below `LEAST`, as the authors of Isik-Polat et al. (2022),
    arXiv:2202.08261, wrote it for FeTS 2021: from 5e-5 down to 1e-6 at the lowest.

    Args:
        scores: Of the rounds before; more is better.
        patience: Rounds without a better score until the rate is cut.

    Returns:
        Share of the learning rate that is left.
    """
    best, num_stale, factor = 0.0, 0, 1.0
    for score in scores:
        best, num_stale = (score, 0) if score > best else (best, num_stale + 1)
        if num_stale == patience:
            num_stale, factor = 0, max(LEAST, factor * CUT)
    return factor


def count_local_steps(
    config: TrainConfig, steps_per_epoch: int, local_epochs: int | None = None
) -> int:
    """Count the optimiser steps of a client in a round.

    Args:
        config: Of the run.
        steps_per_epoch: Batches of one pass over its slices.
        local_epochs: Passes in this round; by default as many as configured, the most there can be.
    """
    if config.local_steps is not None:
        return config.local_steps
    return (local_epochs or config.local_epochs) * steps_per_epoch
