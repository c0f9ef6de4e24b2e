"""FedYogi: as FedAdam, but the step size of a weight recovers slowly after large changes."""

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
class FedYogi(Strategy):
    r"""Adaptive federated optimisation with Yogi, Reddi et al. (2021), arXiv:2003.00295, algorithm 2.

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) \Delta, \quad
    v \leftarrow v - (1 - \beta_2) \Delta^2 \operatorname{sign}(v - \Delta^2), \quad
    w \leftarrow w + \eta \frac{m}{\sqrt v + \tau} $$

    where $\Delta$ is the mean change of the clients' parameters, weighted by their numbers of examples.
    The variance moves by a share of $\Delta^2$, not of its distance to it, so that it falls slowly when
    changes become small all at once; it never falls below zero. Buffers are averaged as in FedAvg. The
    server keeps $m$ and $v$, two tensors a parameter. The defaults are those of FedAdam, for its reasons.

    Attributes:
        eta: $\eta$, step size.
        tau: $\tau$; larger is less adaptive.
        beta1: $\beta_1$, share of the old momentum.
        beta2: $\beta_2$; nearer to 1 the variance moves more slowly.
    """

    eta: Annotated[float, Gt(0)] = 3e-3
    tau: Annotated[float, Gt(0)] = 1e-4
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Take one step of Yogi."""
        return adaptive_round(
            server,
            updates,
            eta=self.eta,
            tau=self.tau,
            beta1=self.beta1,
            next_variance=self._next_variance,
        )

    def _next_variance(self, variance: Tensor, square: Tensor) -> Tensor:
        return variance - (1.0 - self.beta2) * square * (variance - square).sign()
