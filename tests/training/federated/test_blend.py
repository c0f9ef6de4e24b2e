import pytest
import torch

from training.federated.blend import blend


def state(value, steps=0):
    return {"w": torch.tensor([value]), "steps": torch.tensor(steps)}


def test_a_blend_is_the_sum_of_the_means_of_its_terms():
    updates = [
        ({"size": 1.0, "drop": 3.0}, state(0.0, steps=7)),
        ({"size": 3.0, "drop": 1.0}, state(8.0, steps=2)),
    ]
    mean = blend(iter(updates), lambda totals: {"size": 0.25, "drop": 0.75})
    # By size (1*0 + 3*8)/4 = 6, by drop (3*0 + 1*8)/4 = 2: 0.25*6 + 0.75*2
    assert mean["w"].tolist() == [3.0]
    assert mean["steps"].item() == 7
    assert (mean["w"].dtype, mean["steps"].dtype) == (torch.float32, torch.int64)


def test_shares_are_told_the_totals_and_terms_without_weight_are_left_out():
    seen = []

    def shares(totals):
        seen.append(dict(totals))
        return {"size": 1.0, "drop": 0.0}

    updates = [({"size": 2.0, "drop": 0.0}, state(1.0)), ({"size": 2.0}, state(2.0))]
    assert blend(updates, shares)["w"].tolist() == [1.5]
    assert seen == [{"size": 4.0, "drop": 0.0}]


def test_counters_of_a_network_without_weight_are_kept_too():
    updates = [({"size": 1.0}, state(1.0, steps=3)), ({"size": 0.0}, state(5.0, steps=9))]
    mean = blend(updates, lambda _: {"size": 1.0})
    assert (mean["w"].item(), mean["steps"].item()) == (1.0, 9)


def test_updates_are_left_as_they_are():
    first = state(1.0, steps=1)
    blend([({"a": 2.0}, first), ({"a": 1.0}, state(5.0, steps=9))], lambda _: {"a": 1.0})
    assert (first["w"].item(), first["steps"].item()) == (1.0, 1)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="no update"):
        blend([], lambda _: {})
    with pytest.raises(ValueError, match="different tensors"):
        blend([({"a": 1.0}, state(1.0)), ({"a": 1.0}, {"w": torch.ones(1)})], lambda _: {"a": 1.0})
