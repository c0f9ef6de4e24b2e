"""Orders, replies and introductions as Flower's records, and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.torch import load, save
from torch import Tensor

from cache_schema.preprocessing import PreprocessingRecord
from training.config import TrainConfig
from training.federated.aggregate import State
from training.federated.work import Order, Reply

HELLO: Final = "query.hello"
"""Type of the message that asks a node who it is, before the first round."""

TENSORS: Final = "safetensors"
"""How tensors are written into an array: every type, bfloat16 too, with its bits."""


@dataclass(frozen=True)
class Task:
    """What a node has to know about a run before it does anything.

    Attributes:
        run: Name of the run, which a client keeps its memory under.
        config: Settings of the run.
        signature: Of the network, see `sign`.
        version: Of the coordinator's program.
    """

    run: str
    config: TrainConfig
    signature: str
    version: str


@dataclass(frozen=True)
class Introduction:
    """Who a node is.

    Attributes:
        client: Its number in the federation.
        num_examples: Slices that it trains on.
        num_steps: Its optimiser steps in a round.
        manifest: Digest of its cache's manifest.
        preprocessing: How its slices were made.
        version: Of this program.
    """

    client: int
    num_examples: int
    num_steps: int
    manifest: str
    preprocessing: PreprocessingRecord
    version: str


class RemoteError(Exception):
    """A node could not do what it was asked; its one line says why."""


def sign(state: State) -> str:
    """Digest names, shapes and types of a network's tensors: equal for networks that can be averaged."""
    lines = (f"{name} {tuple(state[name].shape)} {state[name].dtype}" for name in sorted(state))
    return sha256("\n".join(lines).encode()).hexdigest()


def pack_task(task: Task) -> RecordDict:
    """Write what a node has to know."""
    return RecordDict({"task": _pack_json({**asdict(task), "config": task.config.model_dump()})})


def unpack_task(content: RecordDict) -> Task:
    """Read what a node has to know."""
    document = _unpack_json(content["task"])
    config = TrainConfig.model_validate_json(json.dumps(document["config"]))
    return Task(**{**document, "config": config})


def pack_introduction(introduction: Introduction) -> RecordDict:
    """Write who a node is."""
    preprocessing = introduction.preprocessing.model_dump()
    document = {**asdict(introduction), "preprocessing": preprocessing}
    return RecordDict({"introduction": _pack_json(document)})


def unpack_introduction(content: RecordDict) -> Introduction:
    """Read who a node is.

    Raises:
        RemoteError: If it says that it cannot take part.
    """
    _raise_problem(content)
    document = _unpack_json(content["introduction"])
    preprocessing = PreprocessingRecord.model_validate_json(json.dumps(document["preprocessing"]))
    return Introduction(**{**document, "preprocessing": preprocessing})


def pack_model(order: Order) -> dict[str, ArrayRecord]:
    """Write the tensors of an order; all clients can be sent the same records."""
    return {"model": _pack_tensors(order.model), "extras": _pack_tensors(order.extras)}


def pack_order(
    task: Task, order: Order, client: int, tensors: Mapping[str, ArrayRecord]
) -> RecordDict:
    """Write a client's order.

    Args:
        task: Of the run.
        order: Of the round.
        client: Who gets it; of what the server remembers, it gets its own.
        tensors: From `pack_model`.
    """
    own = {client: order.remembered[client]} if client in order.remembered else {}
    details = {**_details(order), "remembered": own}
    return RecordDict({**pack_task(task), **tensors, "order": _pack_json(details)})


def unpack_order(content: RecordDict) -> Order:
    """Read an order; its numbers of rounds become parts of paths at the client.

    Raises:
        ValueError: If they are no numbers.
    """
    details = _unpack_json(content["order"])
    remembered = {int(client): int(number) for client, number in details.pop("remembered").items()}
    return Order(
        **{**details, "round": int(details["round"])},
        remembered=remembered,
        model=_unpack_tensors(content["model"]),
        extras=_unpack_tensors(content["extras"]),
    )


def pack_reply(reply: Reply) -> RecordDict:
    """Write what a client sends back."""
    return RecordDict(
        {
            "model": _pack_tensors(reply.model),
            "extras": _pack_tensors(reply.extras),
            "reply": _pack_json(_details(reply)),
        }
    )


def unpack_reply(content: RecordDict) -> Reply:
    """Read what a client sent back.

    Raises:
        RemoteError: If it says that it could not train.
    """
    _raise_problem(content)
    return Reply(
        **_unpack_json(content["reply"]),
        model=_unpack_tensors(content["model"]),
        extras=_unpack_tensors(content["extras"]),
    )


def pack_problem(line: str) -> RecordDict:
    """Write why a node cannot do what it was asked."""
    return RecordDict({"problem": ConfigRecord({"line": line})})


def _details(work: Order | Reply) -> dict[str, Any]:
    return {name: value for name, value in vars(work).items() if name not in {"model", "extras"}}


def _raise_problem(content: RecordDict) -> None:
    if "problem" in content:
        raise RemoteError(str(content.config_records["problem"]["line"]))


def _pack_json(document: Mapping[str, Any]) -> ConfigRecord:
    return ConfigRecord({"json": json.dumps(document)})


def _unpack_json(record: Any) -> dict[str, Any]:  # noqa: ANN401 - a RecordDict holds any record
    document: dict[str, Any] = json.loads(record["json"])
    return document


def _pack_tensors(state: State) -> ArrayRecord:
    content = save({name: tensor.contiguous() for name, tensor in state.items()})
    return ArrayRecord({TENSORS: Array("uint8", (len(content),), TENSORS, content)})


def _unpack_tensors(record: Any) -> dict[str, Tensor]:  # noqa: ANN401 - a RecordDict holds any record
    return load(record[TENSORS].data)
