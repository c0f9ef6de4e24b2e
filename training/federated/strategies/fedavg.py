"""FedAvg: the mean of the clients' networks, weighted by their numbers of examples."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from torch import Tensor

from training.federated.aggregate import State, Update, weighted_mean


@final
@dataclass(frozen=True)
class FedAvg:
    r"""Federated averaging, McMahan et al. (2017), arXiv:1602.05629, algorithm 1.

    $$ w^{r+1} = \sum_k \frac{n_k}{n} w_k^{r+1} $$

    It has no hyper-parameters and keeps nothing between rounds.
    """

    def aggregate(self, model: State, updates: Iterable[Update]) -> dict[str, Tensor]:  # noqa: ARG002
        """Turn the round's sound updates into the next model.

        Args:
            model: The model that the clients started from; FedAvg does not need it.
            updates: One after another, in client order.

        Raises:
            ValueError: If there is no update.
        """
        return weighted_mean((float(update.num_examples), update.state) for update in updates)
