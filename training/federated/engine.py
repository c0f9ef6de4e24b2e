"""The round loop of a federation, wherever its clients train."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import nn

from cache_schema.errors import InputError
from cache_schema.vocabulary import REGIONS
from training.checkpoint import fitting, load_resume, save_resume, save_weights
from training.config import TrainConfig
from training.device import choose_devices
from training.federated.aggregate import Server, State, Update, copy_state, find_fault
from training.federated.client import LocalClients, Workplace
from training.federated.client_memory import ClientMemory
from training.federated.client_pool import ClientPool
from training.federated.exchange import count_bytes, narrow, widen, widen_change
from training.federated.hostile import Liars, Turnout, choose_liars, draw_turnout
from training.federated.schedule import (
    Pace,
    history_digest,
    looks_back,
    pace_figures,
    plan_pace,
    require_history,
)
from training.federated.strategies.registry import make_strategy
from training.federated.strategy import Strategy
from training.federated.work import Clients, Lost, Order, Reply
from training.runlog import Board, ClientRecord, Observer, RoundRecord, RunLog, open_log
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
    """Train a model over all clients of a cache, on this machine.

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
    devices = choose_devices(config.device)
    with ExitStack() as stack:
        session = stack.enter_context(
            open_session(config, cache, run, resume=resume, devices=devices)
        )
        memory = ClientMemory(run / MEMORY_FOLDER)
        workplace = Workplace(session.dataset, config, strategy, memory, session.least_batch)
        model = session.model
        clients: Clients
        if len(devices) > 1:
            clients = stack.enter_context(ClientPool(workplace, devices))
        else:
            clients = LocalClients(workplace, model.to(session.device))
        federation = Federation(config, run, session.members, clients, strategy)
        federation.carry_on(model, observer, resume=resume, boards=boards, cache=str(cache))


@dataclass(frozen=True)
class Federation:
    """A run: who takes part, and how their updates become a model.

    Attributes:
        config: Of the run.
        run: Its folder.
        members: Clients that have training slices.
        clients: Where these train.
        strategy: As `config` names it.
    """

    config: TrainConfig
    run: Path
    members: Sequence[int]
    clients: Clients
    strategy: Strategy

    def carry_on(
        self,
        model: nn.Module,
        observer: Observer,
        *,
        resume: bool,
        boards: Sequence[Board],
        **about: object,
    ) -> None:
        """Go through the rounds that are left, and save the model after each.

        In each round the clients that take part train from the global model, and the strategy takes
        their updates in client order as they come: only one of them is in memory. A client whose
        loss or update is not finite is refused and logged, one that does not report is logged, and
        the round goes on without them. What a client does follows from the global model, its own
        memory, the round and the seed, so a run that was killed goes on from its last round with
        the same bits.

        Args:
            model: As it is before the first round.
            observer: Told about progress.
            resume: Go on with the run, from what it has saved.
            boards: Where to show the scalars of every round, besides TensorBoard.
            about: What the log tells of this start besides.

        Raises:
            InputError: If weights cannot be written, or a round has no sound update.
        """
        server, history = _load_server(self.run, model) if resume else (_new_server(model), None)
        with open_log(self.run, boards) as log:
            require_history(self.config, log.rounds_before(server.round + 1), history)
            self._carry_on(server, log, observer, event="resumed" if resume else "started", **about)

    def _carry_on(
        self, server: Server, log: RunLog, observer: Observer, *, event: str, **about: object
    ) -> None:
        config = self.config
        liars = choose_liars(self.members, config)
        numbers = range(server.round + 1, config.rounds + 1)
        turnouts = [draw_turnout(self.members, number, config) for number in numbers]
        self._require_clients(turnouts)
        log.record(
            event,
            **about,
            clients=list(self.members),
            byzantine=sorted(liars.clients),
            round=server.round + 1,
            rounds=config.rounds,
        )
        log.tell_missing(server.round + 1)
        observer.started(
            num_rounds=config.rounds,
            num_steps=sum(self.clients.count_steps(turnout.present) for turnout in turnouts),
        )
        for number, turnout in zip(numbers, turnouts, strict=True):
            server, record = _Round(self, number, turnout, server, liars, log, observer).carry_out()
            record = log.round_done(record)
            _save_server(self.run, server, self._history(log, number))
            observer.round_done(record)
        log.record("finished")

    def _history(self, log: RunLog, number: int) -> str | None:
        """Give the digest of the rounds up to one, where the next ones follow from them."""
        rounds = log.rounds_before(number + 1)
        return history_digest(rounds) if looks_back(self.config) else None

    def _require_clients(self, turnouts: Sequence[Turnout]) -> None:
        """Make sure that no round is planned with fewer clients than the strategy needs."""
        fewest = min(turnouts, key=lambda turnout: len(turnout.present), default=None)
        if fewest is not None and len(fewest.present) < self.strategy.least_clients:
            raise InputError(
                f"--strategy {self.config.strategy}: {len(fewest.present)} of {len(self.members)} clients "
                f"are to report in some round, {self.strategy.least_clients} are needed: change its options, "
                "--fraction or --dropout-rate, or take more clients"
            )


def _new_server(model: nn.Module) -> Server:
    """Make the server before the first round."""
    return Server(
        model=copy_state(model),
        trainable=frozenset(name for name, _ in model.named_parameters()),
    )


