"""FedAdam: Adam at the server, with the clients' mean change as its gradient."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, final

from annotated_types import Ge, Gt, Lt
from torch import Tensor

from training.federated.aggregate import Server, Update
from training.federated.strategies.server_step import adaptive_round
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class FedAdam(Strategy):
    r"""Adaptive federated optimisation with Adam, Reddi et al. (2021), arXiv:2003.00295, algorithm 2.

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) \Delta, \quad
    v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2, \quad
    w \leftarrow w + \eta \frac{m}{\sqrt v + \tau} $$

    where $\Delta$ is the mean change of the clients' parameters, weighted by their numbers of examples.
    Buffers are averaged as in FedAvg. The server keeps $m$ and $v$, two tensors a parameter.

    A weight whose changes agree moves by about $\eta$ a round, however far the clients moved it. They
    move the weights of a pretrained network by 1e-3 to 1e-2, and measure BatchNorm's statistics there; a
    model that leaps beyond loses what it had learned, and these statistics do not fit it. So the default
    $\eta$ is the middle of that range. The default $\tau$ lies below it: the first rounds go about as far
    as FedAvg's, and a weight that hardly moves is left nearly alone.

    Attributes:
        eta: $\eta$, step size.
        tau: $\tau$; larger is less adaptive.
        beta1: $\beta_1$, share of the old momentum.
        beta2: $\beta_2$, share of the old variance.
    """

    eta: Annotated[float, Gt(0)] = 3e-3
    tau: Annotated[float, Gt(0)] = 1e-4
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Take one step of Adam."""
        return adaptive_round(
            server,
            updates,
            eta=self.eta,
            tau=self.tau,
            beta1=self.beta1,
            next_variance=self._next_variance,
        )

    def _next_variance(self, variance: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * variance + (1.0 - self.beta2) * square
