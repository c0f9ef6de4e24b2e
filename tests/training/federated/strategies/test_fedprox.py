import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedprox import FedProx


def test_a_client_is_pulled_back_to_where_the_round_started():
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    nn.init.constant_(model[0].weight, 1.0)
    rule = FedProx(mu=0.5).begin(model, {}, {})
    nn.init.constant_(model[0].weight, 5.0)
    nn.init.constant_(model[1].running_mean, 7.0)
    model[0].weight.grad = torch.tensor([[2.0]])
    rule.adjust(model)
    assert model[0].weight.grad.item() == 4.0  # 2 + 0.5 * (5 - 1)
    assert model[0].bias.grad is None  # had no part in the loss
    assert model[1].running_mean.item() == 7.0
    assert rule.finish(model) == ({}, {})


def test_the_first_step_of_a_round_is_not_changed_and_is_finite():
    model = nn.Linear(3, 2)
    rule = FedProx(mu=1.0).begin(model, {}, {})
    model(torch.ones(4, 3)).sum().backward()
    gradient = model.weight.grad.clone()
    rule.adjust(model)
    assert torch.equal(model.weight.grad, gradient)


@settings(deadline=None)
@given(
    st.floats(0, 10),
    st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6),
    st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6),
)
def test_the_pull_is_the_gradient_of_the_proximal_term(mu, start, now):
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(start).reshape(2, 3))
        rule = FedProx(mu=mu).begin(model, {}, {})
        model.weight.copy_(torch.tensor(now).reshape(2, 3))
    image = torch.arange(3.0)
    loss = model(image).square().sum()
    proximal = mu / 2 * (model.weight - torch.tensor(start).reshape(2, 3)).square().sum()
    expected = torch.autograd.grad(loss + proximal, model.weight)[0]
    model(image).square().sum().backward()
    rule.adjust(model)
    torch.testing.assert_close(model.weight.grad, expected, rtol=1e-4, atol=1e-4)


def test_the_server_averages_by_number_of_examples():
    server = Server({"w": torch.tensor([9.0]), "steps": torch.tensor(1)}, frozenset({"w"}))
    updates = [
        Update(0, 1, 7, 0.5, {"w": torch.tensor([0.0]), "steps": torch.tensor(8)}),
        Update(1, 3, 2, 0.1, {"w": torch.tensor([4.0]), "steps": torch.tensor(3)}),
    ]
    after = FedProx().aggregate(server, iter(updates))
    assert after.model["w"].item() == 3.0  # (1*0 + 3*4)/4
    assert after.model["steps"].item() == 8
    assert after.memory == {}


def test_without_an_update_there_is_no_model():
    with pytest.raises(ValueError, match="no update"):
        FedProx().aggregate(Server({}, frozenset()), iter(()))
