"""The strategies that `--strategy` knows."""

from collections.abc import Callable, Iterable
from typing import Final, Protocol, runtime_checkable

from torch import Tensor

from cache_schema.errors import InputError
from training.federated.aggregate import State, Update
from training.federated.strategies.fedavg import FedAvg


@runtime_checkable
class Strategy(Protocol):
    """How the updates of a round become the next model."""

    def aggregate(self, model: State, updates: Iterable[Update]) -> dict[str, Tensor]:
        """Turn the round's sound updates, which come one after another, into the next model."""


STRATEGIES: Final[dict[str, Callable[[], Strategy]]] = {"fedavg": FedAvg}
"""Every strategy by its name on the command line."""


def make_strategy(name: str) -> Strategy:
    """Make a strategy with its default hyper-parameters.

    Raises:
        InputError: If there is no such strategy; the message lists those that there are.
    """
    if name not in STRATEGIES:
        raise InputError(
            f"--strategy {name}: unknown; choose one of {', '.join(sorted(STRATEGIES))}"
        )
    return STRATEGIES[name]()
