"""Clients that train in this process: from the global model to a reply."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.data import DataLoader

from training.config import TrainConfig
from training.data.batches import Example, Pass, Shifts, TrainingSet, make_loader, read_batches
from training.device import compile_where_it_pays, fork_random, keep_freed_memory
from training.federated.aggregate import copy_state
from training.federated.client_memory import ClientMemory
from training.federated.exchange import narrow, narrow_change, widen
from training.federated.schedule import count_local_steps
from training.federated.strategy import Strategy
from training.federated.work import Order, Reply
from training.fit import Stint, fit, make_optimizer
from training.models.initial import random_model
from training.runlog import Observer
from training.seeds import derive_seed
from training.training_set import plan_batches


@dataclass(frozen=True)
class Workplace:
    """All that training any client of a run takes, but a network and a device; it can be sent to a process.

    Attributes:
        dataset: Training examples of all clients.
        config: Of the run.
        strategy: As `config` names it.
        memory: What clients keep from round to round.
        least_batch: Examples that the network needs at a time.
    """

    dataset: TrainingSet
    config: TrainConfig
    strategy: Strategy
    memory: ClientMemory
    least_batch: int = 2

    def open(self, device: torch.device) -> "LocalClients":
        """Build the clients of this process; weights come with every order."""
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)
        keep_freed_memory(device)
        model = random_model(self.config)
        compile_where_it_pays(model, self.config.compile, device)
        return LocalClients(self, model.to(device))

    def shifts(self) -> Shifts:
        """Make the sampler of the clients' batches."""
        return plan_batches(self.config, self.dataset, self.least_batch)

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count the optimiser steps of a round, the most there can be."""
        shifts = self.shifts()
        return sum(
            count_local_steps(self.config, shifts.num_batches((client,))) for client in clients
        )


class LocalClients:
    """All clients of a cache in one process, which train one after another.

    They share one network, one loader and its reading processes, so that nothing is opened or
    built anew from client to client and from round to round. What a client computes depends on its
    data, the model it is given, its own memory, the round and the seed alone, not on who trained
    before it.
    """

    def __init__(self, workplace: Workplace, model: nn.Module) -> None:
        """Take hold of data and network.

        Args:
            workplace: Of the run.
            model: On the device where it trains; its weights are replaced by each client's.
        """
        self._workplace = workplace
        self._config = workplace.config
        self._model = model
        self._shifts = workplace.shifts()
        self._loader: DataLoader[Example] = make_loader(
            workplace.dataset,
            self._shifts,
            num_workers=self._config.loader_workers,
            pin_memory=next(model.parameters()).is_cuda,
        )

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count the optimiser steps of a round, the most there can be."""
        return self._workplace.count_steps(clients)

    def train(self, clients: Sequence[int], order: Order, observer: Observer) -> Iterator[Reply]:
        """Let clients train one after another; batches of the next one are read meanwhile.

        Raises:
            InputError: If a shard or a client's own memory is damaged.
        """
        self._shifts.plan_shifts([self._shift(client, order) for client in clients])
        batches = read_batches(self._loader)
        received = replace(order, model=widen(order.model), extras=widen(order.extras))
        for client in clients:
            yield self._train_one(client, received, batches, observer)

    def _train_one(
        self, client: int, order: Order, batches: Iterator[Example], observer: Observer
    ) -> Reply:
        start = time.perf_counter()
        memory, remembered = self._workplace.memory, order.remembered.get(client)
        memory.forget_all_but(client, remembered)
        self._model.load_state_dict(dict(order.model))
        kept = memory.load(client, remembered)
        rule = self._workplace.strategy.begin(self._model, order.extras, kept)
        with fork_random(next(self._model.parameters()).device):
            result = fit(
                self._model,
                make_optimizer(self._model, self._config),
                batches,
                self._config,
                stint=self._stint(client, order),
                on_step=lambda loss: observer.step(
                    round_number=order.round, client=client, loss=loss
                ),
                adjust=rule.adjust,
            )
        trained = copy_state(self._model)
        to_send, to_keep = rule.finish(self._model)
        if to_keep:
            memory.save(client, order.round, to_keep)
        return Reply(
            client=client,
            num_examples=self._workplace.dataset.count((client,)),
            num_steps=result.num_steps,
            loss=result.loss,
            dice=result.dice,
            seconds=time.perf_counter() - start,
            keeps=bool(to_keep),
            fault=result.fault,
            model=narrow_change(trained, order.model, self._config.exchange),
            extras=narrow(to_send, self._config.exchange),
        )

    def _num_steps(self, client: int, order: Order) -> int:
        steps_per_epoch = self._shifts.num_batches((client,))
        return count_local_steps(self._config, steps_per_epoch, order.local_epochs)

    def _shift(self, client: int, order: Order) -> tuple[list[Pass], int]:
        num_steps = self._num_steps(client, order)
        num_passes = math.ceil(num_steps / self._shifts.num_batches((client,)))
        passes = [
            Pass((client,), derive_seed(self._config.seed, order.round, client, epoch))
            for epoch in range(num_passes)
        ]
        return passes, num_steps

    def _stint(self, client: int, order: Order) -> Stint:
        num_steps = self._num_steps(client, order)
        return Stint(
            stream=(order.round, client),
            start=0,
            stop=num_steps,
            progress=(order.round - 1) / self._config.rounds,
            progress_per_step=1.0 / (self._config.rounds * num_steps),
            rate_factor=order.rate_factor,
        )
