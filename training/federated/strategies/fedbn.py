"""FedBN: every client keeps its own BatchNorm."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

from torch import nn

from cache_schema.errors import InputError
from training.federated.aggregate import Server, State, Update, average
from training.federated.strategy import NOTHING, LocalRule, Strategy

BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""What stays with a client; known by type, as names are up to the network."""


@final
@dataclass(frozen=True)
class FedBN(Strategy):
    r"""Local batch normalisation, Li et al. (2021), arXiv:2102.07623.

    Scanners and protocols shift intensities, and BatchNorm is where a network holds that shift. A
    client begins a round with

    $$ \sum_j \frac{n_j}{n} w_j \text{ outside BatchNorm}, \quad w_k \text{ inside} $$

    where $w_k$ is its own network after the last round that it took part in: parameters and statistics
    of every BatchNorm, which is what the client keeps. The updates are whole networks, and the global
    model holds the mean of everybody's BatchNorm as well. That mean serves a client that has none of its
    own yet, and evaluation, where no client is at hand; scores of the global model are therefore not
    those that the paper reports, of each client's own network. The server keeps nothing between
    rounds, and there are no hyper-parameters.
    """

    def begin(self, model: nn.Module, extras: State, memory: State) -> LocalRule:  # noqa: ARG002
        """Put the client's own BatchNorm back into the network.

        Raises:
            InputError: If the network has none: this would be FedAvg under another name.
        """
        if not any(isinstance(layer, BATCH_NORMS) for layer in model.modules()):
            raise InputError("--strategy fedbn: the network has no BatchNorm; take fedavg instead")
        model.load_state_dict(dict(memory), strict=False)
        return _KeepBatchNorm()

    def aggregate(self, server: Server, updates: Iterable[Update]) -> Server:
        """Average the networks."""
        return average(server, updates)


class _KeepBatchNorm(LocalRule):
    def finish(self, model: nn.Module) -> tuple[State, State]:
        """Keep parameters and statistics of every BatchNorm."""
        layers = {name for name, layer in model.named_modules() if isinstance(layer, BATCH_NORMS)}
        own = {
            name: tensor.detach().cpu().clone()
            for name, tensor in model.state_dict().items()
            if name.rpartition(".")[0] in layers
        }
        return NOTHING, own
