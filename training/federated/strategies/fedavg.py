"""FedAvg: the mean of the clients' networks, weighted by their numbers of examples."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from training.federated.aggregate import Server, Update, average
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class FedAvg(Strategy):
    r"""Federated averaging, McMahan et al. (2017), arXiv:1602.05629, algorithm 1.

    $$ w^{r+1} = \sum_k \frac{n_k}{n} w_k^{r+1} $$

    It has no hyper-parameters and keeps nothing between rounds.
    """

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the networks."""
        return average(server, updates)
