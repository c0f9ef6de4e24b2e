"""What is packed for the way is unpacked as it was, every bit of it."""

import json
import math

import pytest
import torch
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from cache_schema.manifest import read_manifest
from cache_schema.preprocessing import record_preprocessing
from training.config import TrainConfig
from training.federated.work import Order, Reply
from training.flower.messages import (
    Introduction,
    RemoteError,
    Task,
    pack_introduction,
    pack_model,
    pack_order,
    pack_problem,
    pack_reply,
    pack_task,
    sign,
    unpack_introduction,
    unpack_order,
    unpack_reply,
    unpack_task,
)

TASK = Task("a run", TrainConfig(tumour_share=0.5, strategy_options={"mu": "0.1"}), "abc", "1.2")
MODEL = {
    "w": torch.tensor([[1.0, -0.0], [math.pi, 3e38]]),
    "half": torch.tensor([1.0, 2.0**-7]).bfloat16(),
    "steps": torch.tensor(7),
}


def on_the_way(content):
    """Through the bytes that Flower sends."""
    return recorddict_from_proto(recorddict_to_proto(content))


def same(one, other):
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype
        and one[k].shape == other[k].shape
        and torch.equal(one[k].view(torch.uint8), other[k].view(torch.uint8))
        for k in one
        if one[k].ndim
    )


def test_a_task_keeps_every_setting():
    assert unpack_task(on_the_way(pack_task(TASK))) == TASK


def test_an_order_keeps_its_bits_and_tells_a_client_what_it_has_to_remember_alone():
    order = Order(3, MODEL, {"w": MODEL["w"] * 2}, {4: 2, 5: 1}, local_epochs=2, rate_factor=0.2)
    for client, remembered in ((4, {4: 2}), (5, {5: 1}), (6, {})):
        content = on_the_way(pack_order(TASK, order, client, pack_model(order)))
        found = unpack_order(content)
        assert (found.round, found.remembered) == (3, remembered)
        assert (found.local_epochs, found.rate_factor) == (2, 0.2)
        assert same(found.model, MODEL)
        assert found.model["steps"] == 7
        assert same(found.extras, order.extras)
        assert unpack_task(content) == TASK


def test_a_reply_keeps_its_bits_and_figures():
    reply = Reply(
        4, 30, 5, 0.1 + 0.2, {"ET": 0.25}, 1.5, keeps=True, fault=None, model=MODEL, extras={}
    )
    found = unpack_reply(on_the_way(pack_reply(reply)))
    assert same(found.model, MODEL)
    for name in (
        "client",
        "num_examples",
        "num_steps",
        "loss",
        "dice",
        "seconds",
        "keeps",
        "fault",
    ):
        assert getattr(found, name) == getattr(reply, name)


def test_a_node_without_a_loss_says_so():
    reply = Reply(0, 3, 0, None, {}, 0.0, keeps=False, fault="loss is nan", model={}, extras={})
    found = unpack_reply(on_the_way(pack_reply(reply)))
    assert (found.loss, found.fault, found.model) == (None, "loss is nan", {})


@pytest.mark.parametrize("unpack", [unpack_reply, unpack_introduction])
def test_a_problem_is_raised_where_an_answer_is_read(unpack):
    with pytest.raises(RemoteError, match=r"^shard-000.h5 is damaged$"):
        unpack(on_the_way(pack_problem("shard-000.h5 is damaged")))


def test_an_introduction_arrives(small_cache):
    preprocessing = record_preprocessing(read_manifest(small_cache))
    introduction = Introduction(3, 120, 15, "digest", preprocessing, "1.2")
    assert unpack_introduction(on_the_way(pack_introduction(introduction))) == introduction


def test_a_signature_tells_names_shapes_and_types_apart_but_neither_order_nor_values():
    signature = sign(MODEL)
    assert sign({name: MODEL[name] * 0 for name in reversed(MODEL)}) == signature
    for odd in (
        {**MODEL, "steps": torch.tensor([7])},
        {**MODEL, "half": MODEL["half"].float()},
        {"v" if name == "w" else name: tensor for name, tensor in MODEL.items()},
    ):
        assert sign(odd) != signature


@pytest.mark.parametrize("change", [{"round": "x/../../y"}, {"remembered": {"7": "x/../../y"}}])
def test_a_number_of_a_round_that_is_a_path_is_refused(change):
    order = Order(2, {"w": torch.zeros(1)}, remembered={7: 1})
    content = pack_order(TASK, order, 7, pack_model(order))
    record = content.config_records["order"]
    record["json"] = json.dumps({**json.loads(str(record["json"])), **change})
    with pytest.raises(ValueError, match="invalid literal"):
        unpack_order(content)
