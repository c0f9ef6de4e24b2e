"""FedAdagrad: the step of a weight shrinks with all that it has changed so far."""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import add
from typing import Annotated, final

from annotated_types import Gt

from training.federated.aggregate import Server, Update
from training.federated.strategies.server_step import adaptive_round
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class FedAdagrad(Strategy):
    r"""Adaptive federated optimisation with Adagrad, Reddi et al. (2021), arXiv:2003.00295, algorithm 2.

    $$ v \leftarrow v + \Delta^2, \quad w \leftarrow w + \eta \frac{\Delta}{\sqrt v + \tau} $$

    where $\Delta$ is the mean change of the clients' parameters, weighted by their numbers of examples;
    the algorithm's momentum is left out, $\beta_1 = 0$. Buffers are averaged as in FedAvg. The server
    keeps $v$, one tensor a parameter. The defaults are those of FedAdam, for its reasons; a weight
    whose changes agree moves by about $\eta / \sqrt r$ in round $r$.

    Attributes:
        eta: $\eta$, step size in the first round.
        tau: $\tau$; larger is less adaptive.
    """

    eta: Annotated[float, Gt(0)] = 3e-3
    tau: Annotated[float, Gt(0)] = 1e-4

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Take one step of Adagrad."""
        return adaptive_round(
            server, updates, eta=self.eta, tau=self.tau, beta1=0.0, next_variance=add
        )
