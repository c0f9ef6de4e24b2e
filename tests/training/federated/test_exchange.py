import torch

from training.federated.exchange import download, upload

MODEL = {"w": torch.tensor([1.0, -0.5, 300.0]), "steps": torch.tensor([7, 8])}


def test_float32_travels_as_it_is():
    received, num_bytes = download(MODEL, "fp32")
    assert all(torch.equal(received[name], tensor) for name, tensor in MODEL.items())
    assert num_bytes == 3 * 4 + 2 * 8
    sent, num_bytes = upload(MODEL, received, "fp32")
    assert all(torch.equal(sent[name], tensor) for name, tensor in MODEL.items())
    assert num_bytes == 3 * 4 + 2 * 8


def test_bfloat16_halves_floating_point_numbers_alone():
    received, num_bytes = download(MODEL, "bf16")
    assert num_bytes == 3 * 2 + 2 * 8
    assert received["w"].dtype == torch.float32
    assert torch.equal(received["w"], MODEL["w"].bfloat16().float())
    assert torch.equal(received["steps"], MODEL["steps"])
    _, num_bytes = upload(MODEL, received, "bf16")
    assert num_bytes == 3 * 2 + 2 * 8


def test_a_change_below_the_last_bit_of_a_weight_is_not_lost_in_bfloat16():
    start, _ = download(MODEL, "bf16")
    trained = {"w": start["w"] + 2.0**-12, "steps": start["steps"] + 1}
    assert torch.equal(trained["w"].bfloat16().float(), start["w"])  # that is what is lost
    sent, _ = upload(trained, start, "bf16")
    torch.testing.assert_close(sent["w"], trained["w"], rtol=0, atol=2.0**-20)
    assert sent["steps"].tolist() == [8, 9]
