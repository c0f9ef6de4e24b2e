"""Clients that train in this process: from the global model to a reply."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import DataLoader

from training.config import TrainConfig
from training.data import Pass, Passes, Slice, SliceDataset, make_loader, read_batches
from training.federated.aggregate import copy_state
from training.federated.client_memory import ClientMemory
from training.federated.exchange import narrow, narrow_change, widen
from training.federated.strategy import Strategy
from training.federated.work import Order, Reply
from training.fit import Stint, fit, make_optimizer
from training.runlog import Observer
from training.seeds import derive_seed


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

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count the optimiser steps of a round."""
        per_epoch = sum(self._passes.num_batches((client,)) for client in clients)
        return self._config.local_epochs * per_epoch

    def train(self, clients: Sequence[int], order: Order, observer: Observer) -> Iterator[Reply]:
        """Let clients train one after another; batches of the next one are read meanwhile.

        Raises:
            InputError: If a shard or a client's own memory is damaged.
        """
        self._passes.plan(
            [
                Pass((client,), derive_seed(self._config.seed, order.round, client, epoch))
                for client in clients
                for epoch in range(self._config.local_epochs)
            ]
        )
        batches = read_batches(self._loader)
        received = replace(order, model=widen(order.model), extras=widen(order.extras))
        for client in clients:
            yield self._train_one(client, received, batches, observer)

    def _train_one(
        self, client: int, order: Order, batches: Iterator[Slice], observer: Observer
    ) -> Reply:
        start = time.perf_counter()
        remembered = order.remembered.get(client)
        self._memory.forget_all_but(client, remembered)
        self._model.load_state_dict(dict(order.model))
        rule = self._strategy.begin(
            self._model, order.extras, self._memory.load(client, remembered)
        )
        with torch.random.fork_rng():
            result = fit(
                self._model,
                make_optimizer(self._model, self._config),
                batches,
                self._config,
                stint=self._stint(client, order.round),
                on_step=lambda loss: observer.step(
                    round_number=order.round, client=client, loss=loss
                ),
                adjust=rule.adjust,
            )
        trained = copy_state(self._model)
        to_send, to_keep = rule.finish(self._model)
        if to_keep:
            self._memory.save(client, order.round, to_keep)
        return Reply(
            client=client,
            num_examples=self._dataset.count_slices((client,)),
            num_steps=result.num_steps,
            loss=result.loss,
            dice=result.dice,
            seconds=time.perf_counter() - start,
            keeps=bool(to_keep),
            fault=result.fault,
            model=narrow_change(trained, order.model, self._config.exchange),
            extras=narrow(to_send, self._config.exchange),
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
