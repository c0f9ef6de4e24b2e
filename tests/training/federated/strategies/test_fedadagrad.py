import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedadagrad import FedAdagrad


def update(client, num_examples, weight, variance, steps):
    state = {
        "w": torch.tensor([weight]),
        "var": torch.tensor([variance]),
        "steps": torch.tensor(steps),
    }
    return Update(client, num_examples, 5, 0.5, state)


def test_two_rounds_by_hand():
    server = Server(update(0, 1, 10.0, 1.0, 0).state, frozenset({"w"}))
    strategy = FedAdagrad(eta=2.0, tau=3.0)

    first = strategy.aggregate(
        server, iter([update(0, 1, 8.0, 1.0, 9), update(1, 3, 16.0, 5.0, 7)])
    )
    # change (1*-2 + 3*6)/4 = 4; v = 9 + 16 = 25, from v = tau^2 = 9
    assert first.model["w"].item() == 11.0  # 10 + 2*4/(5 + 3)
    assert first.model["var"].item() == 4.0  # (1*1 + 3*5)/4, not through Adagrad
    assert first.model["steps"].item() == 9

    second = strategy.aggregate(first, iter([update(0, 1, -1.0, 2.0, 11)]))
    # change -12; v = 25 + 144 = 169
    assert second.model["w"].item() == 9.5  # 11 - 2*12/(13 + 3)
    assert second.model["var"].item() == 2.0
    assert second.memory.keys() == {"variance/w"}


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8))
def test_no_step_is_longer_than_eta(moves):
    strategy = FedAdagrad(eta=0.5, tau=1e-3)
    server = Server({"w": torch.tensor([0.0], dtype=torch.float64)}, frozenset({"w"}))
    for move in moves:
        state = {"w": server.model["w"] + move}
        after = strategy.aggregate(server, iter([Update(0, 1, 1, 0.5, state)]))
        assert abs(after.model["w"] - server.model["w"]).item() <= 0.5
        server = after


def test_without_an_update_there_is_no_model():
    with pytest.raises(ValueError, match="no update"):
        FedAdagrad().aggregate(Server({"w": torch.tensor([1.0])}, frozenset({"w"})), iter(()))
