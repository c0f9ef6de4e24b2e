import pytest
import torch

from training.federated.aggregate import Server, Update
from training.federated.strategies.topk_mean import TopKMean


def update(client, size, w, mean=0.0, steps=0):
    state = {
        "w": torch.tensor(w),
        "running_mean": torch.tensor([mean]),
        "n": torch.tensor(steps),
    }
    return Update(client, size, 10, 0.5, state)


def aggregate(strategy, updates):
    server = Server(updates[0].state, frozenset({"w"}))
    return strategy.aggregate(server, iter(updates)).model


# Medians are 2 and 1. Squared distances: 0: 4 + 0 = 4;  1: 1 + 9 = 10;  2: 0 + 1 = 1;
# 3: 64 + 0;  4: 1 + 1 = 2. Nearest to the mean (4.4, 1.4), or by one coordinate, are others.
FIVE = [
    update(0, 2, [0.0, 1.0], mean=900.0, steps=4),
    update(1, 1, [1.0, 4.0]),
    update(2, 1, [2.0, 0.0], mean=0.0, steps=1),
    update(3, 50, [16.0, 1.0], steps=10**9),
    update(4, 5, [3.0, 2.0], mean=4.0, steps=2),
]


def test_the_nearest_to_the_median_are_averaged_by_examples():
    model = aggregate(TopKMean(k=3), FIVE)
    # Clients 2, 4 and 0: (1*2 + 5*3 + 2*0)/8 and (1*0 + 5*2 + 2*1)/8
    assert model["w"].tolist() == [2.125, 1.5]
    assert model["running_mean"].tolist() == [227.5]  # (5*4 + 2*900)/8: buffers do not count
    assert model["n"].item() == 4  # the largest of those
    assert model["n"].dtype == torch.int64


def test_with_one_it_is_the_network_nearest_to_the_median():
    assert aggregate(TopKMean(k=1), FIVE)["w"].tolist() == [2.0, 0.0]


@pytest.mark.parametrize("k", [5, 80])
def test_with_no_more_clients_than_k_it_is_fedavg(k):
    model = aggregate(TopKMean(k=k), FIVE)
    mean = (2 * 0 + 1 * 1 + 1 * 2 + 50 * 16 + 5 * 3) / 59
    assert model["w"][0].item() == pytest.approx(mean)


def test_of_equal_distances_the_lower_client_is_taken_in_any_order():
    updates = [update(k, 1, [float(w)]) for k, w in enumerate((1, -1, 0))]
    for order in (updates, updates[::-1]):
        assert aggregate(TopKMean(k=2), order)["w"].tolist() == [0.5]
