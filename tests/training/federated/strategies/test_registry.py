import pytest
import torch

from cache_schema.errors import InputError
from training.federated.aggregate import Update
from training.federated.strategies.registry import STRATEGIES, make_strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_updates_return_themselves(name):
    state = {"w": torch.tensor([1.5, -2.0])}
    updates = [Update(client, 5, dict(state)) for client in range(3)]
    assert make_strategy(name).aggregate(state, updates)["w"].tolist() == [1.5, -2.0]


def test_an_unknown_strategy_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="--strategy fedsgd: unknown; choose one of fedavg"):
        make_strategy("fedsgd")
