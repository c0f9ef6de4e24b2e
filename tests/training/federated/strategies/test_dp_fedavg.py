import math
from dataclasses import replace

import pytest
import torch

from training.federated.aggregate import Server, Update
from training.federated.privacy import spent_epsilon
from training.federated.strategies import dp_fedavg
from training.federated.strategies.dp_fedavg import DPFedAvg, clipped_change
from training.federated.strategies.registry import make_strategy


def state(w, var=1.0, steps=0):
    return {
        "w": torch.tensor(w),
        "bn.running_var": torch.tensor([var]),
        "n": torch.tensor(steps),
    }


SERVER = Server(state([1.0, 1.0]), frozenset({"w"}))


def update(client, size, w, var=1.0, steps=0):
    return Update(client, size, 10, 0.5, state(w, var, steps))


def test_changes_are_clipped_to_their_norm_over_parameters_and_buffers_together():
    change = clipped_change(state([3.0, 4.0], var=5.0), state([1.0, 3.0], var=3.0), clip=1.5)
    # (2, 1, 2) has norm 3: half of it. Over the parameters alone it would be 1.5 / 2.24
    assert change["w"].tolist() == [1.0, 0.5]
    assert change["bn.running_var"].tolist() == [1.0]
    assert change["w"].dtype == torch.float64


def test_a_change_within_the_bound_or_of_zero_is_left():
    same = state([1.0, 3.0], var=3.0)
    assert clipped_change(same, same, clip=1.0)["w"].tolist() == [0.0, 0.0]
    assert clipped_change(state([1.0, 3.5], var=3.0), same, clip=1.0)["w"].tolist() == [0.0, 0.5]


def test_without_noise_it_is_the_plain_mean_of_clipped_changes_in_every_round():
    strategy = DPFedAvg(clip=5.0, noise=0.0)
    updates = [update(0, 1, [7.0, 9.0], steps=4), update(1, 3, [1.0, 2.0], steps=9)]
    server = strategy.aggregate(SERVER, iter(updates))
    # (6, 8) becomes (3, 4), (0, 1) stays: (1, 1) + (1.5, 2.5); weights 1:3 would give another
    assert server.model["w"].tolist() == [2.5, 3.5]
    assert server.model["n"].item() == 9
    assert server.model["n"].dtype == torch.int64
    second = [update(0, 1, [2.5, 3.5]), update(1, 3, [2.5, 5.5])]
    server = strategy.aggregate(replace(server, round=1), iter(second))
    assert server.model["w"].tolist() == [2.5, 4.5]


def test_the_noise_has_the_stated_size():
    num_values, num_clients = 40_000, 4
    model = {"w": torch.zeros(num_values), "m": torch.zeros(num_values)}
    server = Server(model, frozenset({"w"}))
    updates = [Update(k, 1, 1, 0.5, model) for k in range(num_clients)]
    result = DPFedAvg(clip=6.0, noise=2.0, seed=1).aggregate(server, updates).model
    for name in model:
        # z C / K = 3; the deviation of 40,000 values is within 2 %, their mean within 0.06
        assert result[name].std().item() == pytest.approx(3.0, rel=0.02)
        assert abs(result[name].mean().item()) < 0.06
    assert not torch.equal(result["w"], result["m"])


def test_a_variance_is_never_negative():
    strategy = DPFedAvg(clip=1.0, noise=50.0, seed=0)
    server, lowest = SERVER, 0.0
    for number in range(20):
        server = strategy.aggregate(
            replace(server, round=number), [Update(0, 1, 1, 0.5, server.model)]
        )
        assert server.model["bn.running_var"].item() >= 0
        lowest = min(lowest, server.model["w"].min().item())
    assert lowest < -50  # and parameters may be


def noisy(strategy, round_number=0, model=SERVER.model):
    server = replace(SERVER, round=round_number, model=model)
    return strategy.aggregate(server, [Update(0, 1, 1, 0.5, model)]).model


def test_a_seed_gives_the_same_noise_in_a_round_whatever_the_order_of_names():
    first, again = (noisy(DPFedAvg(seed=7)) for _ in range(2))
    turned = noisy(DPFedAvg(seed=7), model=dict(reversed(SERVER.model.items())))
    assert torch.equal(first["w"], again["w"])
    assert torch.equal(first["w"], turned["w"])
    assert not torch.equal(first["w"], noisy(DPFedAvg(seed=7), round_number=1)["w"])
    assert not torch.equal(first["w"], noisy(DPFedAvg(seed=8))["w"])


def test_a_seed_is_not_cut_to_32_bits():
    assert not torch.equal(noisy(DPFedAvg(seed=1))["w"], noisy(DPFedAvg(seed=1 + 2**32))["w"])


def test_by_default_the_noise_cannot_be_repeated():
    assert not torch.equal(noisy(DPFedAvg())["w"], noisy(DPFedAvg())["w"])


def test_the_log_gets_the_epsilon_of_all_rounds_so_far():
    pytest.importorskip("opacus")
    strategy = make_strategy("dp-fedavg", {"noise": "2", "delta": "1e-4"})
    figures = strategy.figures(replace(SERVER, round=5))
    assert figures == {"epsilon": spent_epsilon(5, 2.0, 1e-4)}
    assert 1 < figures["epsilon"] < math.inf


def test_without_noise_or_opacus_there_is_no_epsilon(monkeypatch):
    assert DPFedAvg(noise=0.0).figures(replace(SERVER, round=5)) == {}
    monkeypatch.setattr(dp_fedavg, "has_accountant", lambda: False)
    assert DPFedAvg().figures(replace(SERVER, round=5)) == {}


def test_no_update_is_refused():
    with pytest.raises(ValueError, match="no update"):
        DPFedAvg().aggregate(SERVER, iter(()))


def test_names_keep_their_order():
    # Flower passes arrays by position.
    assert list(noisy(DPFedAvg())) == ["w", "bn.running_var", "n"]
