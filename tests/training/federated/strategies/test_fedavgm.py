import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedavg import FedAvg
from training.federated.strategies.fedavgm import FedAvgM


def update(client, num_examples, weight, variance, steps):
    state = {
        "w": torch.tensor([weight]),
        "var": torch.tensor([variance]),
        "steps": torch.tensor(steps),
    }
    return Update(client, num_examples, 5, 0.5, state)


def test_the_server_goes_on_in_the_direction_of_earlier_rounds():
    server = Server(update(0, 1, 10.0, 1.0, 0).state, frozenset({"w"}))
    strategy = FedAvgM(momentum=0.5, learning_rate=0.5)

    first = strategy.aggregate(
        server, iter([update(0, 1, 6.0, 1.0, 9), update(1, 3, 14.0, 5.0, 7)])
    )
    assert first.model["w"].item() == 11.0  # change (1*-4 + 3*4)/4 = 2 = v; 10 + 0.5*2
    assert first.model["var"].item() == 4.0  # (1*1 + 3*5)/4, no momentum
    assert first.model["steps"].item() == 9

    second = strategy.aggregate(first, iter([update(0, 1, 15.0, 2.0, 11)]))
    assert second.model["w"].item() == 13.5  # change 4; v = 0.5*2 + 4 = 5; 11 + 0.5*5
    assert second.model["var"].item() == 2.0
    assert second.memory["velocity/w"].item() == 5.0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(-100, 100, width=32)), min_size=1, max_size=6)
)
def test_without_momentum_it_is_fedavg(clients):
    updates = [update(k, n, w, 1.0, 0) for k, (n, w) in enumerate(clients)]
    server = Server(update(0, 1, 10.0, 1.0, 0).state, frozenset({"w"}))
    ours = FedAvgM(momentum=0.0).aggregate(server, iter(updates))
    theirs = FedAvg().aggregate(server, iter(updates))
    torch.testing.assert_close(ours.model["w"], theirs.model["w"])


def test_without_an_update_there_is_no_model():
    with pytest.raises(ValueError, match="no update"):
        FedAvgM().aggregate(Server({"w": torch.tensor([1.0])}, frozenset({"w"})), iter(()))
