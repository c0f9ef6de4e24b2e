"""The two seams of a strategy: what a client does besides training, and what the server does with updates."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import nn

from training.federated.aggregate import Server, State, Update

NOTHING: State = {}


class LocalRule:
    """A client's side of a strategy during one round; this one adds nothing.

    A strategy whose clients do more subclasses it, and overrides what it needs.
    """

    def adjust(self, model: nn.Module) -> None:
        """Change the gradients of a step, after backward and before the optimiser."""

    def finish(self, model: nn.Module) -> tuple[State, State]:  # noqa: ARG002
        """End the client's round.

        Args:
            model: As it was trained.

        Returns:
            What goes to the server besides the network, and what the client keeps for its next round.
        """
        return NOTHING, NOTHING


class Strategy(ABC):
    """How clients train and how their updates become the next model.

    Strategies are frozen dataclasses of hyper-parameters. They keep nothing themselves: what lives from
    round to round is the server's memory, passed in and returned, and each client's own.
    """

    is_sequential: ClassVar[bool] = False
    """True if a client starts from the client before it, not from the global model."""

    @property
    def least_clients(self) -> int:
        """How many clients have to report in a round."""
        return 1

    def broadcast(self, server: Server) -> State:  # noqa: ARG002
        """Choose what every client gets besides the global model."""
        return NOTHING

    def begin(self, model: nn.Module, extras: State, memory: State) -> LocalRule:  # noqa: ARG002
        """Begin a client's round.

        Args:
            model: The client's network, holding the global model; may be changed.
            extras: From `broadcast`.
            memory: What the client kept in the last round that it took part in, or nothing.
        """
        return LocalRule()

    def figures(self, server: Server) -> Mapping[str, float]:  # noqa: ARG002
        """Tell what belongs into the log of a finished round, such as the privacy that was spent."""
        return {}

    @abstractmethod
    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Turn the round's sound updates into the next model.

        Args:
            server: As the clients found it.
            updates: One after another, in client order; each is gone when the next one comes.

        Returns:
            The server after the round, with the same `round`; whoever runs it counts.

        Raises:
            ValueError: If there is no update.
        """
