from dataclasses import replace

import pytest
import torch
from torch import nn

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedadam import FedAdam


def update(client, num_examples, weight, variance, steps):
    state = {
        "w": torch.tensor([weight]),
        "var": torch.tensor([variance]),
        "steps": torch.tensor(steps),
    }
    return Update(client, num_examples, 5, 0.5, state)


def test_two_rounds_by_hand():
    server = Server(update(0, 1, 10.0, 1.0, 0).state, frozenset({"w"}))
    strategy = FedAdam(eta=4.2, tau=4.0, beta1=0.75, beta2=0.75)

    first = strategy.aggregate(
        server, iter([update(0, 1, 9.0, 1.0, 9), update(1, 3, 25.0, 5.0, 7)])
    )
    # change (1*-1 + 3*15)/4 = 11; m = 0.25*11 = 2.75; from v = tau^2 = 16
    # v = 0.75*16 + 0.25*121 = 42.25 = 6.5^2
    assert first.model["w"].item() == pytest.approx(11.1)  # 10 + 4.2*2.75/(6.5 + 4)
    assert first.model["var"].item() == 4.0  # (1*1 + 3*5)/4, not through Adam
    assert first.model["steps"].item() == 9

    second = strategy.aggregate(first, iter([update(0, 1, 6.1, 2.0, 11)]))
    # change -5; m = 0.75*2.75 - 0.25*5 = 0.8125; v = 0.75*42.25 + 0.25*25 = 37.9375
    assert second.model["w"].item() == pytest.approx(11.1 + 4.2 * 0.8125 / (37.9375**0.5 + 4.0))
    assert second.model["var"].item() == 2.0


def network():
    """Make a network whose BatchNorm has seen images before, brighter than those of any client."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        norm = nn.BatchNorm2d(4, momentum=1.0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))
        model(0.5 * torch.randn(64, 1, 6, 6))
        norm.momentum = 0.1
        return model


def train(server, client, round_number):
    """A few steps of Adam on dim random images, each client at a brightness of its own."""
    model = network()
    model.load_state_dict(server.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    source = torch.Generator().manual_seed(100 * round_number + client)
    for _ in range(4):
        image = 0.05 * (1 + client) * torch.randn(8, 1, 6, 6, generator=source)
        optimizer.zero_grad()
        (model(image) - image.mean(dim=(1, 2, 3))[:, None]).square().mean().backward()
        optimizer.step()
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return Update(client, 8 + client, 4, 0.5, state)


def carry_out_50_rounds(trainable):
    """Return the smallest variance of BatchNorm that was ever met, and if predictions stayed finite."""
    server = Server(network().state_dict(), frozenset(trainable))
    smallest, is_finite = float("inf"), True
    for number in range(50):
        updates = (train(server, client, number) for client in range(3))
        server = replace(FedAdam().aggregate(server, updates), round=number + 1)
        model = network().eval()
        model.load_state_dict(server.model)
        with torch.no_grad():
            is_finite &= bool(torch.isfinite(model(torch.ones(1, 1, 6, 6))).all())
        smallest = min(smallest, server.model["1.running_var"].min().item())
    return smallest, is_finite


def test_a_network_with_batchnorm_stays_finite_for_50_rounds():
    parameters = {name for name, _ in network().named_parameters()}
    smallest, is_finite = carry_out_50_rounds(parameters)
    assert smallest > 0.0
    assert is_finite


def test_a_server_optimiser_that_takes_buffers_too_ends_in_nan():
    # Shows that the test before can fail: momentum carries the falling variance through zero.
    floats = {n for n, t in network().state_dict().items() if t.is_floating_point()}
    smallest, is_finite = carry_out_50_rounds(floats)
    assert smallest < 0.0
    assert not is_finite


def test_without_an_update_there_is_no_model():
    with pytest.raises(ValueError, match="no update"):
        FedAdam().aggregate(Server({"w": torch.tensor([1.0])}, frozenset({"w"})), iter(()))
