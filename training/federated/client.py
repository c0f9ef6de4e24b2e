"""One client's part in a round: from the global model to an update."""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from training.config import TrainConfig
from training.data import ClientBatches, Slice, SliceDataset, make_loader
from training.federated.aggregate import State, Update
from training.fit import FitResult, fit
from training.runlog import Observer
from training.seeds import derive_seed, generator


@dataclass(frozen=True)
class Trained:
    """An update, and how it came about."""

    update: Update
    result: FitResult
    seconds: float


class LocalClients:
    """All clients of a cache in one process, which train one after another.

    They share one network, one loader and its reading processes, so that nothing is opened or
    built anew from client to client and from round to round. What a client computes depends on its
    data, the model it is given, the round and the seed alone, not on who trained before it.
    """

    def __init__(self, dataset: SliceDataset, model: nn.Module, config: TrainConfig) -> None:
        """Take hold of data and network.

        Args:
            dataset: Training slices of all clients.
            model: On the device where it trains; its weights are replaced by each client's.
            config: Of the run.
        """
        self._model = model
        self._config = config
        self._batches = ClientBatches(dataset, config.batch_size)
        self._loader: DataLoader[Slice] = make_loader(
            dataset,
            self._batches,
            num_workers=config.loader_workers,
            pin_memory=next(model.parameters()).is_cuda,
        )

    def train(self, client: int, state: State, round_number: int, observer: Observer) -> Trained:
        """Train one client for the local epochs of one round.

        Args:
            client: Who trains.
            state: The global model, left as it is.
            round_number: From 1.
            observer: Told about every step.

        Raises:
            InputError: If a shard is damaged.
        """
        start = time.perf_counter()
        stream = (round_number, client)
        self._model.load_state_dict(state)
        self._batches.select(client, generator(self._config.seed, *stream, 0))
        with torch.random.fork_rng():
            # Dropout draws from the global generator.
            torch.manual_seed(derive_seed(self._config.seed, *stream, 1))
            result = fit(
                self._model,
                self._loader,
                self._config,
                first_epoch=(round_number - 1) * self._config.local_epochs,
                generator=generator(self._config.seed, *stream, 2),
                on_step=lambda loss: observer.step(
                    round_number=round_number, client=client, loss=loss
                ),
            )
        trained = {
            name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()
        }
        num_examples = len(self._batches.rows)
        update = Update(client, num_examples, trained)
        return Trained(update, result, time.perf_counter() - start)
