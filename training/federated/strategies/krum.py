"""Krum and Multi-Krum: the networks that have the nearest neighbours."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float64
from torch import Tensor, nn

from cache_schema.errors import InputError
from training.federated.aggregate import Server, Update, weighted_mean
from training.federated.spool import Spool, spool_updates
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class Krum(Strategy):
    r"""Krum and Multi-Krum, Blanchard et al. (2017), arXiv:1703.02757.

    $$ s(k) = \sum_{j \in N_k} \lVert w_k - w_j \rVert^2, \qquad w^{r+1} = \frac{1}{m} \sum_{k \in M} w_k $$

    with $N_k$ the $n - f - 2$ nearest others of client k, and M the m clients of the lowest score.
    Distances go over parameters alone: statistics of BatchNorm have other units and would drown them.
    The chosen networks are taken as they are, buffers included; among several all count the same, as
    a liar could name any number of examples. Of two equal scores the lower client number wins.

    It keeps nothing between rounds.

    Attributes:
        byzantine: The number f of liars to be tolerated; at least $2 f + 3$ clients have to report.
        keep: The number m of networks to average; 1 is Krum itself.
    """

    byzantine: Annotated[int, Ge(0)] = 1
    keep: Annotated[int, Gt(0)] = 1

    @property
    def least_clients(self) -> int:
        """How many clients have to report in a round."""
        return max(2 * self.byzantine + 3, self.byzantine + self.keep)

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Choose the most central networks.

        Raises:
            ValueError: If there is no update.
            InputError: If there are too few updates for this many liars.
        """
        with spool_updates(updates, server) as spool:
            if len(spool) < self.least_clients:
                raise InputError(
                    f"--strategy krum: {len(spool)} clients reported, byzantine={self.byzantine} and "
                    f"keep={self.keep} need at least {self.least_clients}: lower them, or take more clients"
                )
            scores = _score(_squared_distances(spool), self.byzantine)
            ranking = sorted(range(len(spool)), key=lambda k: (scores[k], spool.clients[k]))
            chosen = ((1.0, spool.read(index)) for index in ranking[: self.keep])
            return replace(server, model=weighted_mean(chosen))


def _squared_distances(spool: Spool) -> Float64[Tensor, "client client"]:
    num_clients = len(spool)
    pairs = torch.zeros(num_clients * (num_clients - 1) // 2, dtype=torch.float64)
    for block in spool.parameter_blocks():
        # Differences first: |a|² + |b|² - 2ab loses the distance of two networks that are close.
        pairs += nn.functional.pdist(block.to(torch.float64)).square()
    distances = torch.zeros(num_clients, num_clients, dtype=torch.float64)
    rows, columns = torch.triu_indices(num_clients, num_clients, offset=1)
    distances[rows, columns] = pairs
    return distances + distances.T


def _score(distances: Float64[Tensor, "client client"], byzantine: int) -> list[float]:
    nearest = distances.sort(dim=1).values[:, 1 : len(distances) - byzantine - 1]  # 0 is itself
    scores: list[float] = nearest.sum(dim=1).tolist()
    return scores
