"""The server's part of a round at full size: seconds beside a pass of NumPy, memory over numbers of clients."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

import numpy as np
import torch

from bench.cases import Workbench
from bench.timing import in_turn, ratio, seconds
from training.config import TrainConfig
from training.federated.aggregate import Server, State, Update, copy_state
from training.federated.strategies.registry import make_strategy
from training.models.initial import random_model
from training.process import own_bytes

NUM_CLIENTS: Final = 20
"""In the paper."""

MANY_CLIENTS: Final = (5, 20, 80)

OF_MEMORY: Final = ("fedavg", "fedadam", "fedpidavg", "median", "krum")
"""One strategy of each way to aggregate."""

REPEATS: Final = 5


def measure_federated(bench: Workbench) -> dict[str, object]:  # noqa: ARG001
    """Aggregate networks of 20.6 million parameters as the clients of the paper send them."""
    server = _make_server()
    sent = [_nudge(server.model, client) for client in range(2)]
    arrays = [[tensor.numpy() for tensor in _floats(state)] for state in sent]
    strategy = make_strategy("fedavg")

    def ours() -> float:
        return seconds(lambda: strategy.aggregate(server, _updates(sent)))

    def numpy_double() -> float:
        return seconds(lambda: _add_up(arrays, np.float64))

    def numpy_single() -> float:
        return seconds(lambda: _add_up(arrays, np.float32))

    works = {"ours": ours, "float64": numpy_double, "float32": numpy_single}
    taken = in_turn(works, REPEATS)
    return {
        "clients": NUM_CLIENTS,
        "parameters": sum(tensor.numel() for tensor in _floats(server.model)),
        "repeats": REPEATS,
        "seconds_ours": round(float(np.median(taken["ours"])), 4),
        "seconds_numpy_float64": round(float(np.median(taken["float64"])), 4),
        "seconds_numpy_float32": round(float(np.median(taken["float32"])), 4),
        "ratio_to_numpy_float64": ratio(taken["ours"], taken["float64"]),
        "ratio_to_numpy_float32": ratio(taken["ours"], taken["float32"]),
        "memory": {name: _memory(name) for name in OF_MEMORY},
    }


def _make_server() -> Server:
    model = random_model(TrainConfig(weights="none"))
    return Server(
        model=copy_state(model),
        trainable=frozenset(name for name, _ in model.named_parameters()),
    )


def _nudge(model: State, client: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(client)
    return {
        name: tensor + 1e-3 * torch.randn(tensor.shape, generator=source)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in model.items()
    }


def _floats(state: State) -> list[torch.Tensor]:
    return [tensor for tensor in state.values() if tensor.is_floating_point()]


def _updates(states: list[dict[str, torch.Tensor]]) -> Iterator[Update]:
    for client in range(NUM_CLIENTS):
        yield Update(client, 100 + client, 10, 0.5, states[client % len(states)])


def _add_up(clients: list[list[np.ndarray]], dtype: type) -> list[np.ndarray]:
    """Add the arrays of all clients, which is the least that an average has to do."""
    sums = [array.astype(dtype) for array in clients[0]]
    for client in range(1, NUM_CLIENTS):
        for total, array in zip(sums, clients[client % len(clients)], strict=True):
            np.add(total, array, out=total)
    return sums


def _memory(name: str) -> dict[str, object]:
    """Compare the peak of a fresh process over numbers of clients."""
    peaks = {}
    for count in MANY_CLIENTS:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            peaks[count] = pool.submit(_peak_bytes, name, count).result()
    few, many = peaks[MANY_CLIENTS[0]], peaks[MANY_CLIENTS[-1]]
    found = {f"peak_megabytes_{count}_clients": round(peak / 1e6) for count, peak in peaks.items()}
    return found | {"ratio_80_to_5": round(many / few, 3)}


def _peak_bytes(name: str, num_clients: int) -> int:
    """Carry out two rounds whose updates are made one by one, as in the engine."""
    server = _make_server()
    strategy = make_strategy(name)
    for _ in range(2):
        updates = (
            Update(client, 100 + client, 10, 0.5, _nudge(server.model, client))
            for client in range(num_clients)
        )
        server = strategy.aggregate(server, updates)
    return own_bytes("VmHWM")
