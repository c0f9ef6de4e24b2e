import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.aggregate import Update, find_fault, weighted_mean


def state(values, steps=0):
    return {"w": torch.tensor(values), "steps": torch.tensor(steps)}


def test_the_mean_is_weighted():
    mean = weighted_mean([(1.0, state([0.0, 8.0])), (3.0, state([4.0, 0.0]))])
    assert mean["w"].tolist() == [3.0, 2.0]  # (1*0 + 3*4)/4, (1*8 + 3*0)/4


def test_counters_are_not_averaged():
    mean = weighted_mean([(1.0, state([0.0], steps=5)), (3.0, state([0.0], steps=2))])
    assert mean["steps"].item() == 5
    assert mean["steps"].dtype == torch.int64


def test_every_tensor_keeps_its_type():
    half = {"w": torch.tensor([1.0, 3.0], dtype=torch.bfloat16)}
    assert weighted_mean([(2.0, half), (2.0, half)])["w"].dtype == torch.bfloat16


def test_small_terms_are_not_lost_among_large_ones():
    # In float32 1e8 + 1 is 1e8: eight clients of value 1 would vanish beside one of 1e8.
    updates = [(1.0, state([1e8])), *((1.0, state([1.0])) for _ in range(7)), (1.0, state([-1e8]))]
    assert weighted_mean(updates)["w"].item() == pytest.approx(7 / 9)


def test_updates_are_left_as_they_are():
    first = state([1.0, 2.0], steps=1)
    weighted_mean([(1.0, first), (1.0, state([5.0, 5.0], steps=9))])
    assert first["w"].tolist() == [1.0, 2.0]
    assert first["steps"].item() == 1


def test_only_one_update_is_alive_at_a_time():
    alive = 0
    peak = 0

    class Counted(dict):
        def __init__(self, *args):
            nonlocal alive, peak
            super().__init__(*args)
            alive += 1
            peak = max(peak, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    weighted_mean((1.0, Counted(state([float(k)]))) for k in range(20))
    assert peak <= 2


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 500).map(float), st.floats(-100, 100, width=32)), min_size=1)
)
def test_the_mean_lies_between_the_updates_and_equal_updates_return_themselves(updates):
    mean = weighted_mean([(n, {"w": torch.tensor([x])}) for n, x in updates])["w"].item()
    values = [x for _, x in updates]
    assert min(values) - 1e-4 <= mean <= max(values) + 1e-4
    same = weighted_mean([(n, {"w": torch.tensor([values[0]])}) for n, _ in updates])
    assert same["w"].item() == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ([], "no update"),
        ([(0.0, state([1.0]))], "not positive"),
        ([(1.0, state([1.0])), (1.0, {"w": torch.tensor([1.0])})], "different tensors"),
    ],
)
def test_nonsense_is_refused(updates, message):
    with pytest.raises(ValueError, match=message):
        weighted_mean(updates)


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        (Update(0, 3, 1, 0.5, state([1.0, 2.0])), None),
        (Update(0, 0, 1, 0.5, state([1.0, 2.0])), "0 examples"),
        (Update(0, 3, 1, float("nan"), state([1.0, 2.0])), "loss is nan"),
        (Update(0, 3, 1, 0.5, state([1.0, float("nan")])), "w has values that are not finite"),
        (Update(0, 3, 1, 0.5, state([float("inf"), 1.0])), "w has values that are not finite"),
        (Update(0, 3, 1, 0.5, state([1.0])), "w is (1,)"),
        (
            Update(0, 3, 1, 0.5, {"w": torch.tensor([1, 2]), "steps": torch.tensor(0)}),
            "torch.int64",
        ),
        (
            Update(0, 3, 1, 0.5, {"w": torch.tensor([1.0, 2.0])}),
            "other tensors than the model: steps",
        ),
    ],
)
def test_a_fault_of_an_update_is_named(update, fault):
    found = find_fault(update, state([0.0, 0.0]))
    assert found is None if fault is None else fault in found


def test_values_whose_sum_overflows_are_sound_and_infinities_that_cancel_are_not():
    large = {"w": torch.tensor([3e38, 3e38, 1.0])}
    assert find_fault(Update(0, 1, 1, 0.5, large), large) is None
    broken = {"w": torch.tensor([math.inf, -math.inf, 1.0])}
    assert find_fault(Update(0, 1, 1, 0.5, broken), large) == "w has values that are not finite"
