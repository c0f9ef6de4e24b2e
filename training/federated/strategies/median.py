"""Coordinate-wise median of the clients' networks."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from training.federated.aggregate import Server, Update
from training.federated.spool import spool_updates
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class Median(Strategy):
    r"""Coordinate-wise median, Yin et al. (2018), arXiv:1803.01498, definition 1.

    $$ w^{r+1}_i = \operatorname{med} \{ w_{1,i}, \dots, w_{K,i} \} $$

    With an even number of clients it is the mean of the two in the middle. Every client counts the
    same, as a liar could name any number of examples. Buffers follow the same rule; of integers the
    lower one of the two is taken, and not the largest as elsewhere, which one liar could choose.

    It has no hyper-parameters and keeps nothing between rounds.
    """

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Take the median of every value."""
        with spool_updates(updates, server) as spool:
            return replace(server, model=spool.combine(coordinate_median))


def coordinate_median(values: Shaped[Tensor, "client value"]) -> Shaped[Tensor, " value"]:
    """Take the median over clients; of integers the lower one, which somebody has sent."""
    num_clients = len(values)
    lower = values.kthvalue((num_clients + 1) // 2, dim=0).values
    if num_clients % 2 or not values.is_floating_point():
        return lower
    upper = values.kthvalue(num_clients // 2 + 1, dim=0).values
    return torch.stack((lower, upper)).mean(dim=0, dtype=torch.float64).to(values.dtype)
