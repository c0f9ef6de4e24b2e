"""Flower's strategies as an oracle: both get the same updates over three rounds.

Only parameters are compared. Flower sends BatchNorm's statistics through the server's optimiser like
parameters and averages counters as floats; we average the one and keep the largest of the other.
"""

from types import SimpleNamespace

import pytest
import torch

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedadagrad import FedAdagrad
from training.federated.strategies.fedadam import FedAdam
from training.federated.strategies.fedavgm import FedAvgM
from training.federated.strategies.fedprox import FedProx
from training.federated.strategies.fedyogi import FedYogi

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

SIZES = (3, 1, 8)
ETA, TAU, BETA1, BETA2 = 0.02, 0.01, 0.8, 0.95


def updates_of(model, number):
    """Clients that went some random way from the model; the second is absent in the second round."""
    source = torch.Generator().manual_seed(number)
    updates = []
    for client, size in enumerate(SIZES):
        state = {n: t + 0.1 * torch.randn(t.shape, generator=source) for n, t in model.items()}
        updates.append(Update(client, size, 5, 0.5, state))
    return updates if number != 2 else [updates[0], updates[2]]


def to_record(state):
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


def to_reply(update):
    """Make what the strategies need of a reply; Flower's own exist only inside one of its runs."""
    metrics = MetricRecord({"num-examples": update.num_examples})
    content = RecordDict({"arrays": to_record(update.state), "metrics": metrics})
    return SimpleNamespace(content=content, has_error=lambda: False)


def tell_model(strategy, model):
    """Do what `configure_train` does before it makes messages, which exist only inside a run."""
    if isinstance(strategy, flower.FedAvgM):
        strategy.current_arrays = strategy.current_arrays or to_record(model)
    else:
        strategy.current_arrays = {name: tensor.numpy() for name, tensor in model.items()}


def start():
    source = torch.Generator().manual_seed(0)
    return {"w": torch.randn(4, 3, generator=source), "b": torch.randn(3, generator=source)}


def compare(ours, theirs, before_round=lambda number: None):
    server = Server(start(), frozenset({"w", "b"}))
    model = start()
    for number in (1, 2, 3):
        before_round(number)
        server = ours.aggregate(server, iter(updates_of(server.model, number)))
        tell_model(theirs, model)
        replies = [to_reply(update) for update in updates_of(model, number)]
        arrays, _ = theirs.aggregate_train(number, replies)
        model = {name: torch.from_numpy(arrays[name].numpy()).float() for name in model}
        for name, tensor in model.items():
            torch.testing.assert_close(server.model[name], tensor, rtol=1e-4, atol=1e-5)


def start_variance(theirs):
    """Start Flower's variance at tau^2, the least that the paper allows; Flower starts at 0."""
    theirs.v_t = {name: torch.full_like(t, TAU**2).numpy() for name, t in start().items()}


def test_fedprox_averages_as_flower_does():
    compare(FedProx(), flower.FedProx(proximal_mu=0.01))


@pytest.mark.parametrize(("momentum", "rate"), [(0.0, 0.5), (0.7, 1.0), (0.9, 0.3)])
def test_fedavgm_moves_as_in_flower(momentum, rate):
    compare(
        FedAvgM(momentum=momentum, learning_rate=rate),
        flower.FedAvgM(server_momentum=momentum, server_learning_rate=rate),
    )


def test_fedyogi_moves_as_in_flower():
    theirs = flower.FedYogi(eta=ETA, tau=TAU, beta_1=BETA1, beta_2=BETA2)
    start_variance(theirs)
    compare(FedYogi(eta=ETA, tau=TAU, beta1=BETA1, beta2=BETA2), theirs)


def test_fedadagrad_moves_as_in_flower():
    theirs = flower.FedAdagrad(eta=ETA, tau=TAU)
    start_variance(theirs)
    compare(FedAdagrad(eta=ETA, tau=TAU), theirs)


def test_fedadam_moves_as_in_flower_but_for_its_correction_of_bias():
    # The paper's algorithm has no correction. Flower's multiplies eta, and counts one round too many:
    # its exponents are 2, 3, 4 in rounds 1, 2, 3. It is divided out of eta here.
    theirs = flower.FedAdam(eta=ETA, tau=TAU, beta_1=BETA1, beta_2=BETA2)
    start_variance(theirs)

    def undo_correction(number):
        count = number + 1.0
        theirs.eta = ETA * (1.0 - BETA1**count) / (1.0 - BETA2**count) ** 0.5

    compare(FedAdam(eta=ETA, tau=TAU, beta1=BETA1, beta2=BETA2), theirs, undo_correction)
