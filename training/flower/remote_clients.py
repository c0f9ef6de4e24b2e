"""Clients behind Flower nodes: who they are, and their part in a round."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from cache_schema.errors import InputError
from training.federated.work import Lost, Order, Reply
from training.flower.messages import (
    HELLO,
    Introduction,
    RemoteError,
    Task,
    pack_model,
    pack_order,
    pack_task,
    unpack_introduction,
    unpack_reply,
)
from training.runlog import Observer

POLL_SECONDS: Final = 0.5
FETCH_SECONDS: Final = 3600.0
"""How long replies that came in time may lie in the SuperLink, which drops what it holds for longer, until
those of the clients before have been waited for and fetched."""
logger = logging.getLogger("flwr")
"""Flower's own: what it is told appears in `flwr run --stream`."""


@dataclass(frozen=True)
class Waiting:
    """How long to wait.

    Attributes:
        join_seconds: For all clients to be there, before the first round.
        reply_seconds: For a client's answer to anything.
    """

    join_seconds: float
    reply_seconds: float


@dataclass(frozen=True)
class _Question:
    """A message on its way.

    Attributes:
        name: Of the message.
        deadline: On the monotonic clock, for its answer; the same for all that are asked at once.
    """

    name: str
    deadline: float


class RemoteClients:
    """Clients that train at their own places, all at once, and are heard in the order of their numbers.

    Replies that come early wait in the SuperLink, so one of them is in memory here.
    """

    def __init__(self, grid: Grid, task: Task, waiting: Waiting) -> None:
        """Remember how to reach nodes; nobody is asked yet.

        Args:
            grid: Of Flower.
            task: What every node is told.
            waiting: How long.
        """
        self._grid = grid
        self._task = task
        self._waiting = waiting
        self._nodes: dict[int, int] = {}
        self._introductions: dict[int, Introduction] = {}

    @property
    def introductions(self) -> dict[int, Introduction]:
        """Who has joined, by client."""
        return dict(sorted(self._introductions.items()))

    def gather(self, num_clients: int) -> None:
        """Wait until all clients of a federation have joined.

        Raises:
            InputError: If one cannot take part, two have the same number, or somebody is missing when
                the time is up.
        """
        end = time.monotonic() + self._waiting.join_seconds
        while len(self._nodes) < num_clients:
            self._meet(strangers := self._strangers(self._grid.get_node_ids()))
            if not strangers and time.monotonic() > end:
                raise InputError(
                    f"{len(self._nodes)} of {num_clients} clients have joined "
                    f"({', '.join(map(str, sorted(self._nodes))) or 'none'}) in "
                    f"{self._waiting.join_seconds:g} seconds; start the other SuperNodes, or change "
                    "`clients` in --run-config"
                )
            time.sleep(POLL_SECONDS if not strangers else 0)

    def count_steps(self, clients: Sequence[int]) -> int:
        """Count the optimiser steps of a round in which these clients train."""
        return sum(self._introductions[client].num_steps for client in clients)

    def train(
        self, clients: Sequence[int], order: Order, observer: Observer
    ) -> Iterator[Reply | Lost]:
        """Send the order to all of the clients, and give what they report in their order."""
        online = self._find_again()
        tensors = pack_model(order)
        sent = {
            client: self._send(
                self._nodes[client],
                MessageType.TRAIN,
                pack_order(self._task, order, client, tensors),
            )
            for client in clients
            if self._nodes[client] in online
        }
        for client in clients:
            if client not in sent:
                yield Lost(client, "its SuperNode is not connected")
                continue
            try:
                reply = unpack_reply(self._receive(sent[client]))
            except RemoteError as error:
                yield Lost(client, str(error))
                continue
            for _ in range(reply.num_steps):
                observer.step(round_number=order.round, client=client, loss=reply.loss or 0.0)
            yield reply

    def _find_again(self) -> set[int]:
        """Tell who is connected; a client may have come back as another node."""
        online = set(self._grid.get_node_ids())
        gone = {client for client, node in self._nodes.items() if node not in online}
        if gone:
            for node, question in self._ask(self._strangers(online)).items():
                try:
                    client = self._hear(question).client
                except RemoteError as error:
                    logger.warning("node %d cannot come back: %s", node, error)
                    continue
                if client in gone:
                    self._nodes[client] = node
        return online

    def _strangers(self, online: Iterable[int]) -> list[int]:
        return sorted(set(online) - set(self._nodes.values()))

    def _meet(self, nodes: Sequence[int]) -> None:
        for node, question in self._ask(nodes).items():
            try:
                introduction = self._hear(question)
            except RemoteError as error:
                raise InputError(f"node {node} cannot take part: {error}") from error
            client = introduction.client
            if client in self._nodes:
                raise InputError(
                    f"client {client} has joined twice, as nodes {self._nodes[client]} and {node}: "
                    "every hospital needs a number of its own, see `train site init --client`"
                )
            self._nodes[client] = node
            self._introductions[client] = introduction
            logger.info(
                "client %d has joined: %d slices, %d steps a round",
                client,
                introduction.num_examples,
                introduction.num_steps,
            )

    def _ask(self, nodes: Iterable[int]) -> dict[int, _Question]:
        """Ask nodes who they are, all at once: an answer takes each of them seconds."""
        question = pack_task(self._task)
        return {node: self._send(node, HELLO, question) for node in nodes}

    def _hear(self, question: _Question) -> Introduction:
        """Wait for what a node says of itself.

        Raises:
            RemoteError: If it cannot take part, is of another release, or no answer comes in time.
        """
        introduction = unpack_introduction(self._receive(question))
        if introduction.version != self._task.version:
            raise RemoteError(
                f"client {introduction.client} runs release {introduction.version}, not "
                f"{self._task.version} as the coordinator: install the same one everywhere"
            )
        return introduction

    def _send(self, node: int, kind: str, content: RecordDict) -> _Question:
        seconds = self._waiting.reply_seconds
        message = Message(content, node, kind, ttl=2 * seconds + FETCH_SECONDS)
        (name,) = self._grid.push_messages([message])
        return _Question(name, time.monotonic() + seconds)

    def _receive(self, question: _Question) -> RecordDict:
        """Wait for the reply to a message; one that is there already is taken, however late.

        Raises:
            RemoteError: If it says that something went wrong, or none comes in time.
        """
        while True:
            is_late = time.monotonic() >= question.deadline
            for reply in self._grid.pull_messages([question.name]):
                if reply.has_error():
                    raise RemoteError(_last_line(reply.error.reason))
                return reply.content
            if is_late:
                raise RemoteError(f"no answer in {self._waiting.reply_seconds:g} seconds")
            time.sleep(POLL_SECONDS)


def _last_line(reason: str | None) -> str:
    """Take what a traceback ends with."""
    lines = (reason or "").strip().splitlines()
    return lines[-1] if lines else "no reason was given"
