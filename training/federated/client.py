"""One client's part in a round: from the global model to an update."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from training.config import TrainConfig
from training.data import Pass, Passes, Slice, SliceDataset, make_loader, read_batches
from training.federated.aggregate import State, Update
from training.fit import FitResult, Stint, fit, make_optimizer
from training.runlog import Observer
from training.seeds import derive_seed


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
        self._dataset = dataset
        self._model = model
        self._config = config
        self._passes = Passes(dataset, config.batch_size, tumour_share=config.tumour_share)
        self._loader: DataLoader[Slice] = make_loader(
            dataset,
            self._passes,
            num_workers=config.loader_workers,
            pin_memory=next(model.parameters()).is_cuda,
        )

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count the optimiser steps of a round."""
        per_epoch = sum(self._passes.num_batches((client,)) for client in clients)
        return self._config.local_epochs * per_epoch

    def train(
        self, clients: Sequence[int], state: State, round_number: int, observer: Observer
    ) -> Iterator[Trained]:
        """Train clients one after another for the local epochs of one round.

        Batches of the next client are read while one trains.

        Args:
            clients: Who train, in this order.
            state: The global model, left as it is.
            round_number: From 1.
            observer: Told about every step.

        Raises:
            InputError: If a shard is damaged.
        """
        self._passes.plan(
            [
                Pass((client,), derive_seed(self._config.seed, round_number, client, epoch))
                for client in clients
                for epoch in range(self._config.local_epochs)
            ]
        )
        batches = read_batches(self._loader)
        for client in clients:
            yield self._train(client, state, round_number, batches, observer)

    def _train(
        self,
        client: int,
        state: State,
        round_number: int,
        batches: Iterator[Slice],
        observer: Observer,
    ) -> Trained:
        start = time.perf_counter()
        self._model.load_state_dict(state)
        with torch.random.fork_rng():
            result = fit(
                self._model,
                make_optimizer(self._model, self._config),
                batches,
                self._config,
                stint=self._stint(client, round_number),
                on_step=lambda loss: observer.step(
                    round_number=round_number, client=client, loss=loss
                ),
            )
        trained = {
            name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()
        }
        update = Update(client, self._dataset.count_slices((client,)), trained)
        return Trained(update, result, time.perf_counter() - start)

    def _stint(self, client: int, round_number: int) -> Stint:
        steps_per_epoch = self._passes.num_batches((client,))
        local_epochs = self._config.local_epochs
        total_epochs = self._config.rounds * local_epochs
        return Stint(
            stream=(round_number, client),
            start=0,
            stop=local_epochs * steps_per_epoch,
            progress=(round_number - 1) / self._config.rounds,
            progress_per_step=1.0 / (total_epochs * steps_per_epoch),
        )
