from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedcostwavg import FedCostWAvg


def state(value, steps=0):
    return {"w": torch.tensor([value]), "mean": torch.tensor([value + 1]), "n": torch.tensor(steps)}


def update(client, size, loss, value, steps=0):
    return Update(client, size, 10, loss, state(value, steps))


def new_server():
    return Server(state(100.0), frozenset({"w"}))


def test_the_first_round_is_fedavg():
    server = FedCostWAvg().aggregate(
        new_server(), iter([update(0, 1, 0.1, 0.0), update(1, 3, 9.0, 4.0, steps=5)])
    )
    assert server.model["w"].tolist() == [3.0]  # (1*0 + 3*4)/4, and not 2, equal ratios
    assert server.model["mean"].tolist() == [4.0]
    assert server.model["n"].item() == 5


def test_half_of_the_weight_goes_by_the_ratio_of_losses():
    strategy = FedCostWAvg()
    server = strategy.aggregate(new_server(), [update(0, 1, 6.0, 0.0), update(1, 3, 2.0, 0.0)])
    # The replies come in another order: losses belong to clients.
    second = [update(1, 3, 2.0, 16.0, steps=4), update(0, 1, 2.0, 0.0, steps=9)]
    server = strategy.aggregate(replace(server, round=1), iter(second))
    # k = 6/2 = 3 and 2/2 = 1; weight of client 1 is 0.5*3/4 + 0.5*1/4 = 0.5
    assert server.model["w"].tolist() == [8.0]
    assert server.model["mean"].tolist() == [9.0]  # 0.5*1 + 0.5*17
    assert server.model["n"].item() == 9
    assert server.model["n"].dtype == torch.int64


def test_a_client_that_was_absent_is_compared_with_its_own_last_loss():
    strategy = FedCostWAvg(alpha=0.0)
    server = strategy.aggregate(new_server(), [update(0, 1, 8.0, 0.0), update(1, 1, 4.0, 0.0)])
    server = strategy.aggregate(replace(server, round=1), [update(1, 1, 4.0, 0.0)])
    third = [update(0, 1, 4.0, 9.0), update(1, 1, 4.0, 0.0)]
    server = strategy.aggregate(replace(server, round=2), third)
    assert server.model["w"].tolist() == [6.0]  # k = 8/4 = 2 and 4/4 = 1: (2*9 + 1*0)/3


def test_a_client_that_comes_later_has_the_weight_of_fedavg():
    strategy = FedCostWAvg(alpha=0.0)
    server = strategy.aggregate(new_server(), [update(0, 1, 6.0, 0.0), update(1, 1, 2.0, 0.0)])
    second = [update(0, 1, 2.0, 8.0), update(1, 1, 2.0, 0.0), update(2, 2, 1.0, 4.0)]
    server = strategy.aggregate(replace(server, round=1), second)
    # Client 2 has 2/4; the others share the rest 3:1 by k. 0.5*4 + 0.5*(3*8 + 1*0)/4
    assert server.model["w"].tolist() == [5.0]


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_without_a_ratio_counts_as_new(loss):
    strategy = FedCostWAvg(alpha=0.0)
    server = strategy.aggregate(new_server(), [update(0, 1, 6.0, 0.0), update(1, 1, 2.0, 0.0)])
    second = [update(0, 1, loss, 8.0), update(1, 3, 2.0, 0.0)]
    server = strategy.aggregate(replace(server, round=1), second)
    assert server.model["w"].tolist() == [2.0]  # 1/4 of 8


@pytest.mark.parametrize(("before", "after"), [(5e-324, 1e3), (1e3, 5e-324)])
def test_a_ratio_that_no_float_can_hold_is_bounded(before, after):
    strategy = FedCostWAvg(alpha=0.0)
    server = strategy.aggregate(new_server(), [update(0, 1, before, 0.0)])
    server = strategy.aggregate(replace(server, round=1), [update(0, 1, after, 8.0)])
    assert server.model["w"].tolist() == [8.0]


def test_the_memory_is_one_scalar_for_each_client():
    server = FedCostWAvg().aggregate(new_server(), [update(7, 1, 6.0, 0.0), update(3, 1, 2.0, 0.0)])
    assert {key: value.item() for key, value in server.memory.items()} == {
        "loss/3": 2.0,
        "loss/7": 6.0,
    }
    assert all(v.shape == () and v.dtype == torch.float64 for v in server.memory.values())


def test_no_update_is_refused():
    with pytest.raises(ValueError, match="no update"):
        FedCostWAvg().aggregate(new_server(), iter(()))


@settings(deadline=None)
@given(
    alpha=st.floats(0, 1),
    clients=st.lists(
        st.tuples(
            st.integers(1, 500), st.floats(0, 1e3), st.floats(0, 1e3), st.floats(-9, 9, width=32)
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_the_mean_lies_between_the_networks_whatever_the_losses(alpha, clients):
    strategy = FedCostWAvg(alpha=alpha)
    first = [update(k, size, loss, 0.0) for k, (size, loss, _, _) in enumerate(clients)]
    server = strategy.aggregate(new_server(), first[::2] or first)
    second = [update(k, size, loss, value) for k, (size, _, loss, value) in enumerate(clients)]
    mean = strategy.aggregate(replace(server, round=1), second).model["w"].item()
    values = [value for *_, value in clients]
    assert min(values) - 1e-4 <= mean <= max(values) + 1e-4
