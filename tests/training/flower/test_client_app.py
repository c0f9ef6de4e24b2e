"""A hospital's side, called as Flower calls it."""

import shutil
from dataclasses import replace

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from cache_schema.manifest import digest, read_manifest
from cache_schema.preprocessing import record_preprocessing
from training.data import SliceDataset
from training.federated.client import LocalClients, Workplace
from training.federated.client_memory import ClientMemory
from training.federated.strategies.registry import make_strategy
from training.federated.work import Order
from training.flower.client_app import app
from training.flower.messages import (
    HELLO,
    RemoteError,
    Task,
    pack_model,
    pack_order,
    pack_task,
    sign,
    unpack_introduction,
    unpack_reply,
)
from training.models.initial import initial_model


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def config(tiny_config):
    return tiny_config.model_copy(update={"strategy": "scaffold"})


def task_of(config):
    return Task("a run", config, sign(initial_model(config).state_dict()), "1.2")


def ask(kind, content, **node_config):
    message = Message(content, 1, kind)
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(1, 1, node_config, RecordDict(), {})
    return app(message, context).content


def test_a_node_introduces_its_own_client(site, own_cache, config):
    content = ask(HELLO, pack_task(task_of(config)), site=str(site))
    found = unpack_introduction(content)
    assert found.client == 7
    assert found.num_examples == len(SliceDataset(own_cache, clients=[1]))
    assert found.num_steps == -(-found.num_examples // config.batch_size)
    assert found.manifest == digest(read_manifest(own_cache))
    assert found.preprocessing == record_preprocessing(read_manifest(own_cache))


def test_a_client_trains_as_in_one_process_and_remembers_at_home(
    site, own_cache, config, tmp_path, observer
):
    model = initial_model(config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    variates = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    dataset = SliceDataset(own_cache, clients=[1], known_as=7)
    memory = ClientMemory(tmp_path / "alone")
    alone = LocalClients(Workplace(dataset, config, make_strategy("scaffold"), memory), model)
    remembered = {}
    for number in (1, 2):
        order = Order(number, state, variates, remembered)
        content = pack_order(task_of(config), order, 7, pack_model(order))
        reply = unpack_reply(ask("train", content, site=str(site)))
        (expected,) = alone.train([7], order, observer)
        assert (reply.client, reply.num_steps, reply.loss) == (
            7,
            expected.num_steps,
            expected.loss,
        )
        for mine, theirs in ((reply.model, expected.model), (reply.extras, expected.extras)):
            assert mine.keys() == theirs.keys() != set()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        remembered = {7: number}
    assert [path.name for path in (site / "memory/a run").iterdir() if ".2." in path.name]


def problem(content):
    with pytest.raises(RemoteError) as caught:
        unpack_introduction(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_network_is_refused(site, config):
    task = Task("a run", config, sign({"w": torch.zeros(1)}), "1.2")
    line = problem(ask(HELLO, pack_task(task), site=str(site)))
    assert line.startswith("the server's tiny has other tensors than that of release")


def test_a_client_that_lost_its_memory_says_so(site, config):
    order = Order(3, initial_model(config).state_dict(), remembered={7: 2})
    content = pack_order(task_of(config), order, 7, pack_model(order))
    line = problem(ask("train", content, site=str(site)))
    assert "client-07.2.safetensors is gone: client 7 cannot go on" in line


def test_a_node_without_a_site_and_a_site_without_shards_say_so(site, own_cache, config):
    content = pack_task(task_of(config))
    assert "started without its site" in problem(ask(HELLO, content))
    shutil.rmtree(own_cache / "clients")
    assert "client-01" in problem(ask(HELLO, content, site=str(site)))


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "..", "", "a/b"])
def test_a_server_cannot_name_a_folder_outside_the_memory(name, site, config, tmp_path):
    order = Order(1, initial_model(config).state_dict())
    task = replace(task_of(config), run=name)
    before = sorted(tmp_path.rglob("*"))
    content = pack_order(task, order, 7, pack_model(order))
    assert "the server's name of the run is none" in problem(ask("train", content, site=str(site)))
    assert sorted(tmp_path.rglob("*")) == before
