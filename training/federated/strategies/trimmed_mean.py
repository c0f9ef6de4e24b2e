"""Coordinate-wise trimmed mean of the clients' networks."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from annotated_types import Ge, Lt
from jaxtyping import Shaped
from torch import Tensor

from training.federated.aggregate import Server, Update
from training.federated.spool import spool_updates
from training.federated.strategies.median import coordinate_median
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class TrimmedMean(Strategy):
    r"""Coordinate-wise trimmed mean, Yin et al. (2018), arXiv:1803.01498, definition 2.

    $$ w^{r+1}_i = \frac{1}{K - 2b} \sum_{k=b+1}^{K-b} w_{(k),i}, \qquad b = \lfloor \beta K \rfloor $$

    with $w_{(1),i} \le \dots \le w_{(K),i}$ the sorted values. With fewer than $1 / \beta$ clients
    nothing is cut, and one liar is enough to spoil the model. Every client counts the same, as a liar
    could name any number of examples. Buffers follow the same rule; of integers the median is taken.

    It keeps nothing between rounds.

    Attributes:
        trim: The share of clients that is cut at each end, beta.
    """

    trim: Annotated[float, Ge(0), Lt(0.5)] = 0.2

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Take the mean of the middle of every value."""
        with spool_updates(updates, server) as spool:
            return replace(server, model=spool.combine(self._trimmed_mean))

    def _trimmed_mean(self, values: Shaped[Tensor, "client value"]) -> Shaped[Tensor, " value"]:
        if not values.is_floating_point():
            return coordinate_median(values)
        cut = self.count_cut(len(values))
        middle = values.sort(dim=0).values[cut : len(values) - cut]
        return middle.mean(dim=0, dtype=torch.float64).to(values.dtype)

    def count_cut(self, num_clients: int) -> int:
        """Count the clients that are cut at each end."""
        cut = int(self.trim * num_clients + 1e-9)  # 0.29 * 100 is 28.999999999999996
        return min(cut, (num_clients - 1) // 2)
