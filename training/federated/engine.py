"""The round loop of a federation inside one process."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from torch import nn

from cache_schema.errors import InputError
from cache_schema.vocabulary import REGIONS
from training.checkpoint import load_resume, save_resume, save_weights
from training.config import TrainConfig
from training.federated.aggregate import Server, Update, copy_state, find_fault
from training.federated.client import LocalClients, Trained
from training.federated.client_memory import ClientMemory
from training.federated.hostile import Liars, Turnout, choose_liars, draw_turnout
from training.federated.strategies.registry import make_strategy
from training.federated.strategy import Strategy
from training.runlog import Board, ClientRecord, Observer, RoundRecord, open_log
from training.session import open_session

MEMORY_FOLDER: Final = "clients"
"""Of a run: what its clients keep from round to round, where the strategy wants that."""


def run_federation(
    config: TrainConfig,
    cache: Path,
    run: Path,
    observer: Observer,
    *,
    resume: bool = False,
    boards: Sequence[Board] = (),
) -> None:
    """Train a model over all clients of a cache and save it after every round.

    In each round the clients that take part train from the global model, in client order, and the
    strategy takes the updates as they come: only one of them is in memory. A client whose loss or
    update is not finite is refused and logged, and the round goes on without it. What a client does
    follows from the global model, its own memory, the round and the seed, so a run that was killed
    goes on from its last round with the same bits.

    Args:
        config: Of the run; saved with it.
        cache: A finished cache; its test set is not touched.
        run: A new folder for settings, log and weights; with `resume` that of the run to go on with.
        observer: Told about progress.
        resume: Go on with a run.
        boards: Where to show the scalars of every round, besides TensorBoard.

    Raises:
        InputError: If the cache or an option cannot be used, `run` is not as it should be, weights
            cannot be written, or a round has no sound update.
    """
    strategy = make_strategy(config.strategy, config.strategy_options)
    session = open_session(config, cache, run, resume=resume)
    liars = choose_liars(session.members, config)
    server = _load_server(run, session.model) if resume else _new_server(session.model)
    memory = ClientMemory(run / MEMORY_FOLDER)
    clients = LocalClients(
        session.dataset,
        session.model.to(session.device),
        config,
        strategy=strategy,
        memory=memory,
    )
    numbers = range(server.round + 1, config.rounds + 1)
    turnouts = [draw_turnout(session.members, number, config) for number in numbers]
    num_steps = sum(clients.count_steps(turnout.present) for turnout in turnouts)
    observer.started(num_rounds=config.rounds, num_steps=num_steps)
    with open_log(run, boards) as log:
        log.record(
            "resumed" if resume else "started",
            cache=str(cache),
            clients=session.members,
            byzantine=sorted(liars.clients),
            round=server.round + 1,
        )
        for number, turnout in zip(numbers, turnouts, strict=True):
            one_round = _Round(number, turnout, server, clients, memory, strategy, liars, observer)
            server, record = one_round.carry_out()
            log.round_done(record)
            _save_server(run, server)
            memory.forget_before(number)
            observer.round_done(record)
        log.record("finished")


def _new_server(model: nn.Module) -> Server:
    return Server(
        model=copy_state(model),
        trainable=frozenset(name for name, _ in model.named_parameters()),
    )


def _load_server(run: Path, model: nn.Module) -> Server:
    """Read the server after the last finished round of a run, or make a new one if there is none."""
    server = _new_server(model)
    saved = load_resume(run)
    if saved is None:
        return server
    groups, position = saved
    state, memory = groups["model"], groups.get("memory", {})
    save_weights(run, state, round_number=position["round"])  # whatever became of the file
    return replace(server, model=state, memory=memory, round=position["round"])


def _save_server(run: Path, server: Server) -> None:
    """Save the model for everybody, then all that going on needs, in this order.

    After a kill between the two the round is done again, and with the same bits.
    """
    save_weights(run, server.model, round_number=server.round)
    save_resume(run, {"model": server.model, "memory": server.memory}, {"round": server.round})


@dataclass(frozen=True)
class _Round:
    """One round, from the server before it to the server after it."""

    number: int
    turnout: Turnout
    server: Server
    clients: LocalClients
    memory: ClientMemory
    strategy: Strategy
    liars: Liars
    observer: Observer
    _records: list[ClientRecord] = field(default_factory=list)

    def carry_out(self) -> tuple[Server, RoundRecord]:
        """Train who takes part, and aggregate."""
        start = time.perf_counter()
        server = self.strategy.aggregate(self.server, self._sound_updates())
        server = replace(server, round=self.number)
        return server, self._summary(server, time.perf_counter() - start)

    def _sound_updates(self) -> Iterator[Update]:
        """Note how every client fared and let the updates through that are fit for aggregation."""
        extras = self.strategy.broadcast(self.server)
        model = self.server.model
        self.clients.plan(self.turnout.present, self.number)
        for client in self.turnout.present:
            trained = self.clients.train(client, model, extras, self.number, self.observer)
            update = self.liars.falsify(trained.update, model, self.number)
            fault = trained.result.fault or find_fault(update, model)
            self._records.append(_client_record(trained, fault))
            if fault is None:
                self.memory.save(trained.update.client, self.number, trained.to_keep)
                model = update.state if self.strategy.is_sequential else model
                yield update
        if all(record.refused for record in self._records):
            raise InputError(
                f"no sound update in round {self.number} ({self._records[0].refused}); the learning "
                "rate may be too high; the model of the round before is still on disk"
            )

    def _summary(self, server: Server, seconds: float) -> RoundRecord:
        sound = [record for record in self._records if record.refused is None]
        weights = [record.num_examples for record in sound]
        losses = [record.loss for record in sound if record.loss is not None]
        return RoundRecord(
            round=self.number,
            loss=float(np.average(losses, weights=weights)),
            dice={
                region: float(
                    np.average([record.dice[region] for record in sound], weights=weights)
                )
                for region in REGIONS
            },
            seconds=seconds,
            clients=tuple(self._records),
            absent=self.turnout.absent,
            figures=dict(self.strategy.figures(server)),
        )


def _client_record(trained: Trained, fault: str | None) -> ClientRecord:
    return ClientRecord(
        client=trained.update.client,
        num_examples=trained.update.num_examples,
        num_steps=trained.result.num_steps,
        loss=trained.result.loss,
        dice=trained.result.dice,
        seconds=trained.seconds,
        refused=fault,
        bytes_received=trained.bytes_received,
        bytes_sent=trained.bytes_sent,
    )
