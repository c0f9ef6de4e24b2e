"""Cyclic weight transfer: the model goes from client to client."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, final

from training.federated.aggregate import Server, Update
from training.federated.strategy import Strategy


@final
@dataclass(frozen=True)
class Cyclic(Strategy):
    r"""Cyclical weight transfer, Chang et al. (2018), doi:10.1093/jamia/ocy017.

    $$ w_k = \operatorname{train}_k(w_{k-1}), \quad w^{r+1} = w_K $$

    Nothing is averaged: each client trains the network of the client before it, and the last one's is
    the next model, BatchNorm's statistics included. Numbers of examples do not matter; the order
    does, and clients that come late in it are remembered best. A client that is absent, or whose
    update is refused, is passed over. It has no hyper-parameters and keeps nothing between rounds.
    """

    is_sequential: ClassVar[bool] = True

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Take the last network."""
        model = None
        for update in updates:
            model = update.state
        if model is None:
            raise ValueError("there is no update to aggregate")
        return replace(server, model=dict(model))
