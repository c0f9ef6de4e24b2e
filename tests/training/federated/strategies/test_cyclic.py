import pytest
import torch

from training.federated.aggregate import Server, Update
from training.federated.strategies.cyclic import Cyclic


def test_the_last_network_is_the_next_model_whatever_the_numbers_of_examples():
    def update(client, num_examples, weight, variance):
        state = {"w": torch.tensor([weight]), "var": torch.tensor([variance])}
        return Update(client, num_examples, 5, 0.5, state)

    server = Server(update(0, 1, 9.0, 1.0).state, frozenset({"w"}))
    updates = [update(0, 1, 1.0, 2.0), update(4, 500, 5.0, 6.0), update(2, 3, 3.0, 4.0)]
    after = Cyclic().aggregate(server, iter(updates))
    assert after.model["w"].item() == 3.0
    assert after.model["var"].item() == 4.0


def test_clients_start_from_the_client_before_them():
    assert Cyclic().is_sequential


def test_without_an_update_there_is_no_model():
    with pytest.raises(ValueError, match="no update"):
        Cyclic().aggregate(Server({}, frozenset()), iter(()))
