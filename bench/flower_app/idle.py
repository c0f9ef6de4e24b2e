"""A Flower app whose clients do not train: each adds a tiny number to what it got and sends it back."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.numpy import load_file

client = ClientApp()
server = ServerApp()


@client.train()
def answer(message: Message, context: Context) -> Message:
    """Send the model back, its floating-point numbers a little larger."""
    nudge = np.float32(context.run_config["nudge"])
    arrays = {
        name: array.numpy() for name, array in message.content.array_records["arrays"].items()
    }
    reply = {
        name: Array(np.asarray(array + nudge) if array.dtype.kind == "f" else array)
        for name, array in arrays.items()
    }
    examples = MetricRecord({"num-examples": 100 + int(context.node_config["partition-id"])})
    return Message(
        RecordDict({"arrays": ArrayRecord(reply), "metrics": examples}), reply_to=message
    )


@server.main()
def lead(grid: Grid, context: Context) -> None:
    """Carry out the rounds and write when each was done, and by how much the model has grown."""
    config = context.run_config
    model = load_file(str(config["model"]))
    num_clients = int(config["clients"])
    strategy = FedAvg(
        fraction_evaluate=0.0, min_train_nodes=num_clients, min_available_nodes=num_clients
    )
    ends: list[float] = []

    def round_done(_: int, __: ArrayRecord) -> None:
        ends.append(time.perf_counter())

    result = strategy.start(
        grid,
        ArrayRecord({name: Array(array) for name, array in model.items()}),
        num_rounds=int(config["rounds"]),
        evaluate_fn=round_done,
    )
    name = next(name for name, array in model.items() if array.dtype.kind == "f")
    moved = float((result.arrays[name].numpy() - model[name]).mean())
    found = {"ends": ends, "moved": moved}
    Path(str(config["result"])).write_text(json.dumps(found), encoding="utf-8")
