from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedpidavg import FedPIDAvg


def state(value, steps=0):
    return {"w": torch.tensor([value]), "mean": torch.tensor([value + 1]), "n": torch.tensor(steps)}


def update(client, size, loss, value, steps=0):
    return Update(client, size, 10, loss, state(value, steps))


def run(strategy, *rounds):
    server = Server(state(100.0), frozenset({"w"}))
    for number, updates in enumerate(rounds, start=1):
        server = replace(strategy.aggregate(server, iter(updates)), round=number)
    return server


FIRST = [update(0, 1, 5.0, 0.0), update(1, 3, 2.0, 0.0)]


def test_the_first_round_is_fedavg():
    server = run(FedPIDAvg(), [update(0, 1, 0.1, 0.0), update(1, 3, 9.0, 4.0, steps=5)])
    assert server.model["w"].tolist() == [3.0]  # (1*0 + 3*4)/4
    assert server.model["n"].item() == 5


def test_weights_are_by_size_by_drop_and_by_sum_of_losses():
    # The replies come in another order: losses belong to clients.
    server = run(FedPIDAvg(), FIRST, [update(1, 3, 1.0, 100.0, steps=4), update(0, 1, 2.0, 0.0)])
    # Client 1: n 3 of 4, drop 2-1 = 1 of 1+3, sum 2+1 = 3 of 3+7
    expected = 100 * (0.45 * 3 / 4 + 0.45 * 1 / 4 + 0.1 * 3 / 10)
    assert server.model["w"].item() == pytest.approx(expected, rel=1e-6)  # 48
    assert server.model["mean"].item() == pytest.approx(expected + 1, rel=1e-6)
    assert server.model["n"].item() == 4
    assert server.model["n"].dtype == torch.int64


def test_a_loss_that_rose_counts_as_no_drop():
    second = [update(0, 1, 6.0, 0.0), update(1, 3, 1.0, 100.0)]
    server = run(FedPIDAvg(gamma=0.0), FIRST, second)
    # Drops max(0, -1) = 0 and 1; shares of 0.45 and 0.45 are a half each. 100*(3/4 + 1)/2
    assert server.model["w"].item() == 87.5


def test_where_no_loss_fell_sizes_decide():
    second = [update(0, 1, 5.0, 0.0), update(1, 3, 4.0, 100.0)]
    server = run(FedPIDAvg(gamma=0.0), FIRST, second)
    assert server.model["w"].item() == 75.0


def test_where_all_losses_are_zero_it_is_fedavg():
    zeros = [update(0, 1, 0.0, 0.0), update(1, 3, 0.0, 100.0)]
    assert run(FedPIDAvg(), zeros, zeros).model["w"].item() == 75.0


def test_the_sum_goes_over_the_last_six_losses():
    strategy = FedPIDAvg(alpha=1e-9, beta=0.0, gamma=1.0)
    early = [[update(0, 1, loss, 0.0), update(1, 1, 1.0, 0.0)] for loss in (50.0, 8.0)]
    later = [[update(0, 1, 2.0, 0.0), update(1, 1, 1.0, 18.0)]] * 5
    server = run(strategy, *early, *later)
    # Client 0: 8 + 5*2 = 18 without the 50; client 1: 6
    assert server.model["w"].item() == pytest.approx(18 * 6 / 24, rel=1e-6)
    assert server.memory["losses/0"].tolist() == [8.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_a_client_that_comes_back_goes_on_from_its_own_losses():
    strategy = FedPIDAvg(alpha=1e-9, beta=1.0, gamma=0.0)
    third = [update(0, 1, 3.0, 12.0), update(1, 3, 3.0, 0.0)]
    server = run(strategy, FIRST, [update(1, 3, 4.0, 0.0)], third)
    # Drops 5-3 = 2 over its absence, and 4-3 = 1
    assert server.model["w"].item() == pytest.approx(8.0, rel=1e-6)
    assert server.memory["losses/0"].tolist() == [5.0, 3.0]
    assert server.memory["losses/1"].tolist() == [2.0, 4.0, 3.0]


def test_a_client_that_comes_later_has_the_weight_of_fedavg():
    strategy = FedPIDAvg(alpha=1e-9, beta=1.0, gamma=0.0)
    second = [update(0, 1, 2.0, 8.0), update(1, 3, 1.0, 0.0), update(2, 4, 7.0, 4.0)]
    server = run(strategy, FIRST, second)
    # Client 2 has 4/8; the others share the rest by drops 3:1. 0.5*4 + 0.5*(3*8 + 1*0)/4
    assert server.model["w"].item() == pytest.approx(5.0, rel=1e-6)


SMALL = [update(0, 10, 1.0, 0.0), update(1, 10, 1.0, 20.0)]
LARGE = update(2, 100, 1.0, 99.0)  # mean size 40, an outlier from 80 on


def test_an_outlier_rests_in_two_rounds_of_three():
    strategy = FedPIDAvg(beta=0.0, gamma=0.0, poisson=True)
    all_of_them = [*SMALL, LARGE]
    values = [
        run(strategy, *[all_of_them] * rounds).model["w"].item() for rounds in (1, 2, 3, 4, 5)
    ]
    with_large = pytest.approx((10 * 0 + 10 * 20 + 100 * 99) / 120, rel=1e-6)
    assert values == [with_large, 10.0, 10.0, with_large, 10.0]


def test_losses_of_a_resting_outlier_are_remembered():
    server = run(FedPIDAvg(poisson=True), [*SMALL, LARGE], [*SMALL, replace(LARGE, loss=0.5)])
    assert server.memory["losses/2"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("poisson", [False, True])
def test_a_round_with_nobody_but_outliers_takes_them(poisson):
    server = run(FedPIDAvg(poisson=poisson), [*SMALL, LARGE], [LARGE])
    assert server.model["w"].item() == 99.0


def test_twice_the_mean_size_is_no_outlier_yet():
    strategy = FedPIDAvg(beta=0.0, gamma=0.0, poisson=True)
    updates = [update(0, 10, 1.0, 0.0), update(1, 10, 1.0, 0.0), update(2, 40, 1.0, 60.0)]
    assert run(strategy, updates, updates).model["w"].item() == 40.0  # mean size 20; 40/60 of 60


def test_no_update_is_refused():
    with pytest.raises(ValueError, match="no update"):
        run(FedPIDAvg(), [])


@settings(deadline=None)
@given(
    poisson=st.booleans(),
    clients=st.lists(
        st.tuples(
            st.integers(1, 500), st.floats(0, 1e3), st.floats(0, 1e3), st.floats(-9, 9, width=32)
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_the_mean_lies_between_the_networks_whatever_the_losses(poisson, clients):
    first = [update(k, size, loss, 0.0) for k, (size, loss, _, _) in enumerate(clients)]
    second = [update(k, size, loss, value) for k, (size, _, loss, value) in enumerate(clients)]
    mean = run(FedPIDAvg(poisson=poisson), first[::2], second).model["w"].item()
    values = [value for *_, value in clients]
    assert min(values) - 1e-4 <= mean <= max(values) + 1e-4
