import pytest
import torch

from training.federated.aggregate import Server, Update
from training.federated.strategies.trimmed_mean import TrimmedMean


def trimmed(strategy, *clients):
    """Aggregate clients given as (number of examples, parameters, running variance, steps)."""
    updates = [
        Update(
            k,
            size,
            10,
            0.5,
            {"w": torch.tensor(w), "running_var": torch.tensor([var]), "n": torch.tensor(steps)},
        )
        for k, (size, w, var, steps) in enumerate(clients)
    ]
    server = Server(updates[0].state, frozenset({"w"}))
    return strategy.aggregate(server, iter(updates)).model


FIVE = [
    (1, [1.0, 100.0], 5.0, 3),
    (1, [-1e9, 3.0], 6.0, 10**9),
    (1, [2.0, -1e9], 1.0, 4),
    (98, [3.0, 2.0], 1e9, 8),
    (1, [10.0, 1.0], 1.0, 5),
]


def test_one_of_five_is_cut_at_each_end_and_sizes_do_not_matter():
    model = trimmed(TrimmedMean(), *FIVE)
    assert model["w"].tolist() == [2.0, 2.0]  # (1 + 2 + 3)/3 and (3 + 2 + 1)/3
    assert model["running_var"].tolist() == [4.0]  # (5 + 6 + 1)/3
    assert model["n"].item() == 5  # the median; the largest is a lie
    assert model["n"].dtype == torch.int64


def test_with_less_than_one_client_to_cut_it_is_the_plain_mean():
    model = trimmed(TrimmedMean(), *((n, [w], 1.0, 1) for n, w in [(1, 0.0), (5, 2.0), (9, 7.0)]))
    assert model["w"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("trim", "num_clients", "cut"),
    [
        (0.2, 4, 0),
        (0.2, 5, 1),
        (0.2, 9, 1),
        (0.29, 100, 29),  # int(0.29 * 100) is 28
        (0.0, 80, 0),
        (0.4999999999, 2, 0),  # or nobody would be left
        (0.49, 3, 1),
    ],
)
def test_how_many_are_cut(trim, num_clients, cut):
    assert TrimmedMean(trim=trim).count_cut(num_clients) == cut
