import pytest
import torch

from training.federated.exchange import count_bytes, narrow, narrow_change, widen, widen_change

MODEL = {"w": torch.tensor([1.0, -0.5, 300.0]), "steps": torch.tensor([7, 8])}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_float32_travels_as_it_is():
    sent = narrow(MODEL, "fp32")
    assert same(widen(sent), MODEL)
    assert count_bytes(sent) == 3 * 4 + 2 * 8
    trained = {"w": MODEL["w"] * 3, "steps": MODEL["steps"] + 1}
    sent = narrow_change(trained, MODEL, "fp32")
    assert same(widen_change(sent, MODEL, "fp32"), trained)
    assert count_bytes(sent, sent) == 2 * (3 * 4 + 2 * 8)


def test_bfloat16_halves_floating_point_numbers_alone():
    sent = narrow(MODEL, "bf16")
    assert count_bytes(sent) == 3 * 2 + 2 * 8
    received = widen(sent)
    assert received["w"].dtype == torch.float32
    assert torch.equal(received["w"], MODEL["w"].bfloat16().float())
    assert torch.equal(received["steps"], MODEL["steps"])
    assert count_bytes(narrow_change(MODEL, received, "bf16")) == 3 * 2 + 2 * 8


def test_a_change_below_the_last_bit_of_a_weight_is_not_lost_in_bfloat16():
    start = widen(narrow(MODEL, "bf16"))
    trained = {"w": start["w"] + 2.0**-12, "steps": start["steps"] + 1}
    assert torch.equal(trained["w"].bfloat16().float(), start["w"])  # that is what is lost
    result = widen_change(narrow_change(trained, start, "bf16"), start, "bf16")
    torch.testing.assert_close(result["w"], trained["w"], rtol=0, atol=2.0**-20)
    assert result["steps"].tolist() == [8, 9]


@pytest.mark.parametrize("odd", [{"w": torch.ones(2)}, {"v": torch.ones(3)}])
def test_tensors_that_the_model_has_not_come_through_to_be_named(odd):
    assert same(widen_change(odd, MODEL, "bf16"), odd)