def _load_server(run: Path, model: nn.Module) -> tuple[Server, str | None]:
    """Read the server after the last finished round of a run, or make a new one if there is none.

    Returns:
        The server, and the digest of the rounds so far if later ones follow from them.

    Raises:
        InputError: If the checkpoint is damaged.
    """
    server = _new_server(model)
    saved = load_resume(run)
    if saved is None:
        return server, None
    groups, position = saved
    with fitting(run):
        _require_alike(groups["model"], server.model)
        remembered = {
            int(client): index(number) for client, number in position["remembered"].items()
        }
        server = replace(
            server,
            model=groups["model"],
            memory=groups.get("memory", {}),
            round=index(position["round"]),
            remembered=remembered,
        )
    save_weights(run, server.model, round_number=server.round)  # whatever became of the file
    return server, position.get("history")


def _require_alike(state: State, model: State) -> None:
    """Make sure that a state has the tensors of a network.

    Raises:
        ValueError: If one has another shape or type, or is not there.
    """
    found, wanted = ({k: (v.shape, v.dtype) for k, v in each.items()} for each in (state, model))
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(f"{name} is {found.get(name)}, the network has {wanted.get(name)}")


def _save_server(run: Path, server: Server, history: str | None) -> None:
    """Save the model for everybody, then all that going on needs, in this order.

    After a kill between the two the round is done again, and with the same bits.
    """
    save_weights(run, server.model, round_number=server.round)
    position = {"round": server.round, "remembered": dict(server.remembered)}
    if history is not None:
        position["history"] = history
    save_resume(run, {"model": server.model, "memory": server.memory}, position)


@dataclass(frozen=True)
class _Round:
    """One round, from the server before it to the server after it."""

    federation: Federation
    number: int
    turnout: Turnout
    server: Server
    liars: Liars
    log: RunLog
    observer: Observer
    _records: list[ClientRecord] = field(default_factory=list)
    _lost: list[int] = field(default_factory=list)
    _remembered: dict[int, int] = field(default_factory=dict)

    def carry_out(self) -> tuple[Server, RoundRecord]:
        """Train who takes part, and aggregate."""
        start = time.perf_counter()
        server = self.federation.strategy.aggregate(self.server, self._sound_updates())
        remembered = {**self.server.remembered, **self._remembered}
        server = replace(server, round=self.number, remembered=remembered)
        return server, self._summary(server, time.perf_counter() - start)

    @cached_property
    def _pace(self) -> Pace:
        history = self.log.rounds_before(self.number)
        return plan_pace(self.federation.config, self.number, history)

    def _sound_updates(self) -> Iterator[Update]:
        """Note how every client fared and let the updates through that are fit for aggregation."""
        strategy, exchange = self.federation.strategy, self.federation.config.exchange
        extras = narrow(strategy.broadcast(self.server), exchange)
        model = self.server.model
        present = self.turnout.present
        absent = list(self.turnout.absent)
        self.log.record("asked", round=self.number, clients=list(present), absent=absent)
        for group in [(client,) for client in present] if strategy.is_sequential else [present]:
            sent = narrow(model, exchange)
            order = Order(
                self.number,
                sent,
                extras,
                self.server.remembered,
                local_epochs=self._pace.local_epochs,
                rate_factor=self._pace.rate_factor,
            )
            # Changes of parameters are added to the float32 that the server has: on what was sent, those
            # below its last bit would be lost round by round.
            start = widen(sent) | {name: model[name] for name in self.server.trainable}
            for reply in self._replies(group, order):
                update = self.liars.falsify(_update(reply, start, exchange), model, self.number)
                fault = reply.fault or find_fault(update, self.server.model)
                self._records.append(_client_record(reply, order, fault))
                self.log.record("reply", **self._progress(self._records[-1]))
                if fault is None:
                    if reply.keeps:
                        self._remembered[reply.client] = self.number
                    model = update.state if strategy.is_sequential else model
                    yield update
        self._require_sound()

    def _replies(self, group: Sequence[int], order: Order) -> Iterator[Reply]:
        for reply in self.federation.clients.train(group, order, self.observer):
            if isinstance(reply, Lost):
                self._lost.append(reply.client)
                self.log.record("lost", round=self.number, client=reply.client, reason=reply.reason)
            else:
                yield reply

    def _progress(self, record: ClientRecord) -> dict[str, Any]:
        """Tell who watches the log of one reply, long before the round is done."""
        names = ("client", "loss", "seconds", "refused")
        return {"round": self.number, **{name: getattr(record, name) for name in names}}

    def _require_sound(self) -> None:
        if not self._records:
            raise InputError(
                f"no client reported in round {self.number}; the log says why; the model of the round "
                "before is still on disk, go on from it with --resume"
            )
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
            absent=tuple(sorted((*self.turnout.absent, *self._lost))),
            figures={
                **pace_figures(self.federation.config, self._pace),
                **self.federation.strategy.figures(server),
            },
        )


def _update(reply: Reply, start: State, exchange: str) -> Update:
    return Update(
        client=reply.client,
        num_examples=reply.num_examples,
        num_steps=reply.num_steps,
        loss=reply.loss if reply.loss is not None else math.nan,
        state=widen_change(reply.model, start, exchange),
        extras=widen(reply.extras),
    )


def _client_record(reply: Reply, order: Order, fault: str | None) -> ClientRecord:
    return ClientRecord(
        client=reply.client,
        num_examples=reply.num_examples,
        num_steps=reply.num_steps,
        loss=reply.loss,
        dice=reply.dice,
        seconds=reply.seconds,
        refused=fault,
        bytes_received=count_bytes(order.model, order.extras),
        bytes_sent=count_bytes(reply.model, reply.extras),
    )
