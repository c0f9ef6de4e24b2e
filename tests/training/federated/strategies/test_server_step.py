import torch

from training.federated.aggregate import Server, Update
from training.federated.strategies.server_step import adaptive_round, changes, step_from


def test_only_parameters_become_changes():
    server = Server(
        {"w": torch.tensor([1.0]), "var": torch.tensor([2.0]), "steps": torch.tensor(3)},
        frozenset({"w"}),
    )
    state = {"w": torch.tensor([1.5]), "var": torch.tensor([5.0]), "steps": torch.tensor(7)}
    result = changes(server, state)
    assert result["w"].tolist() == [0.5]
    assert result["w"].dtype == torch.float64
    assert result["var"].tolist() == [5.0]
    assert result["steps"].item() == 7


def test_every_tensor_keeps_its_type_and_the_old_model_its_values():
    model = {"w": torch.tensor([1.0], dtype=torch.bfloat16), "steps": torch.tensor(3)}
    server = Server(model, frozenset({"w"}))
    after = step_from(
        server, {"steps": torch.tensor(4)}, {"w": torch.tensor([0.5]).to(torch.float64)}
    )
    assert after["w"].dtype == torch.bfloat16
    assert after["w"].item() == 1.5
    assert after["steps"].item() == 4
    assert server.model["w"].item() == 1.0


def test_small_changes_of_large_weights_are_measured_exactly():
    # Between 1000 and 1001 float32 has steps of 6e-5. Clients at 1000 and one such step above, three
    # times as heavy, have a mean change of 3/4 step, which a float32 mean would round to a whole one.
    tick = 2.0**-14
    server = Server({"w": torch.tensor([1000.0])}, frozenset({"w"}))
    updates = [
        Update(0, 1, 1, 0.5, {"w": torch.tensor([1000.0])}),
        Update(1, 3, 1, 0.5, {"w": torch.tensor([1000.0 + tick])}),
    ]
    after = adaptive_round(
        server, updates, eta=1.0, tau=1.0, beta1=0.5, next_variance=lambda old, square: old
    )
    assert after.memory["momentum/w"].item() == 0.5 * 0.75 * tick


def test_what_is_kept_for_a_half_precision_parameter_is_kept_in_float32():
    server = Server({"w": torch.tensor([1.0], dtype=torch.bfloat16)}, frozenset({"w"}))
    after = adaptive_round(
        server,
        [Update(0, 1, 1, 0.5, dict(server.model))],
        eta=1.0,
        tau=1e-4,
        beta1=0.5,
        next_variance=lambda old, square: old + square,
    )
    assert {tensor.dtype for tensor in after.memory.values()} == {torch.float32}
    assert after.model["w"].dtype == torch.bfloat16
