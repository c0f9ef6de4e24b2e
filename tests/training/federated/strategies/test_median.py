import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.aggregate import Server, Update
from training.federated.strategies.median import Median, coordinate_median


def median(*clients):
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
    return Median().aggregate(server, iter(updates)).model


def test_every_value_is_a_median_of_its_own_and_sizes_do_not_matter():
    model = median((1, [0.0, 8.0], 4.0, 5), (1, [4.0, 0.0], 9.0, 7), (98, [1e9, -1e9], 1e9, 10**9))
    assert model["w"].tolist() == [4.0, 0.0]  # the means are 3.3e8 and more, weighted or not
    assert model["running_var"].tolist() == [9.0]
    assert model["n"].item() == 7
    assert model["n"].dtype == torch.int64


def test_of_an_even_number_the_two_in_the_middle_are_averaged_but_for_counters():
    clients = [(1, [w], var, n) for w, var, n in [(1.0, 4.0, 9), (3.0, 1.0, 2), (8.0, 2.0, 4)]]
    model = median(*clients, (1, [90.0], 7.0, 6))
    assert model["w"].tolist() == [5.5]  # (3 + 8)/2
    assert model["running_var"].tolist() == [3.0]  # (2 + 4)/2
    assert model["n"].item() == 4  # the lower of 4 and 6


def test_one_client_alone_is_taken_as_it_is():
    assert median((3, [0.1, -7.0], 2.0, 4))["w"].tolist() == [pytest.approx(0.1), -7.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_types_are_kept(dtype):
    values = torch.tensor([[1, 7], [2, 5], [4, 4], [3, 3]], dtype=dtype)
    expected = [2, 4] if dtype == torch.int32 else [2.5, 4.5]
    assert coordinate_median(values).tolist() == expected
    assert coordinate_median(values).dtype == dtype


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=9), st.data())
def test_a_minority_of_liars_cannot_leave_the_range_of_the_others(honest, data):
    num_liars = (len(honest) - 1) // 2
    lies = data.draw(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=num_liars))
    result = coordinate_median(torch.tensor([[value] for value in [*lies, *honest]])).item()
    assert min(honest) <= result <= max(honest)
