"""Top-K mean: the average of the K networks that are nearest to the median."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from annotated_types import Gt
from jaxtyping import Float64
from torch import Tensor

from training.federated.aggregate import Server, Update, weighted_mean
from training.federated.spool import Spool, spool_updates
from training.federated.strategies.median import coordinate_median
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class TopKMean(Strategy):
    r"""The mean of the K networks that are nearest to the coordinate-wise median of all.

    $$ w^{r+1} = \frac{\sum_{j \in T} n_j w_j}{\sum_{j \in T} n_j}, \qquad
    T = \operatorname*{arg\,min}_{|T| = K} \sum_{j \in T} \lVert w_j - \operatorname{med}_i w_i \rVert^2 $$

    The name is used for several things; this definition is ours. Distances are Euclidean and go over
    parameters alone. The chosen networks are averaged with their buffers, weighted by numbers of
    examples as in FedAvg. Of two equal distances the lower client number wins. Where no more than K
    clients report it is FedAvg. A liar near the median has the weight that it claims; where that is
    a danger take `krum` or `median`.

    It keeps nothing between rounds.

    Attributes:
        k: How many networks are averaged.
    """

    k: Annotated[int, Gt(0)] = 3

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the networks near the median."""
        with spool_updates(updates, server) as spool:
            distances = _squared_distances_to_median(spool).tolist()
            ranking = sorted(range(len(spool)), key=lambda j: (distances[j], spool.clients[j]))
            chosen = (
                (float(spool.num_examples[index]), spool.read(index)) for index in ranking[: self.k]
            )
            return replace(server, model=weighted_mean(chosen))


def _squared_distances_to_median(spool: Spool) -> Float64[Tensor, " client"]:
    distances = torch.zeros(len(spool), dtype=torch.float64)
    for block in spool.parameter_blocks():
        offsets = block.to(torch.float64) - coordinate_median(block)
        distances += offsets.square_().sum(dim=1)
    return distances
