"""The coordinator's view of its nodes, against a grid in memory."""

from collections import deque

import pytest
import torch
from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from cache_schema.errors import InputError
from cache_schema.preprocessing import PreprocessingRecord, Source
from cache_schema.vocabulary import MODALITIES
from training.config import TrainConfig
from training.federated.work import Lost, Order, Reply
from training.flower.messages import (
    Introduction,
    Task,
    pack_introduction,
    pack_problem,
    pack_reply,
    unpack_order,
)
from training.flower.remote_clients import RemoteClients, Waiting
from training.runlog import Silent

TASK = Task("a run", TrainConfig(), "abc", "1.2")
PREPROCESSING = PreprocessingRecord(
    normalize="zscore",
    bias_correct=False,
    geometry="any",
    modalities=MODALITIES,
    label_convention="brats2018-2020",
    sources=(Source(plane=(24, 20), fingerprint="abc"),),
)
ORDER = Order(2, {"w": torch.ones(2)}, remembered={0: 1})


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("training.flower.remote_clients.POLL_SECONDS", 0.001)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def introduce(client, version="1.2"):
    return pack_introduction(
        Introduction(client, 10 * client, client + 1, "digest", PREPROCESSING, version)
    )


def reply(client):
    empty = {"w": torch.full((2,), float(client))}
    return pack_reply(
        Reply(client, 3, 2, 0.5, {}, 1.0, keeps=False, fault=None, model=empty, extras={})
    )


class MemoryGrid(Grid):
    """Nodes answer with what they have been given, in turn; a node with nothing to say keeps silent."""

    set_run = run = create_message = send_and_receive = None

    def __init__(self, **answers):
        self.answers = {int(node.strip("n")): deque(each) for node, each in answers.items()}
        self.sent, self.waiting = [], {}

    def get_node_ids(self):
        return list(self.answers)

    def push_messages(self, messages):
        names = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.sent.append((node, message))
            names.append(f"m{len(self.sent)}")
            if self.answers[node]:
                self.waiting[names[-1]] = self.answers[node].popleft()
        return names

    def pull_messages(self, message_ids):
        return [
            answer(self.sent[int(name[1:]) - 1][1])
            for name in message_ids
            if (answer := self.waiting.pop(name, None)) is not None
        ]


def says(content):
    return lambda question: Message(content, reply_to=with_id(question))


def fails(reason):
    return lambda question: Message(Error(2, reason), reply_to=with_id(question))


def with_id(question):
    question.metadata.__dict__["_message_id"] = "m"
    return question


def clients_of(grid, reply_seconds=0.1):
    return RemoteClients(grid, TASK, Waiting(join_seconds=0.1, reply_seconds=reply_seconds))


class Counter(Silent):
    def __init__(self):
        self.steps = []

    def step(self, *, round_number, client, loss):
        self.steps.append((round_number, client, loss))


def test_clients_are_found_by_their_own_numbers_and_heard_in_that_order():
    grid = MemoryGrid(
        n7=[says(introduce(1)), says(reply(1))], n3=[says(introduce(0)), says(reply(0))]
    )
    clients, counter = clients_of(grid), Counter()
    clients.gather(2)
    assert list(clients.introductions) == [0, 1]
    assert clients.count_steps([0, 1]) == 1 + 2
    replies = list(clients.train([0, 1], ORDER, counter))
    assert [(each.client, each.model["w"][0].item()) for each in replies] == [(0, 0.0), (1, 1.0)]
    assert counter.steps == [(2, 0, 0.5), (2, 0, 0.5), (2, 1, 0.5), (2, 1, 0.5)]
    orders = {node: unpack_order(message.content) for node, message in grid.sent[2:]}
    assert {node: order.remembered for node, order in orders.items()} == {3: {0: 1}, 7: {}}


