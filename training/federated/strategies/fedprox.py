"""FedProx: clients are pulled back to the global model while they train."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, final

from annotated_types import Ge
from torch import Tensor, nn

from training.federated.aggregate import Server, State, Update, average
from training.federated.strategy import LocalRule, Strategy


@final
@dataclass(frozen=True)
class FedProx(Strategy):
    r"""Federated averaging with a proximal term, Li et al. (2020), arXiv:1812.06127.

    A client minimises its own loss and stays near the global model $w^r$,

    $$ F_k(w) + \frac{\mu}{2} \lVert w - w^r \rVert^2 $$

    over the parameters; statistics of BatchNorm have no gradient that could pull them. The term
    reaches the optimiser as its gradient, $\mu (w - w^r)$, which is 0 and not NaN where a round
    starts. The server averages as FedAvg does and keeps nothing between rounds.

    Attributes:
        mu: Strength of the pull; 0 is FedAvg. Adam divides by the size of the whole gradient, so what
            counts is how the pull compares with the gradient of the loss.
    """

    mu: Annotated[float, Ge(0)] = 0.01

    def begin(self, model: nn.Module, extras: State, memory: State) -> LocalRule:  # noqa: ARG002
        """Remember where the round starts."""
        start = {name: value.detach().clone() for name, value in model.named_parameters()}
        return _Pull(self.mu, start)

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the networks."""
        return average(server, updates)


class _Pull(LocalRule):
    def __init__(self, mu: float, start: dict[str, Tensor]) -> None:
        self._mu = mu
        self._start = start

    def adjust(self, model: nn.Module) -> None:
        """Add the proximal term's gradient."""
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self._start[name], alpha=self._mu)
