import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedyogi import FedYogi


def update(client, num_examples, weight, variance, steps):
    state = {
        "w": torch.tensor([weight]),
        "var": torch.tensor([variance]),
        "steps": torch.tensor(steps),
    }
    return Update(client, num_examples, 5, 0.5, state)


def test_two_rounds_by_hand():
    server = Server(update(0, 1, 10.0, 1.0, 0).state, frozenset({"w"}))
    strategy = FedYogi(eta=2.0, tau=2.0, beta1=0.5, beta2=0.5)

    first = strategy.aggregate(
        server, iter([update(0, 1, 12.0, 1.0, 9), update(1, 3, 20.0, 5.0, 7)])
    )
    # change (1*2 + 3*10)/4 = 8; m = 4; v = 4 + 0.5*64 = 36, from v = tau^2 = 4 < 64
    assert first.model["w"].item() == 11.0  # 10 + 2*4/(6 + 2)
    assert first.model["var"].item() == 4.0  # (1*1 + 3*5)/4, not through Yogi
    assert first.model["steps"].item() == 9

    second = strategy.aggregate(first, iter([update(0, 1, 9.0, 2.0, 11)]))
    # change -2; m = 0.5*4 - 0.5*2 = 1; v = 36 - 0.5*4 = 34, as 36 > 4; Adam would have 20
    assert second.model["w"].item() == pytest.approx(11.0 + 2.0 / (34.0**0.5 + 2.0))
    assert second.model["var"].item() == 2.0


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8), st.floats(0, 0.99))
def test_the_variance_never_falls_below_zero(moves, beta2):
    strategy = FedYogi(eta=1.0, tau=1e-3, beta2=beta2)
    server = Server({"w": torch.tensor([0.0])}, frozenset({"w"}))
    for move in moves:
        state = {"w": server.model["w"] + move}
        server = strategy.aggregate(server, iter([Update(0, 1, 1, 0.5, state)]))
        assert server.memory["variance/w"].item() >= 0.0
        assert torch.isfinite(server.model["w"]).all()


def test_without_an_update_there_is_no_model():
    with pytest.raises(ValueError, match="no update"):
        FedYogi().aggregate(Server({"w": torch.tensor([1.0])}, frozenset({"w"})), iter(()))
