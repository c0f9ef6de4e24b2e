import pytest
import torch
from torch import nn

from cache_schema.errors import InputError
from training.federated.aggregate import Server, Update
from training.federated.strategies.fedbn import FedBN


class Network(nn.Module):
    """Names tell nothing here: `bn` is a convolution, `mix` a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.Conv2d(1, 2, 1)
        self.mix = nn.BatchNorm2d(2)
        self.rest = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.LayerNorm(2))


OWN = {
    f"{layer}.{name}"
    for layer in ("mix", "rest.1")
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


def fill(model, value):
    state = {name: torch.full_like(t, int(value)) for name, t in model.state_dict().items()}
    model.load_state_dict(state)
    return state


def test_a_client_keeps_its_batchnorm_and_takes_the_rest_from_the_server():
    model = Network()
    fill(model, 3)
    extras, memory = FedBN().begin(model, {}, {}).finish(model)
    assert extras == {}
    assert memory.keys() == OWN

    fill(model, 8)  # the next global model; it must not reach into what was kept
    FedBN().begin(model, {}, memory)
    for name, tensor in model.state_dict().items():
        assert (tensor == (3 if name in OWN else 8)).all()


def test_a_client_that_has_none_of_its_own_yet_takes_everybodys_mean():
    model = Network()
    fill(model, 8)
    FedBN().begin(model, {}, {})
    assert all((tensor == 8).all() for tensor in model.state_dict().values())


def test_a_network_that_is_one_batchnorm_stays_with_its_client():
    model = nn.BatchNorm1d(2)
    _, memory = FedBN().begin(model, {}, {}).finish(model)
    assert memory.keys() == model.state_dict().keys()


def test_a_network_without_batchnorm_is_refused():
    with pytest.raises(InputError, match=r"^--strategy fedbn: the network has no BatchNorm"):
        FedBN().begin(nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2)), {}, {})


def test_the_server_averages_all_of_the_networks():
    model = Network()
    trainable = frozenset(name for name, _ in model.named_parameters())
    server = Server(fill(model, 9), trainable)
    updates = [Update(0, 1, 5, 0.5, fill(model, 0)), Update(1, 3, 5, 0.5, fill(model, 4))]
    after = FedBN().aggregate(server, iter(updates))
    for name, tensor in after.model.items():
        # (1*0 + 3*4)/4; the counter is the largest
        assert (tensor == (4 if name.endswith("num_batches_tracked") else 3)).all()
