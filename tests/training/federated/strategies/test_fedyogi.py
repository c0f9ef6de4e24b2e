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
    strategy = FedYogi(eta=6.0, tau=2.0, beta1=0.75, beta2=0.75)

    first = strategy.aggregate(
        server, iter([update(0, 1, 7.0, 1.0, 9), update(1, 3, 15.0, 5.0, 7)])
    )
    # change (1*-3 + 3*5)/4 = 3; m = 0.25*3 = 0.75; v = 4 + 0.25*9 = 6.25, from v = tau^2 = 4 < 9
    assert first.model["w"].item() == 11.0  # 10 + 6*0.75/(2.5 + 2)
    assert first.model["var"].item() == 4.0  # (1*1 + 3*5)/4, not through Yogi
    assert first.model["steps"].item() == 9

    second = strategy.aggregate(first, iter([update(0, 1, 10.0, 2.0, 11)]))
    # change -1; m = 0.75*0.75 - 0.25*1 = 0.3125; v = 6.25 - 0.25*1 = 6, as 6.25 > 1; Adam has 4.9375
    assert second.model["w"].item() == pytest.approx(11.0 + 6.0 * 0.3125 / (6.0**0.5 + 2.0))
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