def test_all_nodes_are_asked_before_one_is_waited_for():
    grid = MemoryGrid(**{f"n{node}": [says(introduce(node))] for node in range(1, 4)})
    asked, honest = [], grid.pull_messages

    def pull_messages(names):
        asked.append(len(grid.sent))
        return honest(names)

    grid.pull_messages = pull_messages
    clients_of(grid).gather(3)
    assert asked == [3, 3, 3]


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        (
            {"n1": [introduce(0)], "n2": [introduce(0)]},
            "client 0 has joined twice, as nodes 1 and 2",
        ),
        (
            {"n1": [introduce(0, version="1.1")]},
            "node 1 cannot take part: client 0 runs release 1.1, not 1.2 as",
        ),
        ({"n1": [pack_problem("no slices")]}, "node 1 cannot take part: no slices"),
        ({"n1": [introduce(4)]}, r"1 of 2 clients have joined \(4\) in 0.1 seconds; start"),
        ({"n1": []}, "node 1 cannot take part: no answer in 0.1 seconds"),
        ({}, r"0 of 2 clients have joined \(none\)"),
    ],
)
def test_a_federation_that_cannot_begin_says_why(answers, line):
    grid = MemoryGrid(**{node: [says(each) for each in known] for node, known in answers.items()})
    with pytest.raises(InputError, match=f"^{line}"):
        clients_of(grid).gather(2)


def test_what_came_in_time_is_heard_however_long_the_clients_before_are_waited_for():
    grid = MemoryGrid(
        n1=[says(introduce(0))],
        n2=[says(introduce(1)), says(reply(1))],
        n3=[says(introduce(2))],
        n4=[says(introduce(3)), says(reply(3))],
    )
    clients = clients_of(grid, reply_seconds=0.2)
    clients.gather(4)
    first, second, third, fourth = clients.train(range(4), ORDER, Counter())
    assert (first.client, third.client) == (0, 2)  # both lost
    assert [second.client, fourth.client] == [1, 3]
    orders = [message for _, message in grid.sent[4:]]
    assert all(message.metadata.ttl > 2 * 0.2 + 60 for message in orders)


def test_silent_broken_and_complaining_clients_are_lost_and_the_rest_is_heard():
    grid = MemoryGrid(
        n1=[says(introduce(0))],
        n2=[says(introduce(1)), fails("Traceback:\n  here\nKeyError: 'x'\n")],
        n3=[says(introduce(2)), says(pack_problem("shard-000.h5 is damaged"))],
        n4=[says(introduce(3)), fails(None)],
        n5=[says(introduce(4)), says(reply(4))],
    )
    clients = clients_of(grid)
    clients.gather(5)
    *lost, heard = clients.train(range(5), ORDER, Counter())
    assert lost == [
        Lost(0, "no answer in 0.1 seconds"),
        Lost(1, "KeyError: 'x'"),
        Lost(2, "shard-000.h5 is damaged"),
        Lost(3, "no reason was given"),
    ]
    assert heard.client == 4


def test_a_client_that_is_gone_is_not_waited_for_and_one_that_comes_back_is_found():
    grid = MemoryGrid(n1=[says(introduce(0)), says(reply(0))], n2=[says(introduce(1))])
    clients = clients_of(grid)
    clients.gather(2)
    del grid.answers[2]
    first, second = clients.train([0, 1], ORDER, Counter())
    assert (first.client, second) == (0, Lost(1, "its SuperNode is not connected"))
    grid.answers[9] = deque([says(introduce(1)), says(reply(1))])
    (back,) = clients.train([1], ORDER, Counter())
    assert back.client == 1


def test_a_stranger_takes_nobodys_place():
    grid = MemoryGrid(n1=[says(introduce(0)), says(reply(0))], n2=[says(introduce(1))])
    clients = clients_of(grid)
    clients.gather(2)
    del grid.answers[2]
    grid.answers[8] = deque([says(introduce(0))])
    grid.answers[9] = deque([says(introduce(1, version="1.1"))])
    first, second = clients.train([0, 1], ORDER, Counter())
    assert (first.client, second) == (0, Lost(1, "its SuperNode is not connected"))
