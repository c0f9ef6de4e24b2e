"""One client's part in a round: from the global model to an update."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from training.config import TrainConfig
from training.data import Pass, Passes, Slice, SliceDataset, make_loader, read_batches
from training.federated.aggregate import State, Update, copy_state
from training.federated.client_memory import ClientMemory
from training.federated.exchange import download, upload
from training.federated.strategy import Strategy
from training.fit import FitResult, Stint, fit, make_optimizer
from training.runlog import Observer
from training.seeds import derive_seed


@dataclass(frozen=True)
class Trained:
    """An update, and how it came about.

    Attributes:
        update: What the server gets.
        result: What training gave.
        to_keep: What the client has to know in its next round, if its update is accepted.
        seconds: Of training.
        bytes_received: By the client.
        bytes_sent: By the client.
    """

    update: Update
    result: FitResult
    to_keep: State
    seconds: float
    bytes_received: int
    bytes_sent: int


class LocalClients:
    """All clients of a cache in one process, which train one after another.

    They share one network, one loader and its reading processes, so that nothing is opened or
    built anew from client to client and from round to round. What a client computes depends on its
    data, the model it is given, its own memory, the round and the seed alone, not on who trained
    before it.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        model: nn.Module,
        config: TrainConfig,
        *,
        strategy: Strategy,
        memory: ClientMemory,
    ) -> None:
        """Take hold of data and network.

        Args:
            dataset: Training slices of all clients.
            model: On the device where it trains; its weights are replaced by each client's.
            config: Of the run.
            strategy: Whose clients these are.
            memory: What they keep from round to round.
        """
        self._dataset = dataset
        self._model = model
        self._strategy = strategy
        self._memory = memory
        self._config = config
        self._passes = Passes(dataset, config.batch_size, tumour_share=config.tumour_share)
        self._loader: DataLoader[Slice] = make_loader(
            dataset,
            self._passes,
            num_workers=config.loader_workers,
            pin_memory=next(model.parameters()).is_cuda,
        )
        self._batches: Iterator[Slice] = iter(())

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count the optimiser steps of a round."""
        per_epoch = sum(self._passes.num_batches((client,)) for client in clients)
        return self._config.local_epochs * per_epoch

    def plan(self, clients: Sequence[int], round_number: int) -> None:
        """Decide who trains in a round, in which order; reading begins with the first of them.

        Args:
            clients: Who train, in this order.
            round_number: From 1.
        """
        self._passes.plan(
            [
                Pass((client,), derive_seed(self._config.seed, round_number, client, epoch))
                for client in clients
                for epoch in range(self._config.local_epochs)
            ]
        )
        self._batches = read_batches(self._loader)

    def train(
        self, client: int, model: State, extras: State, round_number: int, observer: Observer
    ) -> Trained:
        """Train the next client of the plan for the local epochs of a round.

        Batches of the client after it are read meanwhile.

        Args:
            client: Who trains.
            model: Where it starts, as the server has it; left as it is.
            extras: What the strategy sends along.
            round_number: From 1.
            observer: Told about every step.

        Raises:
            InputError: If a shard or the client's own memory is damaged.
        """
        start = time.perf_counter()
        exchange = self._config.exchange
        (received, model_bytes), (extras, extra_bytes) = (
            download(state, exchange) for state in (model, extras)
        )
        self._model.load_state_dict(received)
        kept = self._memory.load(client, round_number)
        rule = self._strategy.begin(self._model, extras, kept)
        with torch.random.fork_rng():
            result = fit(
                self._model,
                make_optimizer(self._model, self._config),
                self._batches,
                self._config,
                stint=self._stint(client, round_number),
                on_step=lambda loss: observer.step(
                    round_number=round_number, client=client, loss=loss
                ),
                adjust=rule.adjust,
            )
        trained = copy_state(self._model)
        extras, to_keep = rule.finish(self._model)
        state, sent_bytes = upload(trained, received, exchange)
        extras, sent_extra_bytes = download(extras, exchange)
        update = Update(
            client=client,
            num_examples=self._dataset.count_slices((client,)),
            num_steps=result.num_steps,
            loss=result.loss if result.loss is not None else math.nan,
            state=state,
            extras=extras,
        )
        return Trained(
            update,
            result,
            to_keep,
            time.perf_counter() - start,
            bytes_received=model_bytes + extra_bytes,
            bytes_sent=sent_bytes + sent_extra_bytes,
        )

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
