"""Flower's strategies get the same updates as ours over three rounds and agree on the parameters."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from training.federated.aggregate import Server, Update
from training.federated.strategies.dp_fedavg import DPFedAvg
from training.federated.strategies.krum import Krum
from training.federated.strategies.median import Median
from training.federated.strategies.trimmed_mean import TrimmedMean

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

SHAPES = {"conv.weight": (3, 2, 3), "conv.bias": (3,), "head.weight": (4, 3)}
TRAINABLE = frozenset(SHAPES)


def draw_updates(server, num_clients, *, sizes=None):
    """Move every client from the model by a random step; the last two clients lie."""
    source = torch.Generator().manual_seed(server.round)
    for k in range(num_clients):
        scale = 30.0 if k >= num_clients - 2 else 1.0
        state = {
            name: tensor + scale * torch.randn(tensor.shape, generator=source)
            for name, tensor in server.model.items()
        }
        yield Update(k, sizes[k] if sizes else 10, 5, 0.5, state)


def to_record(state):
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


def to_reply(update):
    """Make what the strategies need of a reply; Flower's own exist only inside one of its runs."""
    content = RecordDict(
        {
            "arrays": to_record(update.state),
            "metrics": MetricRecord({"num-examples": update.num_examples}),
        }
    )
    return SimpleNamespace(content=content, has_error=lambda: False)


def run_both(ours, theirs, num_clients=7, *, sizes=None):
    """Run three rounds, each from our model, and compare the models after every round."""
    model = {
        name: torch.linspace(-1, 1, np.prod(shape).item()).reshape(shape)
        for name, shape in SHAPES.items()
    }
    server = Server(model, TRAINABLE)
    their_model = dict(model)
    for number in range(1, 4):
        updates = list(draw_updates(server, num_clients, sizes=sizes))
        theirs.current_arrays = to_record(their_model)  # the wrapper for privacy clips against it
        arrays, _ = theirs.aggregate_train(number, [to_reply(update) for update in updates])
        server = replace(ours.aggregate(server, iter(updates)), round=number)
        their_model = {name: torch.from_numpy(arrays[name].numpy()).float() for name in SHAPES}
        for name in SHAPES:
            torch.testing.assert_close(server.model[name], their_model[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_clients", [6, 7])
def test_median(num_clients):
    # Parameters alone: Flower makes float64 of a counter's median, ours stays an integer.
    run_both(Median(), flower.FedMedian(), num_clients, sizes=range(1, num_clients + 1))


@pytest.mark.parametrize(("trim", "num_clients"), [(0.2, 7), (0.3, 7), (0.0, 4)])
def test_trimmed_mean(trim, num_clients):
    # Of counters Flower takes the mean, in float64. It cuts int(0.29 * 100) = 28 of a hundred clients.
    run_both(
        TrimmedMean(trim=trim),
        flower.FedTrimmedAvg(beta=trim),
        num_clients,
        sizes=range(1, num_clients + 1),
    )


@pytest.mark.parametrize("byzantine", [1, 2])
def test_krum(byzantine):
    # Without buffers: Flower's distances go over these too, and over counters.
    run_both(Krum(byzantine=byzantine), flower.Krum(num_malicious_nodes=byzantine))


def test_multi_krum():
    # Of equal sizes: Flower weights the chosen by the sizes they claim, the paper and ours do not.
    run_both(
        Krum(byzantine=2, keep=3), flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=3)
    )


def test_flowers_krum_loses_distances_of_networks_that_are_close():
    places = [0.0, 4096.0, 1024.0, 1280.0, 8192.0]
    updates = [
        Update(k, 1, 5, 0.5, {"w": torch.tensor([2.0**30 + p])}) for k, p in enumerate(places)
    ]
    ours = Krum().aggregate(Server(updates[0].state, frozenset({"w"})), iter(updates))
    theirs, _ = flower.Krum(num_malicious_nodes=1).aggregate_train(
        1, [to_reply(u) for u in updates]
    )
    assert ours.model["w"].item() == 2.0**30 + 1024.0  # 256² + 1024² is the least
    assert theirs["w"].numpy().item() != ours.model["w"].item()


def test_clipping_of_dp_fedavg():
    # Without noise, and of equal sizes: Flower's wrapper leaves the weights of FedAvg in place, with
    # which one client's part in the mean is not bounded by clip / K.
    theirs = flower.DifferentialPrivacyServerSideFixedClipping(
        flower.FedAvg(), noise_multiplier=0.0, clipping_norm=6.0, num_sampled_clients=7
    )
    run_both(DPFedAvg(clip=6.0, noise=0.0), theirs)
