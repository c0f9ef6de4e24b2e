"""What the server asks of clients in a round and what comes back, wherever they train."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from training.federated.aggregate import State
from training.runlog import Observer


@dataclass(frozen=True)
class Order:
    """A round's work, the same for every client that gets it.

    Attributes:
        round: From 1.
        model: Where to start, as it travels, see `training.federated.exchange`.
        extras: What the strategy sends along, as it travels.
        remembered: For every client that keeps something from round to round, the last one whose
            update was accepted: what it kept in that one counts.
        local_epochs: Passes over the client's slices; by default as configured.
        rate_factor: Share of the learning rate that is left, where it follows no cosine.
    """

    round: int
    model: State
    extras: State = field(default_factory=dict)
    remembered: Mapping[int, int] = field(default_factory=dict)
    local_epochs: int | None = None
    rate_factor: float = 1.0


@dataclass(frozen=True)
class Reply:
    """What a client sends back.

    Attributes:
        client: Who sends it.
        num_examples: Slices that it trained on in an epoch.
        num_steps: Optimiser steps that it took.
        loss: Mean over these steps; None if there was none.
        dice: Of each region, over all augmented training batches.
        seconds: Of training.
        keeps: Whether it has kept something for its next round.
        fault: Why it stopped early, or None.
        model: Its network, as it travels.
        extras: What the strategy wants from it besides, as it travels.
    """

    client: int
    num_examples: int
    num_steps: int
    loss: float | None
    dice: dict[str, float]
    seconds: float
    keeps: bool
    fault: str | None
    model: State
    extras: State


@dataclass(frozen=True)
class Lost:
    """A client that was asked and does not report.

    Attributes:
        client: Who.
        reason: One line.
    """

    client: int
    reason: str


@runtime_checkable
class Clients(Protocol):
    """The clients of a federation, in this process or anywhere."""

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count the optimiser steps of a round in which these clients train, the most there can be."""

    def train(
        self, clients: Sequence[int], order: Order, observer: Observer
    ) -> Iterator[Reply | Lost]:
        """Let clients train, and give what they report, in the order of `clients`.

        Raises:
            InputError: If training cannot go on, such as for a damaged shard on this machine.
        """
